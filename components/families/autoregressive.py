"""Autoregressive models of pictures: exact likelihood, one pixel at a time, and pictures drawn or completed in the same order.

Maximum likelihood of p(x) = prod_k p(x_k | x_1 ... x_{k-1}). The network says every pixel's distribution given the earlier ones in its
order: FVSBN, NADE and MADE for binary pixels, where a pixel is ink above `threshold`; PixelCNN and Gated PixelCNN for grey values and
colours too.
`python -m pipelines.cli train autoregressive DATA model.network.kind=nade`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from components.config import Config
from components.config import Config as AnyConfig
from components.errors import UserError
from components.families.contract import Batch, DataShape, Family, OptimizerConfig, Phase, PhaseOutput, Proof
from components.families.images import IMAGE, LABEL, classes_in_turn, image_shape, known_labels, require_below
from components.families.pixel_heads import HeadName, head_of
from components.networks.autoregressive import AutoregressiveNetwork, OrderedConfig
from components.networks.fvsbn import FVSBNConfig
from components.networks.made import MADE, MADEConfig
from components.networks.nade import NADEConfig
from components.networks.pixelcnn import GatedPixelCNNConfig, PixelCNNConfig
from components.training.context import Context
from components.training.randomness import Draws

THRESHOLD = 127
BEGIN_ROWS = 2048  # from which the first biases are taken

NetworkConfig = FVSBNConfig | NADEConfig | MADEConfig | PixelCNNConfig | GatedPixelCNNConfig


class AutoregressiveConfig(Config):
    """Network and head. The data decides `image_channels`, `image_size` and `num_classes`."""

    image_channels: int = Field(1, gt=0)
    image_size: tuple[int, int] = Field((28, 28), description="height and width in pixels")
    num_classes: int = Field(0, ge=0, description="0: no classes")
    conditional: bool = Field(False, description="learn what each class looks like: likelihoods are then given the class")
    network: Annotated[NetworkConfig, Field(discriminator="kind")] = MADEConfig()
    head: HeadName = Field("binary", description="what is said of a pixel: ink or none, or one of 256 grey values")
    threshold: int | None = Field(
        THRESHOLD, ge=0, lt=255, description="binary: a pixel above it is ink; null: the data holds 0 and 255, or 0 and 1, alone"
    )

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        if self.head != "binary" and self.network.kind in ("fvsbn", "nade", "made"):
            raise ValueError(f"network.kind={self.network.kind} is for head=binary, not {self.head}; set head=binary or another kind")
        if self.head != "binary" and self.threshold != THRESHOLD:
            raise ValueError(f"threshold={self.threshold} has no effect with head={self.head}; leave it out")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.image_channels, *self.image_size


class AutoregressiveSampler(Config):
    """Which pictures are drawn."""

    label: int | None = Field(None, ge=0, description="class of every sample; None: each class in turn")
    batch_size: int = Field(256, gt=0, description="rows drawn at once; samples do not depend on it")


class Autoregressive(Family):
    """One network of any kind under one head."""

    Config = AutoregressiveConfig
    Sampler = AutoregressiveSampler
    config: AutoregressiveConfig
    network: AutoregressiveNetwork
    phases = (Phase("pixels", ("network",)),)
    averaged = ("network",)
    headline = ("nats", "min")
    surveyed_rows = BEGIN_ROWS
    proof = Proof(
        data="images",
        model={"network": {"kind": "made", "hidden": (64,)}},
        optimizer=OptimizerConfig(lr=1e-2),
        steps=40,
        improves=0.6,
    )
    proofs: ClassVar[Mapping[str, Proof]] = {
        "fvsbn": replace(proof, model={"network": {"kind": "fvsbn", "order": "random"}}),
        "nade": replace(proof, model={"network": {"kind": "nade", "hidden": 16}, "conditional": True}, optimizer=OptimizerConfig(lr=3e-2)),
        "made_of_masks": replace(
            proof, model={"network": {"kind": "made", "hidden": (48, 32), "masks": 3, "order_agnostic": True}}, improves=0.8
        ),
        "pixelcnn": replace(
            proof,
            model={"network": {"kind": "pixelcnn", "width": 4, "blocks": 2, "first_kernel": 5, "hidden": 8}, "head": "logistic"},
            optimizer=OptimizerConfig(lr=3e-2),
            improves=0.9,
        ),
        "gated_pixelcnn": replace(
            proof,
            model={"network": {"kind": "gated_pixelcnn", "width": 4, "blocks": 2, "first_kernel": 5, "hidden": 8}, "conditional": True},
            optimizer=OptimizerConfig(lr=3e-2),
        ),
    }

    def __init__(self, config: AutoregressiveConfig) -> None:
        super().__init__(config)
        self.head = head_of(config.head, config.threshold)
        self.network = config.network.build(config.shape, config.num_classes, self.head.parameters)
        self.recomputed = tuple(f"network.{pattern}" for pattern in self.network.recomputed)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        return self.config.shape

    @classmethod
    def fit(cls, config: AnyConfig, data: DataShape) -> AnyConfig:
        """Raises UserError for pictures that the head or the network's order cannot take, and where classes are asked for but unknown."""
        assert isinstance(config, AutoregressiveConfig)
        channels, height, width = image_shape(data)
        if config.head == "binary" and channels != 1:
            raise UserError(
                f"the pictures have {channels} channels, and head=binary means one, ink or none; "
                f"prepare them with channels=1, or choose another head"
            )
        if config.conditional and LABEL not in data.columns:
            raise UserError(f"conditional=true needs a column {LABEL!r}, the data set has {', '.join(data.columns)}; set conditional=false")
        if config.conditional and not data.class_names:
            raise UserError("conditional=true needs the names of the classes, which the data set does not have; set conditional=false")
        if isinstance(config.network, OrderedConfig):
            config.network.require_size((channels, height, width))
        found = {
            "image_channels": channels,
            "image_size": (height, width),
            "num_classes": len(data.class_names) if config.conditional else 0,
        }
        return cls.Config.parse(config.to_json() | found, f"pictures of {height} x {width} pixels")

    @torch.no_grad()
    def begin(self, rows: Batch) -> None:
        """Starts from the distribution of independent pixels, as the first rows show it; raises UserError when none of them has ink."""
        values = self.head.values(rows[IMAGE].cpu())  # where they are looked at
        if self.config.head == "binary" and not values.any():
            raise UserError(
                f"no pixel of the first {len(values)} pictures is above threshold={self.config.threshold}, the largest is "
                f"{int(rows[IMAGE].max())}; lower model.threshold, or for pictures of 0 and 1 set it to null"
            )
        self.network.begin(self.head.independent(values))

    def loss(self, phase: str, batch: Batch, ctx: Context) -> PhaseOutput:
        x, labels = self.head.values(batch[IMAGE]), self._labels(batch)
        parameters = self.network(x, labels, ctx.random if self.training else None)
        nats = self.head.nats(parameters, x).sum() / len(x)
        return PhaseOutput(nats, {"nats": nats.detach()})

    def evaluate(self, batch: Batch, ctx: Context) -> dict[str, tuple[Tensor, Tensor]]:
        """Nats a picture; of 8-bit pictures in bits a number too. With several masks, of the mixture of all of them beside."""
        x, labels = self.head.values(batch[IMAGE]), self._labels(batch)
        nats, rows = self.nats(x, labels), torch.tensor(len(x))
        scores = {"nats": (nats.sum(), rows)}
        if self.head.eight_bit:
            scores["bits_per_dim"] = (nats.sum() / math.log(2), rows * x[0].numel())
        if isinstance(self.network, MADE) and self.network.masks > 1:
            scores["nats_of_all_masks"] = (self._nats_of_all_masks(self.network, x, labels).sum(), rows)
        return scores

    def nats(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """-log p (B,) float64 of pictures as the head sees them, (B, C, H, W), given their classes where the model knows some."""
        return self.head.nats(self.network(x, labels), x).double().flatten(1).sum(1)

    def _nats_of_all_masks(self, network: MADE, x: Tensor, labels: Tensor | None) -> Tensor:
        """Of the mean of the masks' probabilities; that of their logits would be no likelihood, since their orders may differ."""
        logits = (network.parameters_of_mask(x, labels, mask) for mask in range(network.masks))
        each = torch.stack([self.head.nats(part, x).double().flatten(1).sum(1) for part in logits])
        return math.log(network.masks) - torch.logsumexp(-each, 0)

    def bits_per_dim(self, images: Tensor, ctx: Context, labels: Tensor | None = None) -> Tensor:
        """Exact, of the 8-bit numbers as they are: (B,) float64. Raises UserError for head=binary, which knows ink alone."""
        if not self.head.eight_bit:
            raise UserError("head=binary knows ink alone, not 8-bit numbers; raymill evaluate without --likelihood gives its nats")
        return self.nats(self.head.values(images), labels) / (images[0].numel() * math.log(2))

    def sample(self, count: int, seed: int, sampler: AnyConfig, first: int = 0) -> Tensor:
        """Pictures (count, C, H, W) in [0, 1]; row i depends on the seed, its number and the sampler only.

        Raises UserError for a label that this model does not have.
        """
        return self._drawn(count, seed, sampler, first, self.sample_labels(count, sampler, first), None, None)

    def complete(
        self, images: Tensor, known: Tensor, seed: int, sampler: AnyConfig, labels: Tensor | None = None, first: int = 0
    ) -> Tensor:
        """Pictures (B, C, H, W) in [0, 1]: `images` uint8 (B, C, H, W) where `known`, bool (C, H, W) or (H, W), and the rest drawn.

        The rest is drawn from p(rest | known) where all that is known comes first in the network's order, such as upper rows; else each
        pixel heeds only the pixels before it. Classes are `labels` (B,), else as for samples. Raises UserError for images, a
        mask or labels of another shape, and for classes that the model does not know.
        """
        shape = self.sample_shape
        if tuple(known.shape) not in (shape, shape[1:]) or known.dtype != torch.bool:
            raise UserError(f"known is {known.dtype} {tuple(known.shape)}, expected torch.bool of shape {shape} or {shape[1:]}")
        if tuple(images.shape[1:]) != shape or images.dtype != torch.uint8:
            raise UserError(f"images are {images.dtype} {tuple(images.shape)}, expected torch.uint8 of shape (count, {shape})")
        if labels is not None and not self.config.num_classes:
            raise UserError("labels have no effect: the model was trained without classes; leave them out")
        if labels is None:
            labels = self.sample_labels(len(images), sampler, first)
        elif len(labels) != len(images):
            raise UserError(f"{len(labels)} labels for {len(images)} images; give one for each")
        else:
            require_below(labels, self.config.num_classes, LABEL, "num_classes")
        given = self.head.values(images.to(self._device))
        return self._drawn(len(images), seed, sampler, first, labels, given, known.to(self._device).expand(shape))

    def _drawn(
        self, count: int, seed: int, sampler: AnyConfig, first: int, labels: Tensor | None, given: Tensor | None, known: Tensor | None
    ) -> Tensor:
        rows_at_once, shape = self.settled(sampler).batch_size, self.sample_shape
        uniform = Draws(seed, 0, "sample", first, self._device).uniform("pixels", (count, math.prod(shape)))
        pictures = torch.empty(count, *shape, device=self._device)
        for low in range(0, count, rows_at_once):
            rows = slice(low, low + rows_at_once)
            classes, there = (None if each is None else each[rows].to(self._device) for each in (labels, given))
            pictures[rows] = self.head.pictures(self.network.draw(uniform[rows], classes, there, known, self.head.pick))
        return pictures

    def sample_labels(self, count: int, sampler: AnyConfig, first: int = 0) -> Tensor | None:
        """Each class in turn, or the one that `sampler` names."""
        return classes_in_turn(count, first, self.config.num_classes, self.settled(sampler).label)

    def evaluations(self, sampler: AnyConfig) -> int:
        """Numbers of a picture, each of which waits for those before it; networks keep what they can from one to the next."""
        return math.prod(self.sample_shape)

    def settled(self, sampler: AnyConfig) -> AutoregressiveSampler:
        """The sampler as it is. Raises UserError for a label that this model does not have."""
        assert isinstance(sampler, AutoregressiveSampler)
        known = self.config.num_classes
        if sampler.label is not None and not known:
            raise UserError(f"sampler.label={sampler.label}: the model was trained without classes; leave label out")
        if sampler.label is not None and sampler.label >= known:
            raise UserError(f"sampler.label={sampler.label}: the model knows {known} classes; choose 0 to {known - 1} or none")
        return sampler

    def _labels(self, batch: Batch) -> Tensor | None:
        return known_labels(batch, self.config.num_classes)

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device
