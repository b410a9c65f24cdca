"""Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934) whose decisions do not depend on who was quicker.

At each rung a trial goes on if it is among the best 1/eta of itself and the trials *numbered before it* that came to that rung. A trial
never waits for the verdict: it trains on, and is stopped at its rung in retrospect once those before it have come so far. So the
verdicts are a pure function of the scores, the same on one worker and on a hundred, and after any number of kills.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Course:
    """How far a trial has come: its score at each evaluated step, and whether there will be no more of them."""

    scores: Mapping[int, float]
    ended: bool


@dataclass(frozen=True)
class Verdict:
    """The rung (a step) at which a trial is stopped, if it is; `certain` when no trial before it can change that."""

    stopped_at: int | None = None
    certain: bool = True


def rungs(steps: int, evaluate_every: int, grace_steps: int, factor: int) -> tuple[int, ...]:
    """The evaluated steps at which trials of `steps` steps are judged: the first from `grace_steps` times 1, eta, eta^2, ... on."""
    found: list[int] = []
    milestone = grace_steps
    while (step := -(-milestone // evaluate_every) * evaluate_every) < steps:
        if step not in found:
            found.append(step)
        milestone *= factor
    return tuple(found)


def verdicts(courses: Sequence[Course], steps: Sequence[int], factor: int, best: Literal["min", "max"]) -> list[Verdict]:
    """One verdict a trial, in order of numbers. A score that is no number ends its trial."""
    reached: dict[int, list[float]] = {step: [] for step in steps}  # badness of the trials before, ascending
    unknown: set[int] = set()  # rungs of which a trial before may still come to tell its score
    return [_verdict(course, steps, factor, best, reached, unknown) for course in courses]


def _verdict(
    course: Course,
    steps: Sequence[int],
    factor: int,
    best: Literal["min", "max"],
    reached: dict[int, list[float]],
    unknown: set[int],
) -> Verdict:
    for place, step in enumerate(steps):
        score = course.scores.get(step)
        if score is None:
            unknown.update(() if course.ended else steps[place:])
            return Verdict(certain=course.ended)
        if step in unknown:
            unknown.update(steps[place:])
            return Verdict(certain=False)
        badness = float("inf") if score != score else score if best == "min" else -score
        better = bisect_left(reached[step], badness)
        insort(reached[step], badness)
        if badness == float("inf") or better >= -(-len(reached[step]) // factor):
            return Verdict(stopped_at=step)
    return Verdict()
