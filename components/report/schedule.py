"""The page of a schedule: who is champion, how the candidates did against it, and what was decided in every run, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from components.report.figures import INK, MUTED, SECOND, SERIES, new_figure, to_svg
from components.report.page import fill

SHOWN = 120  # runs in the timeline, at most
LABELS = 8  # of runs below it, at most
INCHES = (10.0, 3.0)
PAPER = "#ffffff"


@dataclass(frozen=True)
class JudgedRun:
    """A point of the timeline, by a short label: both scores on the run's held-out rows, and the interval in which the candidate's lies."""

    label: str
    candidate: float
    champion: float | None = None
    low: float | None = None
    high: float | None = None
    promoted: bool = False


@dataclass(frozen=True)
class RunRow:
    """A row of the table."""

    id: str
    when: str
    cause: str
    outcome: str
    reason: str
    warnings: tuple[str, ...]
    new_rows: int | None
    seconds: float
    candidate: str
    link: str | None


@dataclass(frozen=True)
class ChampionCard:
    title: str
    artifact: str
    score: float | None
    since: str


@dataclass(frozen=True)
class SchedulePage:
    """Everything that the page shows; `runs` newest first, `judged` oldest first."""

    name: str
    summary: str
    champion: ChampionCard | None
    score: str
    better: Literal["min", "max"]
    judged: Sequence[JudgedRun]
    runs: Sequence[RunRow]
    rule: str
    back: str
    config: str
    place: str


def render_schedule(page: SchedulePage) -> str:
    """The page as HTML."""
    names = ("promoted", "kept", "nothing_new", "failed")
    counts = {name: sum(run.outcome == name for run in page.runs) for name in names}
    return fill(
        "schedule.html",
        title=f"Schedule {page.name}",
        summary=page.summary,
        champion=page.champion,
        score=page.score,
        better=page.better,
        timeline=timeline_svg(page.judged[-SHOWN:], page.score) if page.judged else "",
        shown=SHOWN,
        left_out=len(page.judged) > SHOWN,
        counts=[(name.replace("_", " "), count, 100 * count / max(1, *counts.values())) for name, count in counts.items() if count],
        runs=page.runs,
        rule=page.rule,
        back=page.back,
        config=page.config,
        place=page.place,
    )


def timeline_svg(runs: Sequence[JudgedRun], score: str) -> str:
    """Candidates as marks with their intervals, filled where promoted, and the champion that each met as a line of steps."""
    figure, axes = new_figure(INCHES)
    met = [(place, run.champion) for place, run in enumerate(runs) if run.champion is not None]
    if met:
        axes.plot(*zip(*met, strict=True), color=SECOND, linewidth=1.4, marker="_", markersize=9, drawstyle="steps-mid")
    for place, run in enumerate(runs):
        if run.low is not None and run.high is not None:
            axes.plot([place, place], [run.low, run.high], color=SERIES, linewidth=1.2)
        filled = SERIES if run.promoted else PAPER
        axes.plot([place], [run.candidate], color=SERIES, marker="o", markersize=5.5, markerfacecolor=filled, linestyle="none")
    apart = math.ceil(len(runs) / LABELS)
    axes.set_xticks(range(0, len(runs), apart), [run.label for run in runs[::apart]])
    axes.set_xlim(-0.5, len(runs) - 0.5)
    axes.set_title(score, fontsize=9, color=INK, loc="left")
    axes.grid(axis="x", color=MUTED, linewidth=0.3, alpha=0.25)
    return to_svg(figure, "timeline")
