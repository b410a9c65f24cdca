"""A small convolutional classifier: the judge of generated pictures (label, Fréchet distance, KID) and the feature net of VQGAN."""

from __future__ import annotations

from typing import Self

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from components.config import Config
from components.config import Config as AnyConfig
from components.errors import UserError
from components.families.contract import Batch, DataShape, Family, OptimizerConfig, Phase, PhaseOutput, Proof
from components.families.images import IMAGE, LABEL, image_shape, pixels
from components.functional.augment import flip, shift
from components.networks.convolution import FeatureStages
from components.training.context import Context


class ClassifierConfig(Config):
    """Shapes and augmentation."""

    image_channels: int = Field(1, gt=0)
    image_size: tuple[int, int] = Field((28, 28), description="height and width in pixels")
    num_classes: int = Field(10, gt=1)
    widths: tuple[int, ...] = Field((32, 64), min_length=1, description="channels after each halving, fine to coarse")
    feature_dim: int = Field(128, gt=0, description="of the penultimate layer, after its ReLU")
    dropout: float = Field(0.0, ge=0, lt=1, description="of the feature vector, while training")
    flip: bool = Field(False, description="mirror half of the training pictures")
    shift: int = Field(0, ge=0, description="move training pictures by up to so many pixels")

    @model_validator(mode="after")
    def _image_is_large_enough(self) -> Self:
        if min(self.image_size) < 2 ** len(self.widths):
            raise ValueError(f"image_size={self.image_size} cannot be halved {len(self.widths)} times; give fewer widths")
        return self


class Classifier(Family):
    """Feature stages, a feature vector and a linear head."""

    Config = ClassifierConfig
    config: ClassifierConfig
    averaged = ("stages", "hidden", "head")
    recomputed = ("stages.blocks.*",)
    mutable = ("dropout",)
    headline = ("accuracy", "max")
    proof = Proof("images", {"widths": (8, 16), "feature_dim": 16}, OptimizerConfig(lr=1e-2), steps=60, improves=3.0)

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__(config)
        c = config
        size = 2 ** len(c.widths)
        places = (c.image_size[0] // size) * (c.image_size[1] // size)
        self.stages = FeatureStages(c.image_channels, c.widths)
        self.hidden = nn.Linear(c.widths[-1] * places, c.feature_dim)
        self.head = nn.Linear(c.feature_dim, c.num_classes)
        self.phases = (Phase("classifier", ("stages", "hidden", "head")),)

    @classmethod
    def fit(cls, config: AnyConfig, data: DataShape) -> AnyConfig:
        channels, height, width = image_shape(data)
        if LABEL not in data.columns or not data.class_names:
            raise UserError(f"the data set has columns {sorted(data.columns)} and no class names; a classifier needs labelled pictures")
        found = {"image_channels": channels, "image_size": (height, width), "num_classes": len(data.class_names)}
        return type(config).parse(config.to_json() | found, f"pictures of {height} x {width} pixels")

    def maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps of images (B, C, H, W) in [0, 1], after each stage's ReLU, fine to coarse."""
        return self.stages(images)

    def features(self, images: Tensor) -> Tensor:
        """Feature vectors (B, feature_dim), not negative, of images (B, C, H, W) in [0, 1]."""
        return self.hidden(self.maps(images)[-1].flatten(1)).relu()

    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, C, H, W) in [0, 1]."""
        return self.head(self.features(images)).float()

    def loss(self, phase: str, batch: Batch, ctx: Context) -> PhaseOutput:
        features = self.features(pixels({IMAGE: self._augmented(batch[IMAGE], ctx)}))
        if self.config.dropout:
            kept = ctx.random.uniform("dropout", tuple(features.shape)) >= self.config.dropout
            features = features * kept / (1 - self.config.dropout)
        logits = self.head(features).float()
        loss = F.cross_entropy(logits, batch[LABEL])
        return PhaseOutput(loss, {"accuracy": (logits.argmax(1) == batch[LABEL]).float().mean()})

    def evaluate(self, batch: Batch, ctx: Context) -> dict[str, tuple[Tensor, Tensor]]:
        logits, labels = self.logits(pixels(batch)), batch[LABEL]
        count = labels.new_tensor(labels.numel())
        return {
            "accuracy": ((logits.argmax(1) == labels).sum(), count),
            "nll": (F.cross_entropy(logits.double(), labels, reduction="sum"), count),  # nats
        }

    def _augmented(self, images: Tensor, ctx: Context) -> Tensor:
        rows = images.shape[0]
        if self.config.flip:
            images = flip(images, ctx.random.integers("flip", 2, (rows,)) == 1)
        if self.config.shift:
            images = shift(images, ctx.random.integers("shift", 2 * self.config.shift + 1, (rows, 2)), self.config.shift)
        return images
