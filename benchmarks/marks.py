"""Trainings that are looked at on their way: each rests when its steps have taken so many minutes, is kept as a model, and goes on.

Starting, saving and scoring do not count. All that is done lies in one folder, and a command that was interrupted goes on there: shards,
checkpoints, models, and `rows.jsonl` with a line for each thing measured. A training whose preset ends before a mark is kept at its end.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from components import storage
from components.data.dataset import Dataset
from components.errors import UserError
from components.families.contract import Family
from components.families.model_folder import COMMIT, load_model, save_model
from components.training.checkpoint import CheckpointFolder
from components.training.continuation import CHECKPOINTS
from components.training.job import TrainingJob, build, finished
from components.training.record import read_metrics
from pipelines.settings import Training, configure, family_preset
from pipelines.training import training_job
from pipelines.workers import Workers

MINUTE = 60.0
MARKS = (5.0, 10.0, 20.0)  # minutes
FIRST_STEPS = 40  # before a rate is known
AIM = 0.9  # of what is left of a mark's time, since the rate to come is not known
NEAR, BEYOND = 0.99, 1.05  # shares of a mark's time that are it, and that are past it


class Rows:
    """`rows.jsonl`: what is measured so far, each by what it was measured of."""

    def __init__(self, folder: str) -> None:
        self._file = Path(folder) / "rows.jsonl"
        self._file.parent.mkdir(parents=True, exist_ok=True)
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        self._rows: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def find(self, of: dict[str, Any]) -> dict[str, Any] | None:
        return next((row for row in self._rows if row["of"] == of), None)

    def add(self, of: dict[str, Any], figures: dict[str, Any]) -> dict[str, Any]:
        row = {"of": of, **figures}
        self._rows.append(row)
        with self._file.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
        print(json.dumps(row), file=sys.stderr, flush=True)
        return row


def job_of(family: str, preset: str, overrides: Iterable[str], data: str, run: str) -> TrainingJob:
    """The family's training by its preset, on the data set at `data`, in the run folder `run`."""
    settings = configure(Training.parse({"family": family}, "benchmark"), family_preset(family, preset), preset, None, list(overrides))
    return training_job(settings, data, run, {})


def keep(job: TrainingJob, minutes: float, place: str, workers: Workers) -> None:
    """Trains up to a mark and keeps the model of that moment in the folder `place`, with the steps and minutes it took in `place`.json."""
    if storage.exists(storage.join(place, COMMIT)):
        return
    _, before = trained_seconds(job.run)
    if before > MINUTE * minutes * BEYOND:
        raise UserError(f"{job.run} has trained {before / MINUTE:.1f} minutes, beyond the mark of {minutes:g}; give another folder")
    train_for(job, minutes * MINUTE, workers)
    step, seconds = trained_seconds(job.run)
    facts = {"step": step, "steps": job.train.steps, "minutes": seconds / MINUTE, "workers": workers.count.most}
    storage.write_json(f"{place}.json", facts)
    save_model(model_now(job), place)


def trained_seconds(run: str) -> tuple[int, float]:
    """The steps so far and the seconds they took, by the run's record, in which a step that was trained twice stands once."""
    step, seconds = 0, 0.0
    for row in read_metrics(run):
        seconds += (row["step"] - step) * row["step_seconds"]
        step = row["step"]
    return step, seconds


def train_for(job: TrainingJob, seconds: float, workers: Workers) -> None:
    """Trains until the steps of the run have taken almost so many seconds in all, or to its end."""
    while not finished(job):
        step, spent = trained_seconds(job.run)
        rested = step > 0 and finished(_until(job, step))  # else it was killed, and its last checkpoint may be of an earlier step
        if rested and spent >= NEAR * seconds:
            return
        more = max(int(rested), int(AIM * (seconds - spent) * step / spent)) if step else FIRST_STEPS
        workers.train(_until(job, step + more), lambda row: None)


def _until(job: TrainingJob, step: int) -> TrainingJob:
    return job.model_copy(update={"until": step if step < job.train.steps else None})


def model_now(job: TrainingJob) -> Family:
    """What the run would publish if it ended where it rests: averaged weights where there are any."""
    if finished(job):
        return load_model(storage.join(job.run, "model"))
    with closing(CheckpointFolder(storage.join(job.run, CHECKPOINTS))) as checkpoints:
        checkpoint = checkpoints.latest()
    assert checkpoint is not None, f"{job.run} rests without a checkpoint"
    family = build(job, Dataset.open(job.data))
    family.load_state_dict(checkpoint.state["model"] | checkpoint.state.get("average", {}))
    return family.eval()


def minutes_of(text: str) -> tuple[float, ...]:
    """Marks as a command line gives them, `5,10,20`, in their order."""
    return tuple(sorted(float(part) for part in text.split(",")))


def some_of(text: str, known: Iterable[str], what: str) -> tuple[str, ...]:
    """Names with commas between them, as a command line gives them."""
    names, all_names = tuple(text.split(",")), tuple(known)
    if unknown := [name for name in names if name not in all_names]:
        raise argparse.ArgumentTypeError(f"unknown {what} {unknown[0]!r}; choose among {', '.join(all_names)}")
    return names
