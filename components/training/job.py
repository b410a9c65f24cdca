"""A training job as a value, and its execution by one worker: data in, a run folder with record, checkpoints and a model folder out."""

from __future__ import annotations

import platform
import time
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from components import storage
from components.config import Config, fingerprint
from components.data.dataset import Dataset
from components.errors import UserError, did_you_mean
from components.families.contract import Family
from components.families.model_folder import COMMIT as MODEL_COMMIT
from components.families.model_folder import family_class, load_model, save_model
from components.training.checkpoint import CheckpointFolder
from components.training.config import TrainConfig
from components.training.continuation import CHECKPOINTS, Origin, begin_at
from components.training.loop import Trainer, check_fits, train
from components.training.outlet import Outlet
from components.training.randomness import derive_seed
from components.training.record import RunRecord
from components.training.row_files import RowSlice


class TrainingJob(Config):
    """Everything that decides a run's result, and where it lies. Workers, devices and clusters are not part of it.

    With `until` a run rests at that step: it has a checkpoint and a record, but no model. The same job without it, or with a later one,
    goes on in the same folder.
    """

    family: str
    model: dict[str, Any] = Field(default_factory=dict, description="the family's config")
    train: TrainConfig = TrainConfig()
    data: str = Field(description="data set folder or URL")
    run: str = Field(description="run folder or URL")
    children: dict[str, str] = Field(default_factory=dict, description="name -> model folder of an earlier stage's model")
    children_kept: tuple[str, ...] = Field((), description="children that are copied into the model folder")
    resume_from: str | None = Field(
        None, description="checkpoint folder of another run to begin with (components/training/continuation.py)"
    )
    until: int | None = Field(None, gt=0, description="the step at which the run rests, before train.steps; none: it goes to the end")

    @model_validator(mode="after")
    def _steps_follow_each_other(self) -> Self:
        if self.until is not None and self.until >= self.train.steps:
            raise ValueError(f"until={self.until} is not before train.steps={self.train.steps}; leave it out to train to the end")
        if self.first_step >= self.last_step:
            raise ValueError(f"resume_from={self.resume_from} leaves nothing of the {self.last_step} steps; give an earlier checkpoint")
        return self

    @property
    def origin(self) -> Origin | None:
        return None if self.resume_from is None else Origin.parse(self.resume_from)

    @property
    def first_step(self) -> int:
        """The step that a fresh run folder begins with."""
        return 0 if self.origin is None else self.origin.step

    @property
    def last_step(self) -> int:
        """The step that the run comes to."""
        return self.train.steps if self.until is None else self.until

    def identity(self) -> str:
        """What must not change between a run and its resumption. Raises UserError when `resume_from` is no run's."""
        own = {"family": self.family, "model": self.model, "train": self.train.to_json()}
        return fingerprint(own if self.origin is None else own | {"origin": self.origin.identity()})


def finished(job: TrainingJob) -> bool:
    """Whether the run has published its model, or rests where it should."""
    if storage.exists(storage.join(job.run, "model", MODEL_COMMIT)):
        return True
    return job.until is not None and RunRecord(job.run).info().get("rests_at") == job.until


def build(job: TrainingJob, data: Dataset) -> Family:
    """The family on its data, freshly drawn and equal on every worker; raises UserError when config, data or children do not fit."""
    cls = family_class(job.family)
    children = {name: load_model(url) for name, url in job.children.items()}
    given = cls.Config.parse(job.model, f"model config of {job.family}")
    try:
        config = cls.fit(given, data.shape)
    except UserError as error:
        raise UserError(f"{data.url}: {error}") from None
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(job.train.seed, "weights"))
        family = cls(config)
    for name, child in children.items():
        family.adopt(name, child)
    return family


