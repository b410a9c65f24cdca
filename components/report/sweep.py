"""What a sweep's page shows of its `trials.json`: parallel coordinates, the effect of each parameter, and every trial's learning curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components import storage
from components.report.figures import INCHES, INK, MUTED, SECOND, SERIES, WIDE_INCHES, new_figure, plain_numbers, to_svg
from components.report.numbers import number
from components.sweep.space import Space

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRIALS = "trials.json"
TALL_INCHES = (WIDE_INCHES[0], 3.0)
ABSENT = -0.12  # where lines of trials without a parameter cross its axis
MAX_CHOICES = 12  # named on an axis


@dataclass(frozen=True)
class Scale:
    """One axis of the parallel coordinates: where values lie between 0 and 1, and the marks beside it."""

    name: str
    places: Mapping[int, float]  # trial number -> place
    marks: Sequence[tuple[float, str]]


def sweep_section(url: str, name: str) -> dict[str, Any]:
    """The figures of the sweep in the folder `url`, with identifiers that begin with `name`, and the command that trains the best."""
    found = storage.read_json(storage.join(url, TRIALS))
    spaces = {key: Space.parse(values, TRIALS) for key, values in found["vary"].items()}
    trials = [trial for trial in found["trials"] if trial["score"] is not None]
    best, score = found["best"], found["judge"]["score"]
    return {
        "score": score,
        "parallel": _parallel(trials, spaces, score, best, f"{name}-parallel"),
        "effects": [
            _effect(trials, key, space, score, best, f"{name}-effect-{place}") for place, (key, space) in enumerate(spaces.items())
        ],
        "curves": _curves(found["trials"], best, f"{name}-curves"),
        "command": found["command"],
    }


def _looks(trial: Mapping[str, Any], best: int) -> dict[str, Any]:
    """Colour and order of a trial's line: the best on top, what was stopped pale and below."""
    if trial["number"] == best:
        return {"color": SECOND, "alpha": 1.0, "zorder": 4}
    if trial["state"] == "finished":
        return {"color": SERIES, "alpha": 0.75, "zorder": 3}
    return {"color": MUTED, "alpha": 0.35, "zorder": 2}


def _parallel(trials: Sequence[Mapping[str, Any]], spaces: Mapping[str, Space], score: str, best: int, name: str) -> str:
    figure, axes = new_figure(TALL_INCHES)
    scales = [_scale_of(key, space, trials) for key, space in spaces.items()] + [_scale_of_scores(score, trials)]
    for trial in trials:
        places = [scale.places.get(trial["number"], ABSENT) for scale in scales]
        axes.plot(range(len(scales)), places, linewidth=2.0 if trial["number"] == best else 1.1, **_looks(trial, best))
    for place, scale in enumerate(scales):
        axes.axvline(place, color=MUTED, linewidth=0.8, zorder=1)
        for height, text in scale.marks:
            axes.text(place - 0.02, height, text, fontsize=7, color=MUTED, ha="right", va="center")
    axes.set_xticks(range(len(scales)), [scale.name for scale in scales], fontsize=8, color=INK)
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlim(-0.45, len(scales) - 0.9)
    return to_svg(figure, name)


def _scale_of(key: str, space: Space, trials: Sequence[Mapping[str, Any]]) -> Scale:
    places = {trial["number"]: _share(space, trial["values"][key]) for trial in trials if key in trial["values"]}
    if space.choice is not None:
        marks = [(_share(space, value), str(value)) for value in space.choice[:MAX_CHOICES]]
    else:
        marks = [(0.0, f"{space.low:g}"), (1.0, f"{space.high:g}")]
    absent = [(ABSENT, "–")] if len(places) < len(trials) else []
    return Scale(_short(key), places, [*marks, *absent])


def _scale_of_scores(score: str, trials: Sequence[Mapping[str, Any]]) -> Scale:
    """From the worst to the best finished trial; stopped ones may lie below its end."""
    scores = {trial["number"]: trial["score"] for trial in trials}
    low, high = min(scores.values()), max(scores.values())
    width = (high - low) or 1.0
    return Scale(score, {trial: (value - low) / width for trial, value in scores.items()}, [(0.0, number(low)), (1.0, number(high))])


def _share(space: Space, value: Any) -> float:
    """Where a value lies between the ends of its space, in the space's own scale."""
    import math

    point, low, high = float(space.point(value)), space.low, space.high
    if space.log is not None:
        point, low, high = math.log(point), math.log(low), math.log(high)
    return (point - low) / ((high - low) or 1.0)


def _effect(trials: Sequence[Mapping[str, Any]], key: str, space: Space, score: str, best: int, name: str) -> str:
    """Scores over one parameter."""
    figure, axes = new_figure(INCHES)
    for trial in trials:
        if key in trial["values"]:
            axes.plot([float(space.point(trial["values"][key]))], [trial["score"]], marker="o", markersize=4, **_looks(trial, best))
    axes.set_title(f"{score} over {_short(key)}", fontsize=9, color=INK, loc="left")
    _set_axis(axes, space)
    return to_svg(figure, name)


def _set_axis(axes: Axes, space: Space) -> None:
    if space.choice is not None:
        shown = space.choice[:MAX_CHOICES]
        axes.set_xticks(range(len(shown)), [str(value) for value in shown])
        axes.set_xlim(-0.5, len(space.choice) - 0.5)
        return
    if space.log is not None:
        axes.set_xscale("log")
        axes.set_xlim(space.low, space.high)
        plain_numbers(axes.xaxis)
        return
    margin = 0.02 * (space.high - space.low)
    axes.set_xlim(space.low - margin, space.high + margin)


def _curves(trials: Sequence[Mapping[str, Any]], best: int, name: str) -> str:
    """Held-out scores over steps; empty when no trial was scored on the way."""
    drawn = [(trial, [(step, value) for step, value in trial["curve"] if value is not None]) for trial in trials]
    if not any(curve for _, curve in drawn):
        return ""
    figure, axes = new_figure(TALL_INCHES)
    for trial, curve in drawn:
        if curve:
            steps, values = zip(*curve, strict=True)
            width = 2.0 if trial["number"] == best else 1.1
            axes.plot(steps, values, marker="o", markersize=2.6, linewidth=width, **_looks(trial, best))
    axes.set_xlim(left=0)
    return to_svg(figure, name)


def _short(key: str) -> str:
    """`train.optimizer.lr` is `optimizer.lr`, for the width of an axis."""
    return key.partition(".")[2]
