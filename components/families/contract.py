"""The contract that every model family keeps, so that one loop trains them all.

A family is a `torch.nn.Module` built from its config alone. Its children are trained in *phases*; `loss` is pure; `begin`, before the first
step, and `after_step` are the only places where buffers change. To add a family: one file with a `Config` and a `Family`, one line in
`components/families/catalogue.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from components.config import Config
from components.config import Config as AnyConfig
from components.data.columns import Column as Column
from components.data.columns import DataShape as DataShape
from components.errors import UserError
from components.report.findings import Chart
from components.training.context import Context

logger = logging.getLogger(__name__)

Batch = Mapping[str, Tensor]  # column name -> (B, ...), as stored: images are uint8 (B, C, H, W)


class OptimizerConfig(Config):
    """One phase's optimizer. Weight decay acts on matrices and kernels only, never on biases, norms, embeddings of rank below 2."""

    name: Literal["adamw", "sgd", "rmsprop"] = "adamw"
    lr: float = Field(3e-4, gt=0, description="peak learning rate")
    betas: tuple[float, float] = Field((0.9, 0.95), description="adamw only")
    eps: float = Field(1e-8, gt=0, description="adamw and rmsprop")
    momentum: float = Field(0.0, ge=0, lt=1, description="sgd only")
    weight_decay: float = Field(0.0, ge=0, description="with sgd and rmsprop a part of the gradient")

    mutable: ClassVar[tuple[str, ...]] = ("lr", "weight_decay", "momentum")  # what a run can change on the way
    idle: ClassVar[Mapping[str, tuple[str, ...]]] = {"adamw": ("momentum",), "sgd": ("betas", "eps"), "rmsprop": ("betas", "momentum")}

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        for option in self.idle[self.name]:
            given, default = getattr(self, option), type(self).model_fields[option].default
            if given != default:
                raise ValueError(f"{option}={given} has no effect with name={self.name}; leave it out, which is {option}={default}")
        return self


@dataclass(frozen=True)
class Phase:
    """One optimizer's turn: the children it trains, on every `every`-th step from step `start` on."""

    name: str
    trains: tuple[str, ...]
    every: int = 1
    start: int = 0
    optimizer: OptimizerConfig | None = None  # None: the run's

    def active(self, step: int) -> bool:
        return step >= self.start and (step - self.start) % self.every == 0


