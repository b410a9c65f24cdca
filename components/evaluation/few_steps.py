"""What a flow's stages make of the same noises in few steps and in many: distance to real pictures, straightness, and the pictures.

Every stage starts from the same noises, so that rows of the picture and points of the chart can be compared. Fréchet distances are on the
features of a judge that no stage was trained with: FD-cnn, not FID. They depend on the number of pictures, so drawn reference points have
as many as the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field, model_validator

from components import storage
from components.config import Config
from components.data.dataset import Dataset
from components.data.loader import evaluation_batches
from components.evaluation.generation import BATCH, Generated, Reference, score_samples
from components.evaluation.pictures import grid, png
from components.evaluation.reference_points import point_scores
from components.families.classifier import Classifier
from components.families.images import classes_in_turn, pixels
from components.families.rectified_flow import RectifiedFlow
from components.functional.flow_matching import transport_cost
from components.report.findings import Chart, Findings, Picture, Score, Series, Table

ROWS = 20_000  # of real pictures, whose distance to noise is measured
SHOWN = 20
NOISE = "noise"  # a reference point too far off for the chart
FLOW, REFLOW, DISTILLED = "flow", "reflow", "distilled"  # the stages, by what each is called


class Targets(Config):
    """What a run is meant to reach, each as a share of what the flow does before reflow; None: nothing in particular."""

    one_step: float | None = Field(None, gt=0, description="distance of one Euler step after reflow, at most")
    distilled: float | None = Field(None, gt=0, description="distance of the distilled step, over that of one Euler step before, at most")
    most_steps: float | None = Field(None, gt=0, description="distance of the most Euler steps after reflow, at most")


class FewStepsConfig(Config):
    samples: int = Field(2000, gt=1, description="pictures of each stage at each number of steps")
    seed: int = Field(0, ge=0, description="of the noises that every stage starts from, and of the reference points that are drawn")
    steps: tuple[int, ...] = Field((1, 2, 5, 10, 20), min_length=2, description="numbers of Euler steps, rising from 1")
    shown: tuple[int, ...] = Field((1, 2, 5, 20), min_length=1, description="those whose pictures are shown")
    paths: int = Field(512, gt=0, description="paths whose straightness is measured")
    path_steps: int = Field(50, gt=1, description="Euler steps that a path is followed by")
    targets: Targets = Targets()

    @model_validator(mode="after")
    def _steps_rise(self) -> Self:
        if self.steps[0] != 1 or any(a >= b for a, b in zip(self.steps, self.steps[1:], strict=False)):
            raise ValueError(f"steps={list(self.steps)} do not rise from 1; give them in order, such as [1, 2, 5]")
        if not set(self.shown) <= set(self.steps):
            raise ValueError(f"shown={list(self.shown)} has numbers that steps={list(self.steps)} has not; choose among those")
        return self


@dataclass(frozen=True)
class Subjects:
    """What is scored: the data set's URL, a judge, and models by stage, those in evaluation mode."""

    images: str
    judge: Classifier
    stages: Mapping[str, RectifiedFlow]  # `flow`, `reflow` and, where there is one, `distilled`


@dataclass(frozen=True)
class Paths:
    """Means over a flow's paths."""

    straightness: float
    transport_cost: float


Runs = Mapping[str, Mapping[int, Generated]]  # by stage and number of Euler steps


def score(subjects: Subjects, config: FewStepsConfig, folder: Path, report: Callable[[Mapping[str, Any]], None]) -> None:
    """Leaves findings, and the stages' pictures side by side, in `folder`. Needs a `test` split of held-out rows."""
    train, held_out = Dataset.open(subjects.images), Dataset.open(subjects.images, "test")
    reference = Reference.of(subjects.judge, train)
    runs = _runs(subjects, reference, config, report)
    paths = {name: _paths(model, config) for name, model in subjects.stages.items() if name != DISTILLED}
    beside = {name: found["fd"] for name, found in point_scores(subjects.judge, reference, train, held_out, config.samples).items()}
    Findings(
        scores=(*_distances(runs, beside, config), *_straightness(paths, _cost_at_random(train), config)),
        tables=(_table(runs, config),),
        charts=(_chart(runs, beside, config),),
        pictures=(_picture(runs, config, folder),),
    ).write(str(folder))


def _runs(subjects: Subjects, reference: Reference, config: FewStepsConfig, report: Callable[[Mapping[str, Any]], None]) -> Runs:
    places = [(name, steps) for name in subjects.stages for steps in ((1,) if name == DISTILLED else config.steps)]
    runs: dict[str, dict[int, Generated]] = {name: {} for name in subjects.stages}
    for done, (name, steps) in enumerate(places):
        report({"step": done, "steps": len(places), "facts": (_row_name(name, steps),)})
        sampler = RectifiedFlow.Sampler.parse({"sampler": "euler", "steps": steps}, f"{steps} Euler steps")
        runs[name][steps] = score_samples(subjects.stages[name], subjects.judge, reference, config.samples, config.seed, sampler, SHOWN)
    report({"step": len(places), "steps": len(places)})
    return runs


