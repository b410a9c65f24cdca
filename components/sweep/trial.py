"""One trial: a training job that tells its held-out scores on the way and leaves when it is told to. And trials in this process alone.

Whoever decides which trials there are and which go on is a `Guide`; whoever runs them, this file or Ray Tune (`clusters/tune.py`), asks it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from pydantic import Field

from components import storage
from components.config import Config
from components.errors import Diverged
from components.training.checkpoint import CheckpointFolder
from components.training.job import TrainingJob, execute, finished
from components.training.outlet import Outlet, Row
from components.training.record import RunRecord, read_metrics

HELD_OUT = "held_out."
POLL_SECONDS = 0.5

Report = Callable[[Row], bool]  # takes a metric row; False: stop


class Outcome(Config):
    """How a trial ended by itself: finished with the scores of its published model, or failed for a reason that lies in its values."""

    state: Literal["finished", "failed"]
    scores: dict[str, Any] = Field(default_factory=dict)
    seconds: float = 0.0
    problem: str = ""


@dataclass(frozen=True)
class Trial:
    """A trial to run: its number in the sweep and its job."""

    number: int
    job: TrainingJob


class Guide(Protocol):
    """Decides for a sweep. Numbers are those of `Trial`."""

    def next(self) -> Trial | None:
        """A trial to start now; None when there is none (yet)."""

    def exhausted(self) -> bool:
        """Whether `next` will never give another."""

    def reports(self, number: int, row: Row) -> bool:
        """Takes the scores of an evaluation, again if the trial was taken up again; returns whether the trial goes on."""

    def ends(self, number: int, outcome: Outcome) -> None:
        """Takes the end of a trial that was not stopped."""


class _Stopped(Exception):
    """Leaves the training loop."""


def run_trial(job: TrainingJob, outlet: Outlet, report: Report) -> Outcome | None:
    """Runs the job from its last checkpoint to its end; None when `report` stopped it.

    `report` gets every metric row, first those of evaluations before that checkpoint. A loss that is no longer finite and a model that
    does not fit into the memory of the device are outcomes; everything else that `execute` raises is raised.
    """

    def show(row: Row) -> None:
        if not report(row):
            raise _Stopped

    try:
        for row in _evaluated_before(job):
            show(row)
        execute(job, replace(outlet, show=show))
    except _Stopped:
        return None
    except (Diverged, torch.OutOfMemoryError) as error:
        return Outcome(state="failed", problem=" ".join(str(error).split()))
    info = RunRecord(job.run).info()
    return Outcome(state="finished", scores=info["scores"], seconds=info["seconds"])


def is_evaluation(row: Row) -> bool:
    return any(name.startswith(HELD_OUT) for name in row)


def run_here(guide: Guide) -> None:
    """Runs the trials of `guide` in this process, one after another."""
    while not guide.exhausted():
        trial = guide.next()
        if trial is None:
            time.sleep(POLL_SECONDS)  # another process is at what is left
            continue
        outcome = run_trial(trial.job, Outlet(), _reporter(guide, trial.number))
        if outcome is not None:
            guide.ends(trial.number, outcome)


def _reporter(guide: Guide, number: int) -> Report:
    return lambda row: guide.reports(number, row) if is_evaluation(row) else True


def _evaluated_before(job: TrainingJob) -> list[Row]:
    """Rows of the evaluations before the step from which the job would go on.

    A process that is killed between a checkpoint and the record of the same step leaves a gap: then the checkpoints are removed, and the
    job starts anew.
    """
    folder = storage.join(job.run, "checkpoints")
    checkpoints = CheckpointFolder(folder)
    steps = [job.last_step] if finished(job) else checkpoints.steps()
    checkpoints.close()
    if not steps:
        return []
    rows = [row for row in read_metrics(job.run) if is_evaluation(row) and row["step"] <= steps[-1]]
    every = job.train.evaluate_every
    if every and len({row["step"] for row in rows}) < steps[-1] // every - job.first_step // every and not finished(job):
        storage.remove(folder)
        return []
    return rows