@dataclass(frozen=True)
class PhaseOutput:
    """What `loss` returns: a scalar and detached scalars to show, each a mean over the call's rows, and summable statistics.

    With `gathered_rows` they are means over the rows of this call on all workers, so many, equal on each (a class-sharded head).
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    stats: dict[str, Tensor] = field(default_factory=dict)  # summed over micro-batches and workers, then given to after_step
    gathered_rows: int | None = None


@dataclass(frozen=True)
class Proof:
    """The smallest setting in which a family shows the nine promises of the house: a tiny model on real data that learns in seconds."""

    # Small grey images, grids of codes, images of which some classes are held out, or points of the plane.
    data: Literal["images", "codes", "identities", "points"]
    model: dict[str, object]  # config values
    optimizer: OptimizerConfig
    steps: int  # in which the held-out headline score improves ...
    improves: float  # ... to at most this fraction of its first value ("min"), or to at least this multiple ("max")


class Family(nn.Module):
    """Base of every model family; `design` notes: one child per network, no training state outside parameters and buffers."""

    Config: ClassVar[type[AnyConfig]]
    Sampler: ClassVar[type[AnyConfig] | None] = None  # the options of `sample`, where the family generates
    phases: tuple[Phase, ...]
    sharded: tuple[str, ...] = ()  # children cut by rows over the workers (`components/networks/class_rows.py`): never averaged
    averaged: tuple[str, ...] = ()  # children that keep an exponential moving average of their weights when the run asks for it
    recomputed: tuple[str, ...] = ()  # fnmatch patterns of module names for activation checkpointing
    kept: ClassVar[tuple[str, ...]] = ()  # adopted models that its model folder carries, since it is of no use without them
    mutable: ClassVar[tuple[str, ...]] = ()  # options that only change the loss, so that a run can change them on the way
    asked: tuple[str, ...] = ()  # submodules of which a call is an evaluation, where they are other than what the phases train
    default_sampler: AnyConfig | None = None  # that was chosen for this trained model; it lies in its folder (`model_folder.py`)
    surveyed_rows: int = 0  # training rows that `begin` takes before the first step
    proof: ClassVar[Proof]
    proofs: ClassVar[Mapping[str, Proof]] = {}  # further ones by name, where a family has several kinds of networks or data
    headline: ClassVar[tuple[str, Literal["min", "max"]]]  # the score of `evaluate` that says which checkpoint is best

    def __init__(self, config: AnyConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one sample, for families that generate."""
        raise NotImplementedError

    def require_fitting(self, data: DataShape, url: str, split: str | None = None) -> None:
        """Raises UserError when the trained model cannot be scored on data of this shape, or (when given) on this split of it."""
        fitted = self.fit(self.config, data).to_json()
        for name, value in self.config.to_json().items():
            if fitted[name] != value:
                raise UserError(
                    f"the model has {name}={value}, the data set {url} needs {fitted[name]}; evaluate on data like it learnt from"
                )

    @classmethod
    def fit(cls, config: AnyConfig, data: DataShape) -> AnyConfig:
        """The config with what the data decides (channels, classes) filled in; raises UserError when they cannot go together."""
        raise NotImplementedError

    def begin(self, rows: Batch) -> None:
        """Takes the first `surveyed_rows` training rows, all of them on every worker, once before the first step.

        For an initialisation that depends on data. It runs without gradients; afterwards every worker has what rank 0 made of them.
        """

    def loss(self, phase: str, batch: Batch, ctx: Context) -> PhaseOutput:
        """The phase's objective on this call's rows: no backward, no update, no buffer change, no global randomness."""
        raise NotImplementedError

    def after_step(self, phase: str, stats: dict[str, Tensor], ctx: Context) -> None:
        """What follows an optimizer step, once, from statistics already summed over all workers; without gradients.

        Updates of buffers, and projections of the phase's parameters such as weight clipping. Weights are averaged after it.
        """

    def evaluate(self, batch: Batch, ctx: Context) -> dict[str, tuple[Tensor, Tensor]]:
        """Scores as name -> (sum, count), so that halves add up to the whole; vectors of equal length are allowed."""
        raise NotImplementedError

    def describe(self, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """What scores that are no sums need of every row (embeddings): name -> (B, ...); `finish` gets those of the whole data set."""
        return {}

    def finish(self, totals: Mapping[str, tuple[Tensor, Tensor]], rows: Mapping[str, Tensor]) -> dict[str, float | list[float]]:
        """The scores of a whole data set from its summed (sum, count) pairs: their quotients; override to derive others."""
        return {name: (total / count).tolist() for name, (total, count) in totals.items()}

    @classmethod
    def charts(cls, scores: Mapping[str, float | list[float]]) -> tuple[Chart, ...]:
        """What the report draws of the scores that `finish` gave, beside their numbers."""
        return ()

    @classmethod
    def charts_over_steps(cls, rows: Sequence[Mapping[str, Any]]) -> tuple[Chart, ...]:
        """What the report draws of the run's record (`components/training/record.py`), beside a curve for each metric."""
        return ()

    def sample(self, count: int, seed: int, sampler: AnyConfig, first: int = 0) -> Tensor:
        """Rows `first`, a multiple of LANE, to `first` + `count` of the endless table of samples that `seed` and `sampler` name.

        A row does not depend on which others are asked for. Families that do not generate raise UserError.
        """
        raise UserError(f"{type(self).__name__} does not generate samples; choose a generative family")

    def sample_labels(self, count: int, sampler: AnyConfig, first: int = 0) -> Tensor | None:
        """The classes (count,) int64 that those rows are drawn for; None where the model knows none."""
        raise UserError(f"{type(self).__name__} does not generate samples; choose a generative family")

    def evaluations(self, sampler: AnyConfig) -> int | None:
        """How often the network runs for one sample, twice where guidance asks for both; None where the solver decides that."""
        raise UserError(f"{type(self).__name__} does not generate samples; choose a generative family")

    def bits_per_dim(self, images: Tensor, ctx: Context, labels: Tensor | None = None) -> Tensor:
        """Bits for each number of images (B, C, H, W) uint8, given their classes (B,) where the model knows some: (B,) float64."""
        raise UserError(f"{type(self).__name__} has no likelihood of pictures; give a model that has, such as a diffusion")

    def bound_in_bits_per_dim(self, images: Tensor, ctx: Context, labels: Tensor | None = None) -> Tensor:
        """The variational bound on what 8-bit images cost, as in `bits_per_dim`, for families that are trained on one."""
        raise UserError(f"{type(self).__name__} has no variational bound; give a diffusion, or ask for the likelihood without --bound")

    def settled(self, sampler: AnyConfig) -> AnyConfig:
        """The sampler with nothing left open; raises UserError when an option of it does not fit this model."""
        return sampler

    def sample_pairs(self, count: int, seed: int, sampler: AnyConfig, first: int = 0) -> tuple[Tensor, Tensor]:
        """The noise (count, C, H, W) of those rows and the data that it becomes, in [-1, 1] but for errors, where one makes the other."""
        raise UserError(f"{type(self).__name__} does not make a picture of one noise, so it has no pairs; choose a denoising family")

    def adopt(self, name: str, model: Family) -> None:
        """Takes a trained model of an earlier stage (a tokenizer, a warm start); raises UserError for a name it has no use for.

        Every family takes a `start` of its own kind and begins with its weights, child by child: a child of another shape, such as the
        head for fewer classes, stays as drawn.
        """
        if name != "start":
            raise UserError(f"{type(self).__name__} has no use for a model named {name!r}; leave it out")
        if type(model) is not type(self):
            raise UserError(f"start is a {type(model).__name__}, expected a {type(self).__name__}; give the folder of one")
        mine, theirs = dict(self.named_children()), dict(model.named_children())
        fresh = [child for child in mine if child not in theirs or not _load_where_equal(mine[child], theirs[child])]
        if len(fresh) == len(mine):
            raise UserError("start does not fit: no part of it has the shapes of this model's; give both the same sizes, or leave it out")
        if fresh:
            logger.warning("%s of the start %s another shape and begins anew", " and ".join(fresh), "has" if len(fresh) == 1 else "have")

    def export(self, folder: Path) -> None:
        """Writes a form that a public library opens. Families without one raise UserError."""
        raise UserError(f"{type(self).__name__} has no export; use its model folder, which is safetensors and JSON")


def _load_where_equal(module: nn.Module, other: nn.Module) -> bool:
    """Takes the weights and buffers of `other`, unless their names or shapes differ; returns whether it did."""
    mine, theirs = ({name: value.shape for name, value in each.state_dict().items()} for each in (module, other))
    if mine == theirs:
        module.load_state_dict(other.state_dict())
    return mine == theirs


def mutable_keys(cls: type[Family]) -> tuple[str, ...]:
    """The dotted keys of a training that a run of this family can change on the way."""
    optimizer = tuple(f"train.optimizer.{name}" for name in OptimizerConfig.mutable)
    return optimizer + tuple(f"model.{name}" for name in cls.mutable)


def replicated(family: Family) -> dict[str, Tensor]:
    """The weights and buffers that are equal on every worker."""
    return {name: value for name, value in family.state_dict().items() if name.split(".")[0] not in family.sharded}