def _paths(model: RectifiedFlow, config: FewStepsConfig) -> Paths:
    noise = torch.randn(config.paths, *model.sample_shape, generator=torch.Generator().manual_seed(config.seed))
    labels = classes_in_turn(config.paths, 0, model.config.num_classes)
    sampler = RectifiedFlow.Sampler.parse({"sampler": "euler", "steps": config.path_steps}, "paths")
    bent, far = [], []
    for start in range(0, config.paths, BATCH):
        rows = slice(start, start + BATCH)
        classes = None if labels is None else labels[rows]
        bent.append(model.straightness(noise[rows], classes, config.path_steps))
        far.append(transport_cost(model.from_noise(noise[rows], sampler, classes), noise[rows]))
    return Paths(torch.cat(bent).mean().item(), torch.cat(far).mean().item())


def _cost_at_random(train: Dataset) -> float:
    """E ||noise - picture||^2 where nothing pairs them: what a flow starts its training with."""
    batches = evaluation_batches(train, BATCH, limit=ROWS)
    return torch.cat([((2 * pixels(batch) - 1).square() + 1).flatten(1).sum(1) for batch in batches]).mean().item()


def _distances(runs: Runs, beside: Mapping[str, float], config: FewStepsConfig) -> Iterator[Score]:
    """One step and most steps after reflow, and the distilled step: each beside what the flow did before, and as a share of it."""
    most, targets = config.steps[-1], config.targets
    yield _distance("One Euler step after reflow", _fd(runs, REFLOW, 1), _fd(runs, FLOW, 1), targets.one_step, beside, config)
    if DISTILLED in runs:
        others = {"after reflow": _fd(runs, REFLOW, 1), **beside}
        yield _distance("One distilled step", _fd(runs, DISTILLED, 1), _fd(runs, FLOW, 1), targets.distilled, others, config)
    yield _distance(f"{most} Euler steps after reflow", _fd(runs, REFLOW, most), _fd(runs, FLOW, most), targets.most_steps, beside, config)


def _distance(title: str, value: float, before: float, share: float | None, beside: Mapping[str, float], config: FewStepsConfig) -> Score:
    target = "" if share is None else f" (target: {share:g})"
    return Score(
        name=f"{title}, Fréchet distance (FD-cnn)",
        value=value,
        better="lower",
        target=None if share is None else share * before,
        beside={"before reflow": before, **beside},
        note=f"{value / before:.2f} of the distance before{target}; {config.samples:,} samples, on the judge's features; not FID",
    )


def _fd(runs: Runs, stage: str, steps: int) -> float:
    return runs[stage][steps].scores["fd"]


def _row_name(stage: str, steps: int) -> str:
    return f"{stage}, {steps} step{'s' if steps > 1 else ''}"


def _straightness(paths: Mapping[str, Paths], apart: float, config: FewStepsConfig) -> Iterator[Score]:
    note = f"a sum over pixels, {config.paths:,} paths followed by {config.path_steps} Euler steps"
    before, after = paths[FLOW], paths[REFLOW]
    yield Score(
        name="Straightness after reflow",
        value=after.straightness,
        better="lower",
        beside={"before reflow": before.straightness},
        note=f"0: every path is a straight line at even speed; {note}",
    )
    yield Score(
        name="Transport cost after reflow",
        value=after.transport_cost,
        better="lower",
        beside={"before reflow": before.transport_cost, "paired at random": apart},
        note=f"squared distance from a noise to its picture; {note}",
    )


def _table(runs: Runs, config: FewStepsConfig) -> Table:
    def cells(steps: int) -> Iterator[float | None]:
        for stage in runs.values():
            yield from (stage[steps].scores["fd"], stage[steps].scores["kid"]) if steps in stage else (None, None)
        yield _fd(runs, REFLOW, steps) / _fd(runs, FLOW, steps)

    return Table(
        title="Stages at few steps and at many",
        caption=f"{config.samples:,} samples of each stage from the same noises. A share above 1 is what reflow lost at so many steps.",
        columns=("Euler steps", *(f"{name}, {score}" for name in runs for score in ("FD-cnn", "KID")), "FD-cnn after / before reflow"),
        rows=tuple((str(steps), *cells(steps)) for steps in config.steps),
    )


def _chart(runs: Runs, beside: Mapping[str, float], config: FewStepsConfig) -> Chart:
    every = [drawn.evaluations for stage in runs.values() for drawn in stage.values()]
    series = [
        Series(
            name=name,
            x=tuple(drawn.evaluations for drawn in stage.values()),
            y=tuple(drawn.scores["fd"] for drawn in stage.values()),
            joined=len(stage) > 1,
        )
        for name, stage in runs.items()
    ]
    lines = {name: value for name, value in beside.items() if name != NOISE}
    series += [Series(name=name, x=(min(every), max(every)), y=(value, value)) for name, value in lines.items()]
    return Chart(
        title="Distance against evaluations of the network",
        caption=f"FD-cnn of {config.samples:,} samples by Euler steps; lower is better.",
        x_label="network evaluations for a picture",
        y_label="Fréchet distance (FD-cnn)",
        series=tuple(series),
        log_x=True,
        log_y=True,
    )


def _picture(runs: Runs, config: FewStepsConfig, folder: Path) -> Picture:
    rows = {
        _row_name(name, steps): drawn.pictures.numpy()
        for name, stage in runs.items()
        for steps, drawn in stage.items()
        if steps in config.shown or name == DISTILLED
    }
    storage.write_bytes(str(folder / "stages.png"), png(grid(list(rows.values()), scale=2)))
    return Picture(
        file="stages.png",
        title="The same noises through every stage",
        caption="A column is one noise, a row one stage at so many Euler steps; classes in turn, not chosen.",
        row_names=tuple(rows),
    )
