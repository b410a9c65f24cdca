"""One setting of a sampler after another on a trained model: the model, the judge and the real pictures are loaded once a process.

Nothing is trained, and a setting is one call without results on the way: there is nothing to stop, and nothing to go on from.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import safetensors.torch
import torch
from pydantic import Field
from torch import Tensor

from components.config import Config
from components.errors import UserError
from components.evaluation.generation import Reference, score_samples
from components.evaluation.sampling import one_thread
from components.families.classifier import Classifier
from components.families.contract import Family
from components.families.model_folder import load_model

SHOWN = 10  # pictures kept of each setting


class SamplingJob(Config):
    """What is the same for all settings."""

    model: str  # model folders
    judge: str
    samples: int
    seed: int


class SamplingOutcome(Config):
    """What a setting came to; it failed when the model cannot draw so, or its samples left the finite numbers."""

    state: Literal["finished", "failed"]
    scores: dict[str, float] = Field(default_factory=dict)  # fd, kid, label_entropy, samples and evaluations, a sample
    seconds: float = 0.0  # of drawing
    problem: str = ""
    pictures: str = ""  # the first samples, uint8 (N, C, H, W): a safetensors file in base64

    def images(self) -> Tensor:
        """The first samples (N, C, H, W) uint8."""
        return safetensors.torch.load(base64.b64decode(self.pictures))["images"]


@dataclass(frozen=True)
class SamplerTrial:
    """A setting to try: its number in the sweep and all options of the sampler."""

    number: int
    sampler: Mapping[str, Any]


class SamplerGuide(Protocol):
    """Decides what is tried. Numbers are those of `SamplerTrial`."""

    def next(self) -> SamplerTrial | None:
        """A setting to try now; None when there is none until another has ended, and at the end."""

    def ends(self, number: int, outcome: SamplingOutcome) -> None:
        """Takes what a setting came to."""


class Bench:
    """A process's own copy of model, judge and real pictures."""

    def __init__(self, job: SamplingJob, model: Family, judge: Classifier, reference: Reference) -> None:
        self.job, self.model, self.judge, self.reference = job, model, judge, reference

    @classmethod
    def load(cls, job: SamplingJob, reference: Reference, device: torch.device) -> Bench:
        """Raises UserError as `load_model` does."""
        judge = load_model(job.judge, expect="classifier")
        assert isinstance(judge, Classifier)
        return cls(job, load_model(job.model).to(device), judge.to(device), reference)

    def run(self, sampler: Mapping[str, Any]) -> SamplingOutcome:
        """Draws, judges and scores with these options of the sampler, by one thread: the same bits here and on a worker."""
        assert self.model.Sampler is not None, "checked before"
        try:
            options = self.model.Sampler.parse(sampler, "trial")
            with one_thread():
                made = score_samples(self.model, self.judge, self.reference, self.job.samples, self.job.seed, options, SHOWN)
        except (UserError, torch.OutOfMemoryError) as error:
            return SamplingOutcome(state="failed", problem=" ".join(str(error).split()))
        pictures = base64.b64encode(safetensors.torch.save({"images": made.pictures.contiguous()})).decode()
        scores = made.scores | {"evaluations": made.evaluations}
        return SamplingOutcome(state="finished", scores=scores, seconds=made.seconds, pictures=pictures)


def run_here(bench: Bench, guide: SamplerGuide) -> None:
    """Tries what `guide` has in this process, one setting after another."""
    while (trial := guide.next()) is not None:
        guide.ends(trial.number, bench.run(trial.sampler))
