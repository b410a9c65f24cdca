"""A family of points for tests of what surrounds families: a Gaussian of each class, whose means and spreads are learnt."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from components.config import Config
from components.families.contract import Batch, DataShape, Family, OptimizerConfig, Phase, PhaseOutput, Proof
from components.families.images import LABEL, classes_in_turn
from components.families.points import POINT, point_width
from components.training.context import Context
from components.training.randomness import Draws


class CloudConfig(Config):
    width: int = Field(2, gt=0)
    num_classes: int = Field(1, gt=0)


class CloudSampler(Config):
    label: int | None = None
    batch_size: int = Field(64, gt=0)


class Cloud(Family):
    Config = CloudConfig
    Sampler = CloudSampler
    config: CloudConfig
    phases = (Phase("cloud", ("gaussians",)),)
    averaged = ("gaussians",)
    headline = ("nats", "min")
    proof = Proof("points", {}, OptimizerConfig(lr=0.05), steps=60, improves=0.6)

    def __init__(self, config: CloudConfig) -> None:
        super().__init__(config)
        self.gaussians = nn.Embedding(config.num_classes, 2 * config.width)

    @classmethod
    def fit(cls, config: Config, data: DataShape) -> Config:
        return cls.Config(width=point_width(data), num_classes=max(1, len(data.class_names)))

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return (self.config.width,)

    def nats(self, batch: Batch) -> Tensor:
        labels = batch.get(LABEL, torch.zeros(len(batch[POINT]), dtype=torch.int64))
        mean, log_spread = self.gaussians(labels).chunk(2, 1)
        return (((batch[POINT] - mean) / log_spread.exp()).square() / 2 + log_spread + math.log(2 * math.pi) / 2).sum(1)

    def loss(self, phase: str, batch: Batch, ctx: Context) -> PhaseOutput:
        return PhaseOutput(self.nats(batch).mean())

    def evaluate(self, batch: Batch, ctx: Context) -> dict[str, tuple[Tensor, Tensor]]:
        return {"nats": (self.nats(batch).double().sum(), torch.tensor(len(batch[POINT])))}

    @torch.inference_mode()
    def sample(self, count: int, seed: int, sampler: Config, first: int = 0) -> Tensor:
        labels = self.sample_labels(count, sampler, first)
        mean, log_spread = self.gaussians(labels).chunk(2, 1)
        noise = Draws(seed, 0, "sample", first, torch.device("cpu")).normal("points", (count, self.config.width))
        return mean + log_spread.exp() * noise

    def sample_labels(self, count: int, sampler: Config, first: int = 0) -> Tensor:
        assert isinstance(sampler, CloudSampler)
        labels = classes_in_turn(count, first, self.config.num_classes, sampler.label)
        assert labels is not None
        return labels

    def evaluations(self, sampler: Config) -> int:
        return 1
