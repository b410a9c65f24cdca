"""Beginning a run where another one stood, with other values of those that a run can change on the way (population based training does).

    resume_from: runs/a/checkpoints/step_00000100

in a `TrainingJob` of another run folder. The other run stays as it is, and its record tells what may differ: nothing but `mutable_keys`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from components import storage
from components.config import differences, fingerprint
from components.errors import UserError
from components.families.contract import mutable_keys
from components.training.checkpoint import COMMIT, checkpoint_name, read_checkpoint
from components.training.loop import Trainer
from components.training.record import RunRecord

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Origin:
    """Another run, and the step at which it left a checkpoint."""

    run: str
    step: int

    @classmethod
    def parse(cls, url: str) -> Origin:
        """Of a checkpoint's folder; raises UserError for what is not the name of one."""
        run, _, name = url.rstrip("/").rpartition(f"/{CHECKPOINTS}/")
        digits = name.removeprefix("step_")
        if not run or not digits.isdecimal() or name != checkpoint_name(int(digits)):
            raise UserError(f"resume_from={url!r} is not the folder of a checkpoint; give RUN/{CHECKPOINTS}/{checkpoint_name(100)}")
        return cls(run, int(digits))

    @property
    def url(self) -> str:
        return storage.join(self.run, CHECKPOINTS, checkpoint_name(self.step))

    def info(self) -> dict[str, Any]:
        """The other run's record; raises UserError when there is none."""
        info = RunRecord(self.run).info()
        if "job" not in info:
            raise UserError(f"resume_from={self.url}: {self.run} holds no run; give the checkpoint of one")
        return info

    def identity(self) -> str:
        """What decided the weights of this checkpoint, wherever it lies."""
        return fingerprint([self.info()["identity"], self.step])


def begin_at(origin: Origin, family: str, trainer: Trainer) -> None:
    """Takes weights, optimizer state and step of the origin; values of the optimizer and of the family stay the trainer's.

    Raises UserError for an origin without that checkpoint, and when anything differs that cannot change on the way.
    """
    info = origin.info()
    if info["job"]["family"] != family:
        raise UserError(
            f"resume_from={origin.url} is of family {info['job']['family']!r}, the job trains {family!r}; give one of its family"
        )
    known = {"model": info["config"], "train": info["job"]["train"]}
    allowed = mutable_keys(type(trainer.family))
    for key, value in differences(known, {"model": trainer.family.config.to_json(), "train": trainer.config.to_json()}).items():
        if key not in allowed:
            raise UserError(f"resume_from={origin.url}: {key} was another than {value} there; only {', '.join(allowed)} may differ")
    if not storage.exists(storage.join(origin.url, COMMIT)):
        raise UserError(f"resume_from={origin.url}: no complete checkpoint is there; give one that the run kept")
    trainer.restore(read_checkpoint(origin.url, trainer.spans))
