"""Recognition by angles: embeddings whose cosine says whether two pictures show the same identity, learnt with margin-softmax losses.

A backbone makes embeddings; a head has one row of weights for each training class, cut over the workers (An et al. 2021, arXiv
2010.05222). The losses are those of `components/functional/margins.py`; test identities are none of the training ones.

    python -m pipelines.cli train recognition DATA model.loss=cosface
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from components.config import Config, fingerprint
from components.config import Config as AnyConfig
from components.errors import UserError
from components.evaluation.verification import verification_scores
from components.families.augmentation import Augmentation, augment
from components.families.contract import Batch, DataShape, Family, OptimizerConfig, Phase, PhaseOutput, Proof
from components.families.images import LABEL, image_shape, pixels
from components.functional.margins import DEFAULT_MARGINS, SCALED, Margin, annealing_weight, fixed_adacos_scale, least_scale, margin_logits
from components.functional.photometric import PHOTOMETRIC
from components.networks.class_rows import ClassRows
from components.networks.embedding import BasicBlock, Bottleneck, ResidualEmbedder
from components.networks.gabor import GaborEmbedder
from components.training.class_parallel import cross_entropy, gather_rows
from components.training.context import Context
from components.training.randomness import Draws, generator

logger = logging.getLogger(__name__)

BEND_POINTS, BEND_REACH = 5, 0.12
MANY_CLASSES = 1000
SURVEYED = 2048  # pictures that the mean of Gabor features is taken over
SCALES = (30.0, 64.0)  # below and from so many classes on
RESNETS: dict[str, tuple[tuple[int, ...], tuple[int, ...], type[BasicBlock] | type[Bottleneck]]] = {  # widths, depths, block
    "resnet18": ((64, 128, 256, 512), (2, 2, 2, 2), BasicBlock),
    "resnet50": ((256, 512, 1024, 2048), (3, 4, 6, 3), Bottleneck),
}


class Annealing(Config):
    """lambda of L-Softmax and SphereFace, which diverge without it: max(floor, start / (1 + gamma step))."""

    start: float = Field(1000.0, ge=0)
    floor: float = Field(5.0, ge=0)
    gamma: float = Field(0.12, gt=0)


class RecognitionConfig(Config):
    """Shapes, the loss and its numbers, which classes take part in a step, and the threshold of comparisons."""

    image_channels: int = Field(1, gt=0)
    image_size: tuple[int, int] = Field((112, 112), description="height and width in pixels")
    num_classes: int = Field(0, ge=0, description="training classes; 0: as many as the data has")
    classes: str = Field("", description="fingerprint of the names of the training classes; empty: the data's")
    backbone: Literal["compact", "gabor", "resnet18", "resnet50"] = Field(
        "compact", description="gabor: frozen filters and a learned linear map, for a few dozen people"
    )
    widths: tuple[int, ...] = Field((32, 64, 128), min_length=1, description="compact: channels after each halving")
    depths: tuple[int, ...] = Field((1, 1, 1), min_length=1, description="compact: blocks at each width")
    embedding_dim: int = Field(128, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1, description="of the last map, while training")
    photometric: Literal["none", "standardise", "equalise", "difference_of_gaussians", "self_quotient"] = Field(
        "none", description="takes the light out of every picture, in training and in use"
    )
    augment: Augmentation = Augmentation()
    virtual_identities: int = Field(1, ge=1, description="classes made of each: the pictures as they are, and bent in fixed ways")
    virtual_reach: float | None = Field(
        None, gt=0, lt=0.5, description="how far bending moves points, as a share of half a side; none: 0.12"
    )
    loss: Literal["softmax", "l_softmax", "sphereface", "normface", "adacos", "cosface", "arcface", "combined"] = "arcface"
    scale: float | None = Field(None, gt=0, description="s of the losses on cosines; none: 64 from 1,000 classes on, else 30")
    m1: float | None = Field(None, description="factor of the angle (L-Softmax, SphereFace, combined); none: the paper's")
    m2: float | None = Field(None, description="added to the angle, in radians (ArcFace, combined); none: the paper's")
    m3: float | None = Field(None, description="taken from the cosine (CosFace, combined); none: the paper's")
    easy_margin: bool = Field(False, description="margin only where the cosine is above 0")
    straight_through: bool = Field(False, description="the plain cosine's gradient under the margin's value")
    margin_warmup_steps: int = Field(0, ge=0, description="the margin grows linearly over so many steps")
    annealing: Annealing | None = Field(None, description="L-Softmax and SphereFace; none: the papers'")
    sample_rate: float = Field(1.0, gt=0, le=1, description="share of the other classes in a step's softmax")
    move_unsampled: bool = Field(False, description="momentum and weight decay move the rows of classes that a step left out")
    flip_test: bool = Field(True, description="an embedding is of the picture and its mirror image")
    threshold: float | None = Field(None, ge=-1, le=1, description="cosine from which two pictures count as one identity")
    false_accept_rate: float | None = Field(None, gt=0, lt=1, description="at which the threshold was chosen")

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        if len(self.widths) != len(self.depths):
            raise ValueError(f"widths={self.widths} and depths={self.depths} must have one entry for each stage")
        if self.backbone != "compact":
            for name in ("widths", "depths"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} has no effect on backbone={self.backbone}; leave it out or choose compact")
        if self.backbone == "gabor" and self.image_channels != 1:
            raise ValueError(f"backbone=gabor reads grey pictures, these have {self.image_channels} channels; prepare with channels=1")
        if self.virtual_reach is not None and self.virtual_identities == 1:
            raise ValueError(f"virtual_reach={self.virtual_reach} has no effect with virtual_identities=1; leave it out")
        if self.move_unsampled and self.sample_rate == 1:
            raise ValueError("move_unsampled has no effect with sample_rate=1; leave it out")
        if self.annealing is not None and self.loss not in ("l_softmax", "sphereface"):
            raise ValueError(f"annealing has no effect on loss={self.loss}; leave it out")
        if self.margin_warmup_steps and not DEFAULT_MARGINS[self.loss]:
            raise ValueError(f"margin_warmup_steps={self.margin_warmup_steps} has no effect on loss={self.loss}, which has no margin")
        if self.scale is not None and self.loss == "adacos":
            raise ValueError(f"scale={self.scale} has no effect on loss=adacos, which computes it; leave it out or choose normface")
        if (self.threshold is None) != (self.false_accept_rate is None):
            raise ValueError("threshold and false_accept_rate go together; set both or neither")
        margin_of(self, 0)
        return self


def margin_of(config: RecognitionConfig, step: int) -> Margin:
    """The loss with its numbers at one step; raises UserError when they are out of range or without effect."""
    given = {name: value for name in ("m1", "m2", "m3") if (value := getattr(config, name)) is not None}
    scale = config.scale
    if config.loss in SCALED and scale is None:
        classes = max(config.num_classes, 3)
        scale = fixed_adacos_scale(classes) if config.loss == "adacos" else SCALES[config.num_classes >= MANY_CLASSES]
    lambda_ = 0.0
    if config.loss in ("l_softmax", "sphereface"):
        annealing = config.annealing or Annealing()
        lambda_ = annealing_weight(step, annealing.start, annealing.floor, annealing.gamma)
    return Margin(
        config.loss,
        scale,
        **DEFAULT_MARGINS[config.loss] | given,
        easy=config.easy_margin,
        straight_through=config.straight_through,
        annealing=lambda_,
        strength=min(1.0, (step + 1) / config.margin_warmup_steps) if config.margin_warmup_steps else 1.0,
    )


class Recognition(Family):
    """Embeddings whose angles tell identities apart: margin-softmax losses over a class-sharded head."""

    Config = RecognitionConfig
    config: RecognitionConfig
    bends: Tensor
    sharded = ("head",)
    averaged = ("backbone",)
    recomputed = ("backbone.blocks.*",)
    mutable = ("scale", "m1", "m2", "m3")
    headline = ("eer", "min")
    proof = Proof(
        "identities",
        {"widths": (8, 16), "depths": (1, 1), "embedding_dim": 16, "loss": "softmax"},
        OptimizerConfig(lr=1e-2),
        steps=60,
        improves=0.8,
    )

    def __init__(self, config: RecognitionConfig) -> None:
        super().__init__(config)
        c = config
        self.backbone = _backbone(c)
        self.head = ClassRows(c.num_classes * c.virtual_identities, c.embedding_dim, bias=c.loss == "softmax")
        self.register_buffer("bends", _bends(c), persistent=False)
        self.phases = (Phase("recognition", ("backbone", "head")),)
        self.surveyed_rows = SURVEYED if c.backbone == "gabor" else 0

    @classmethod
    def fit(cls, config: AnyConfig, data: DataShape) -> AnyConfig:
        channels, height, width = image_shape(data)
        names = _training_classes(data)
        found: dict[str, Any] = {"num_classes": len(names), "classes": fingerprint(names)}
        for name, value in found.items():
            given = getattr(config, name)
            if given and given != value:
                raise UserError(
                    f"the model has {name}={given}, the data set's training classes give {value}: its head is for another list of classes; "
                    f"give the data it learnt from, or train a new model"
                )
        found |= {"image_channels": channels, "image_size": (height, width)}
        fitted = cls.Config.parse(config.to_json() | found, f"pictures of {len(names)} classes")
        assert isinstance(fitted, RecognitionConfig)
        margin, least = margin_of(fitted, 0), least_scale(len(names))
        if margin.scale is not None and margin.scale < least:
            logger.warning(
                "scale=%g is below %.1f, which %d classes need to be told apart with confidence 0.9", margin.scale, least, len(names)
            )
        return fitted

    def require_fitting(self, data: DataShape, url: str) -> None:
        found, own = image_shape(data), (self.config.image_channels, *self.config.image_size)
        if found != own:
            raise UserError(
                f"the model reads pictures of {own} (channels, height, width), those of {url} are of {found}; prepare them alike"
            )
        if LABEL not in data.columns:
            raise UserError(f"the data set {url} has no column {LABEL!r}, which says who is who; prepare it from labelled pictures")

    def embed(self, images: Tensor) -> Tensor:
        """Unit vectors (B, D) of images (B, C, H, W) in [0, 1]; with `flip_test` of the sum with the mirror image's."""
        if not self.config.flip_test:
            return F.normalize(self._vectors(images))
        picture, mirror = self._vectors(torch.cat([images, images.flip(-1)])).chunk(2)
        return F.normalize(picture + mirror)

    def loss(self, phase: str, batch: Batch, ctx: Context) -> PhaseOutput:
        images, labels = self._bent(augment(pixels(batch), self.config.augment, ctx.random), batch[LABEL], ctx.random)
        embeddings = self.backbone.read(self.backbone.features(self._normalised(images)), ctx.random)
        labels = ctx.gather(labels)
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = gather_rows(embeddings.float(), ctx)
            rows, bias, targets = self._rows(labels, ctx)
            losses = cross_entropy(margin_logits(embeddings, rows, targets, margin_of(self.config, ctx.step), bias), targets, ctx.world)
        metrics = {"target_probability": (-losses.detach()).exp().mean()}
        return PhaseOutput(losses.mean(), metrics, gathered_rows=len(labels))

    def survey(self, batch: Batch) -> dict[str, Tensor]:
        return self.backbone.sums(self._normalised(pixels(batch))) if isinstance(self.backbone, GaborEmbedder) else {}

    def begin(self, sums: dict[str, Tensor]) -> None:
        if isinstance(self.backbone, GaborEmbedder):
            self.backbone.centre(sums)

    def evaluate(self, batch: Batch, ctx: Context) -> dict[str, tuple[Tensor, Tensor]]:
        lengths = self._vectors(pixels(batch)).norm(dim=1)
        return {"embedding_norm": (lengths.sum(), lengths.new_tensor(len(lengths)))}

    def describe(self, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        return {"embedding": self.embed(pixels(batch)), LABEL: batch[LABEL]}

    def finish(self, totals: Mapping[str, tuple[Tensor, Tensor]], rows: Mapping[str, Tensor]) -> dict[str, float | list[float]]:
        """Adds the scores of verification over all pairs of pictures."""
        found = verification_scores(rows["embedding"], rows[LABEL]).to_json()
        rates = {f"tar_at_far_{far}": rate for far, rate in found.pop("tar_at").items()}
        return super().finish(totals, rows) | {name: value for name, value in found.items() if isinstance(value, (float, list))} | rates

    def adopt(self, name: str, model: Family) -> None:
        """`start`: begins with the backbone of a trained model; its class rows are drawn anew."""
        if name != "start":
            super().adopt(name, model)
        if not isinstance(model, Recognition):
            raise UserError(f"start is a {type(model).__name__}, expected a recognition model")
        try:
            self.backbone.load_state_dict(model.backbone.state_dict())
        except RuntimeError as error:
            raise UserError(f"start does not fit: {str(error).splitlines()[-1].strip()}; give it and this model the same shapes") from None

    def _vectors(self, images: Tensor) -> Tensor:
        """Embeddings (B, D) float32 of any length."""
        return self.backbone.read(self.backbone.features(self._normalised(images))).float()

    def _normalised(self, images: Tensor) -> Tensor:
        return images if self.config.photometric == "none" else PHOTOMETRIC[self.config.photometric](images)

    def _bent(self, images: Tensor, labels: Tensor, random: Draws) -> tuple[Tensor, Tensor]:
        """Pictures as one of the virtual identities of each, by chance, and those identities' labels."""
        count = self.config.virtual_identities
        if count == 1:
            return images, labels
        which = random.integers("virtual", count, (len(images),))
        grid = F.affine_grid(torch.eye(2, 3, device=images.device)[None], [1, 1, *images.shape[2:]], align_corners=False)
        return F.grid_sample(images, grid + self.bends[which], padding_mode="border", align_corners=False), labels * count + which

    def _rows(self, labels: Tensor, ctx: Context) -> tuple[Tensor, Tensor | None, Tensor]:
        """This worker's class rows in this step (n, D), their biases (n,), and each label's place among them or -1 (B,)."""
        first, last = self.head.span
        local = labels - first
        owned = (local >= 0) & (local < last - first)
        if self.config.sample_rate == 1 or first == last:
            return self.head.weight, self.head.bias, local.where(owned, -1)
        taken = torch.zeros(last - first + 1, dtype=torch.bool, device=labels.device)
        taken.index_fill_(0, local.where(owned, last - first), True)
        taken = taken[:-1] | (ctx.random.classes("sampled", first, last) < self.config.sample_rate)
        places = taken.cumsum(0) - 1
        index = taken.nonzero()[:, 0]
        targets = places[local.clamp(0, last - first - 1)].where(owned, -1)
        sparse = not self.config.move_unsampled
        rows = F.embedding(index, self.head.weight, sparse=sparse)
        bias = self.head.bias
        return rows, None if bias is None else bias.gather(0, index, sparse_grad=sparse), targets


def _backbone(config: RecognitionConfig) -> ResidualEmbedder | GaborEmbedder:
    if config.backbone == "gabor":
        return GaborEmbedder(config.image_size, config.embedding_dim, config.dropout)
    widths, depths, block = RESNETS.get(config.backbone, (config.widths, config.depths, BasicBlock))
    return ResidualEmbedder((config.image_channels, *config.image_size), widths, depths, block, config.embedding_dim, config.dropout)


def _bends(config: RecognitionConfig) -> Tensor:
    """How each virtual identity moves the points of a picture, (V, H, W, 2) as shares of half a side; the first one not at all."""
    if config.virtual_identities == 1:
        return torch.zeros(1, 1, 1, 2)
    corners = torch.rand(config.virtual_identities, 2, BEND_POINTS, BEND_POINTS, generator=generator("virtual identities"))
    moves = (2 * corners - 1) * (config.virtual_reach or BEND_REACH)
    moves[0] = 0
    return F.interpolate(moves, config.image_size, mode="bicubic", align_corners=True).permute(0, 2, 3, 1).contiguous()


def _training_classes(data: DataShape) -> tuple[str, ...]:
    """The names of the classes with training pictures; raises UserError when nothing can be learnt from them."""
    counts = data.rows_by_class.get("train", ())
    if LABEL not in data.columns or not counts:
        raise UserError(f"the data set has columns {sorted(data.columns)} and no classes; recognition needs labelled pictures")
    known = [label for label, count in enumerate(counts) if count]
    names = data.class_names
    if len(known) < 2:
        raise UserError(f"the training split has pictures of {len(known)} class, expected 2 or more; add other people's pictures")
    for label in range(known[-1]):
        if not counts[label]:
            raise UserError(
                f"label {label} ({names[label]}) has no training pictures, but label {known[-1]} ({names[known[-1]]}) has; number the "
                f"training classes 0, 1, ... without holes, before those that are only tested on"
            )
    for split, by_class in data.rows_by_class.items():
        alone = [label for label, count in enumerate(by_class) if count == 1]
        if alone:
            raise UserError(f"split {split} has one picture of {names[alone[0]]}, expected 2 or more; add pictures or leave that one out")
    return names[: known[-1] + 1]
