"""What a sweep's page shows of its `trials.json`: parallel coordinates, the effect of each parameter, and every trial's learning curve."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components import storage
from components.report.figures import INCHES, INK, MUTED, SECOND, SERIES, WIDE_INCHES, new_figure, plain_numbers, to_svg
from components.report.numbers import number
from components.sweep.space import Space, text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRIALS = "trials.json"
TALL_INCHES = (WIDE_INCHES[0], 3.0)
ABSENT = -0.12  # where lines of trials without a parameter cross its axis
MAX_CHOICES = 12  # named on an axis
HANDOVER = 0.3  # of a generation: where the line of a copied member leaves its own
SHARE_SHOWN, SQUEEZE = 0.9, 3.0  # of the trials; how many times longer an axis may be for the sake of the rest


@dataclass(frozen=True)
class Scale:
    """One axis of the parallel coordinates: where values lie between 0 and 1, and the marks beside it."""

    name: str
    places: Mapping[int, float]  # trial number -> place
    marks: Sequence[tuple[float, str]]
    last: bool = False


@dataclass(frozen=True)
class Field:
    """The trials that have a score, which of them is best, and the scores between which axes of scores end."""

    trials: Sequence[Mapping[str, Any]]
    score: str
    best: int
    limits: tuple[float, float]


def sweep_section(url: str, name: str) -> dict[str, Any]:
    """The figures of the sweep in the folder `url`, with identifiers that begin with `name`, and the command that trains the best.

    `population` is of a sweep whose trials copied each other; no command trains the best of those.
    """
    found = storage.read_json(storage.join(url, TRIALS))
    spaces = {key: Space.parse(found["vary"][key], TRIALS) for key in found["keys"]}
    trials = [trial for trial in found["trials"] if trial["score"] is not None]
    judge = found["judge"]
    field = Field(trials, judge["score"], found["best"], _limits([trial["score"] for trial in trials], judge["best"] == "min"))
    return {
        "score": field.score,
        "parallel": _parallel(field, spaces, f"{name}-parallel"),
        "effects": [_effect(field, key, space, f"{name}-effect-{place}") for place, (key, space) in enumerate(spaces.items())],
        "curves": _curves(field, judge["best"] == "min", f"{name}-curves"),
        "population": _population(found["trials"], spaces, found["best"], name) if "generations" in found["trials"][0] else None,
        "command": found["command"],
        "beyond": sum(not field.limits[0] <= trial["score"] <= field.limits[1] for trial in trials),
    }


def _limits(scores: Sequence[float], lower_is_better: bool) -> tuple[float, float]:
    """All scores, unless a tenth of them, the worst, would squeeze the others into a corner."""
    ranked = sorted(scores, reverse=not lower_is_better)
    best, most, worst = ranked[0], ranked[math.ceil(SHARE_SHOWN * len(ranked)) - 1], ranked[-1]
    end = worst if abs(worst - best) <= SQUEEZE * abs(most - best) or most == best else most
    return min(best, end), max(best, end)


def _looks(trial: Mapping[str, Any], best: int) -> dict[str, Any]:
    """Colour and order of a trial's line: the best on top, what was stopped pale and below."""
    if trial["number"] == best:
        return {"color": SECOND, "alpha": 1.0, "zorder": 4}
    if trial["state"] == "finished":
        return {"color": SERIES, "alpha": 0.75, "zorder": 3}
    return {"color": MUTED, "alpha": 0.35, "zorder": 2}


def _parallel(field: Field, spaces: Mapping[str, Space], name: str) -> str:
    figure, axes = new_figure(TALL_INCHES)
    scales = [_scale_of(key, space, field.trials) for key, space in spaces.items()] + [_scale_of_scores(field)]
    for trial in field.trials:
        places = [scale.places.get(trial["number"], ABSENT) for scale in scales]
        axes.plot(range(len(scales)), places, linewidth=2.0 if trial["number"] == field.best else 1.1, **_looks(trial, field.best))
    for place, scale in enumerate(scales):
        axes.axvline(place, color=MUTED, linewidth=0.8, zorder=1)
        for height, mark in scale.marks:
            x, side = (place + 0.02, "left") if scale.last else (place - 0.02, "right")
            axes.text(x, height, mark, fontsize=7, color=MUTED, ha=side, va="center")
    axes.set_xticks(range(len(scales)), [scale.name for scale in scales], fontsize=8, color=INK)
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlim(-0.3, len(scales) - 0.8)
    axes.set_ylim(1.3 * ABSENT, 1.05)
    return to_svg(figure, name)


def _scale_of(key: str, space: Space, trials: Sequence[Mapping[str, Any]]) -> Scale:
    places = {trial["number"]: _share(space, trial["values"][key]) for trial in trials if key in trial["values"]}
    if space.choice is not None:
        marks = [(_share(space, value), text(value)) for value in space.choice[:MAX_CHOICES]]
    else:
        marks = [(0.0, f"{space.low:g}"), (1.0, f"{space.high:g}")]
    absent = [(ABSENT, "–")] if len(places) < len(trials) else []
    return Scale(_short(key), places, [*marks, *absent])


def _scale_of_scores(field: Field) -> Scale:
    low, high = field.limits
    shares = {trial["number"]: (trial["score"] - low) / ((high - low) or 1.0) for trial in field.trials}
    places = {trial: min(max(share, 0.0), 1.0) for trial, share in shares.items()}
    return Scale(field.score, places, [(0.0, number(low)), (1.0, number(high))], last=True)