def execute(job: TrainingJob, outlet: Outlet) -> bool:
    """Runs the job on this worker, from its last checkpoint if there is one; does nothing when it has finished.

    A job with `until` leaves a checkpoint of that step instead of a model, and scores of the way alone. Returns whether the run came to its
    last step: False where the outlet asked for a rest before, and left a checkpoint to go on from.

    Raises UserError for a run folder of another job, and for what `build` and `train` refuse.
    """
    record = RunRecord(job.run)
    _require_same_job(job, record)
    if finished(job):
        return True
    check_fits(job.train, outlet.world.size)
    data = Dataset.open(job.data, "train")
    if job.train.held_out not in {*data.splits, "test"}:
        raise UserError(f"train.held_out={job.train.held_out} is no split of {job.data}; {did_you_mean(job.train.held_out, data.splits)}")
    held_out = Dataset.open(job.data, job.train.held_out) if job.train.held_out in data.splits else None
    if job.train.evaluate_every and held_out is None:
        raise UserError(
            f"train.evaluate_every={job.train.evaluate_every} needs held-out rows, but {job.data} has no {job.train.held_out} split; "
            f"set it to 0"
        )
    started = time.perf_counter()
    trainer = Trainer(build(job, data), job.train, outlet)
    _require_same_model(job, record, trainer.family)
    if held_out is not None:
        trainer.family.require_fitting(held_out.shape, held_out.url, held_out.split)  # now, not when the training is done
    with outlet.world.apart() if trainer.family.sharded else nullcontext() as writers:
        checkpoints = CheckpointFolder(
            storage.join(job.run, CHECKPOINTS), job.train.keep_last, job.train.keep_best, trainer.family.headline[1], writers
        )
        facts = {"steps": job.train.steps, "family": job.family, "workers": outlet.world.size}
        show = outlet.show
        trainer.outlet = outlet = replace(outlet, record=record, show=lambda row: show(row | facts | {"checkpoint": checkpoints.committed}))
        with closing(checkpoints):  # whatever happens, the last save gets onto storage
            steps = _run(job, trainer, checkpoints, data, held_out)
    if steps.stop < job.last_step:
        return False
    scores = trainer.evaluate(held_out, None) if held_out is not None and job.until is None else {}
    if outlet.world.rank == 0:
        rest = {"rests_at": job.until} if job.until is not None else {}
        record.finish({"scores": scores, "seconds": time.perf_counter() - started, "steps_this_start": len(steps)} | rest)
    if job.until is None:
        _publish(job, trainer)  # last: a run with a model has its record too
    outlet.world.barrier()
    return True


def _run(job: TrainingJob, trainer: Trainer, checkpoints: CheckpointFolder, data: Dataset, held_out: Dataset | None) -> range:
    """Trains from the last checkpoint to its last step, leaves the weights that are to be published, and returns the steps it took."""
    _resume(job, trainer, checkpoints)
    outlet, first = trainer.outlet, trainer.step
    outlet.world.barrier()  # every worker has read the checkpoint before rank 0 may replace it
    if outlet.world.rank == 0 and outlet.record is not None:
        outlet.record.start(first, _parameters(job, trainer, outlet))
    train(trainer, data, held_out, checkpoints, job.family, job.until)
    outlet.world.barrier()
    taken = range(first, trainer.step)
    whole = job.until is None and taken.stop == job.last_step
    best = checkpoints.best(trainer.spans) if job.train.publish == "best" and whole else None
    if best is not None:
        trainer.restore(best)
    return taken


def _publish(job: TrainingJob, trainer: Trainer) -> None:
    world, rows = trainer.world, trainer.rows()
    if world.rank == 0 or rows:
        kept = {name: job.children[name] for name in job.children_kept}
        with trainer.average.in_place() if trainer.average else nullcontext():
            weights = {child: RowSlice(part.first, part.last, _weights(part)) for child, part in rows.items()}
            save_model(trainer.family, storage.join(job.run, "model"), kept, weights, world if rows else None)


def _weights(part: RowSlice) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in part.tensors.items() if name.startswith("model/")}


def _require_same_job(job: TrainingJob, record: RunRecord) -> None:
    known = record.info().get("identity")
    if known is not None and known != job.identity():
        raise UserError(f"run folder {job.run} belongs to another job ({known}, this is {job.identity()}); choose another folder")


def _require_same_model(job: TrainingJob, record: RunRecord, family: Family) -> None:
    """A run goes on with the shapes and classes that it began with."""
    found = family.config.to_json()
    known: dict[str, Any] = record.info().get("config", found)
    for name in found:
        if known.get(name) != found[name]:
            raise UserError(
                f"run folder {job.run} began with {name}={known.get(name)}, the data set {job.data} gives {found[name]}; "
                f"give the data that it began with, or choose another folder"
            )


def _resume(job: TrainingJob, trainer: Trainer, checkpoints: CheckpointFolder) -> None:
    checkpoint = checkpoints.latest(trainer.spans)
    if checkpoint is None:
        if job.origin is not None:
            begin_at(job.origin, job.family, trainer)
        return
    if checkpoint.family != job.family:
        raise UserError(
            f"{job.run} holds checkpoints of family {checkpoint.family!r}, the job trains {job.family!r}; choose another folder"
        )
    if checkpoint.step > job.last_step:
        raise UserError(f"{job.run} is at step {checkpoint.step} already, beyond until={job.until}; give a later step or another folder")
    trainer.restore(checkpoint)


def _parameters(job: TrainingJob, trainer: Trainer, outlet: Outlet) -> dict[str, Any]:
    return {
        "identity": job.identity(),
        "job": job.to_json(),
        "config": trainer.family.config.to_json(),
        "workers": outlet.world.size,
        "device": str(outlet.device),
        "threads_per_worker": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in trainer.family.parameters()),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "steps": job.train.steps,
    }