def _share(space: Space, value: Any) -> float:
    """Where a value lies between the ends of its space, in the space's own scale."""
    point, low, high = float(space.point(value)), space.low, space.high
    if space.log is not None:
        point, low, high = math.log(point), math.log(low), math.log(high)
    return (point - low) / ((high - low) or 1.0)


def _effect(field: Field, key: str, space: Space, name: str) -> str:
    """Scores over one parameter."""
    figure, axes = new_figure(INCHES)
    for trial in field.trials:
        if key in trial["values"]:
            axes.plot([float(space.point(trial["values"][key]))], [trial["score"]], marker="o", markersize=4, **_looks(trial, field.best))
    _limit_scores(axes, field.limits)
    axes.set_title(f"{field.score} over {_short(key)}", fontsize=9, color=INK, loc="left")
    _set_axis(axes, space)
    return to_svg(figure, name)


def _set_axis(axes: Axes, space: Space) -> None:
    if space.choice is not None:
        shown = space.choice[:MAX_CHOICES]
        axes.set_xticks(range(len(shown)), [text(value) for value in shown])
        axes.set_xlim(-0.5, len(space.choice) - 0.5)
        return
    if space.log is not None:
        axes.set_xscale("log")
        axes.set_xlim(space.low, space.high)
        plain_numbers(axes.xaxis)
        return
    margin = 0.02 * (space.high - space.low)
    axes.set_xlim(space.low - margin, space.high + margin)


def _limit_scores(axes: Axes, limits: tuple[float, float]) -> None:
    low, high = limits
    margin = 0.05 * (high - low) or 0.5
    axes.set_ylim(low - margin, high + margin)


def _curves(field: Field, lower_is_better: bool, name: str) -> str:
    """Held-out scores over steps; empty when no trial was scored on the way."""
    drawn = [(trial, [(step, value) for step, value in trial["curve"] if value is not None]) for trial in field.trials]
    scores = [value for _, curve in drawn for _, value in curve]
    if not scores:
        return ""
    figure, axes = new_figure(TALL_INCHES)
    for trial, curve in drawn:
        if curve:
            steps, values = zip(*curve, strict=True)
            width = 2.0 if trial["number"] == field.best else 1.1
            axes.plot(steps, values, marker="o", markersize=2.6, linewidth=width, **_looks(trial, field.best))
    _limit_scores(axes, _limits(scores, lower_is_better))
    axes.set_xlim(left=0)
    return to_svg(figure, name)


def _population(trials: Sequence[Mapping[str, Any]], spaces: Mapping[str, Space], best: int, name: str) -> dict[str, Any]:
    """Members' values over steps, who copied whom, and the members that the best model's weights went through."""
    ancestors: list[int] = trials[best]["ancestors"]
    went = [number for place, number in enumerate(ancestors) if place == 0 or number != ancestors[place - 1]]
    return {
        "values": [_values_over_steps(trials, ancestors, key, space, f"{name}-over-{n}") for n, (key, space) in enumerate(spaces.items())],
        "copies": _copies(trials, ancestors, f"{name}-copies"),
        "went": went,
    }


def _values_over_steps(trials: Sequence[Mapping[str, Any]], ancestors: Sequence[int], key: str, space: Space, name: str) -> str:
    """A piecewise constant line a member, and on top that of the values with which the best model was trained."""
    figure, axes = new_figure(INCHES)
    edges = [course["steps"][0] for course in trials[0]["generations"]] + [trials[0]["generations"][-1]["steps"][1]]
    for trial in trials:
        axes.stairs(
            [course["values"][key] for course in trial["generations"]], edges, baseline=None, color=SERIES, alpha=0.5, linewidth=1.0
        )
    bred = [trials[number]["generations"][place]["values"][key] for place, number in enumerate(ancestors)]
    axes.stairs(bred, edges, baseline=None, color=SECOND, linewidth=2.0)
    if space.log is not None:
        axes.set_yscale("log")
        plain_numbers(axes.yaxis)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_title(_short(key), fontsize=9, color=INK, loc="left")
    return to_svg(figure, name)


def _copies(trials: Sequence[Mapping[str, Any]], ancestors: Sequence[int], name: str) -> str:
    """A row a member; a slanted line leads from the member that was copied to the one that goes on with its weights."""
    figure, axes = new_figure(TALL_INCHES)
    for trial in trials:
        for place, course in enumerate(trial["generations"]):
            of_best = ancestors[place] == trial["number"]
            looks: dict[str, Any] = {"color": SECOND, "linewidth": 2.0} if of_best else {"color": SERIES, "alpha": 0.6, "linewidth": 1.1}
            first, last = course["steps"]
            axes.plot([first, last], [trial["number"]] * 2, solid_capstyle="butt", **looks)
            if course["copied"] is not None:
                before = trial["generations"][place - 1]["steps"]
                axes.plot([first - HANDOVER * (before[1] - before[0]), first], [course["copied"], trial["number"]], **looks)
            if course["problem"]:
                axes.plot([last], [trial["number"]], marker="x", color=MUTED, markersize=5)
    axes.set_xlim(left=0)
    axes.set_ylim(len(trials) - 0.5, -0.5)
    axes.set_yticks(range(0, len(trials), -(-len(trials) // MAX_CHOICES)))
    axes.set_ylabel("member", fontsize=8, color=INK)
    return to_svg(figure, name)


def _short(key: str) -> str:
    """`train.optimizer.lr` is `optimizer.lr`, for the width of an axis."""
    return key.partition(".")[2]
