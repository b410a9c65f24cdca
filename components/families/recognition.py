"""Recognition by angles: embeddings whose cosine says whether two pictures show the same identity, learnt with margin-softmax losses.

A backbone makes embeddings; a head has one row of weights for each training class, cut over the workers (An et al. 2021, arXiv
2010.05222). The losses are those of `components/functional/margins.py`; test identities are none of the training ones.

    python -m pipelines.cli train recognition DATA model.loss=cosface
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from components.config import Config as AnyConfig
from components.config import fingerprint
from components.errors import UserError
from components.evaluation.verification import FOLDS, verification_scores
from components.families.augmentation import augment
from components.families.contract import Batch, DataShape, Family, OptimizerConfig, Phase, PhaseOutput, Proof
from components.families.images import IMAGE, LABEL, image_shape, pixels
from components.families.recognition_config import RecognitionConfig, margin_of
from components.functional.margins import least_scale, margin_logits
from components.functional.photometric import PHOTOMETRIC
from components.networks.class_rows import ClassRows
from components.networks.embedding import BasicBlock, Bottleneck, ResidualEmbedder
from components.networks.gabor import GaborEmbedder
from components.report.findings import Chart, Series
from components.training.class_parallel import cross_entropy, gather_rows
from components.training.context import Context
from components.training.randomness import Draws, generator

logger = logging.getLogger(__name__)

BEND_POINTS, BEND_REACH = 5, 0.12
SURVEYED = 2048  # pictures that the mean of Gabor features is taken over ...
SURVEYED_AT_ONCE = 128  # ... so many at a time
RESNETS: dict[str, tuple[tuple[int, ...], tuple[int, ...], type[BasicBlock] | type[Bottleneck]]] = {  # widths, depths, block
    "resnet18": ((64, 128, 256, 512), (2, 2, 2, 2), BasicBlock),
    "resnet50": ((256, 512, 1024, 2048), (3, 4, 6, 3), Bottleneck),
}


class Recognition(Family):
    """Embeddings whose angles tell identities apart: margin-softmax losses over a class-sharded head."""

    Config = RecognitionConfig
    config: RecognitionConfig
    bends: Tensor
    sharded = ("head",)
    averaged = ("backbone",)
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
        self.head = ClassRows(c.head_rows, c.embedding_dim, bias=c.loss == "softmax")
        self.register_buffer("bends", _bends(c), persistent=False)
        self.phases = (Phase("recognition", ("backbone", "head")),)
        self.recomputed = () if c.backbone == "gabor" else ("backbone.blocks.*",)
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
        margin, least = margin_of(fitted, 0), least_scale(fitted.head_rows)
        if margin.scale is not None and margin.scale < least:
            logger.warning(
                "scale=%g is below %.1f, which %d classes need to be told apart with confidence 0.9", margin.scale, least, fitted.head_rows
            )
        return fitted

    def require_fitting(self, data: DataShape, url: str, split: str | None = None) -> None:
        found, own = image_shape(data), (self.config.image_channels, *self.config.image_size)
        if found != own:
            raise UserError(
                f"the model reads pictures of {own} (channels, height, width), those of {url} are of {found}; prepare them alike"
            )
        if LABEL not in data.columns:
            raise UserError(f"the data set {url} has no column {LABEL!r}, which says who is who; prepare it from labelled pictures")
        if split is not None:
            _require_pairs(data.rows_by_class.get(split, ()), f"split {split} of {url}")

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

    def begin(self, rows: Batch) -> None:
        if isinstance(self.backbone, GaborEmbedder):
            parts = rows[IMAGE].split(SURVEYED_AT_ONCE)
            self.backbone.centre(self._normalised(pixels({IMAGE: part})) for part in parts)

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

    @classmethod
    def charts(cls, scores: Mapping[str, float | list[float]]) -> tuple[Chart, ...]:
        far, tar = scores.get("roc_far"), scores.get("roc_tar")
        if not isinstance(far, list) or not isinstance(tar, list):
            return ()
        curve = Series(name="held-out pictures", x=tuple(far), y=tuple(tar))
        axes = {"x_label": "false-accept rate", "y_label": "true-accept rate"}
        return (
            Chart(
                title="True accepts over false accepts", caption="Over all pairs of held-out pictures.", log_x=True, series=(curve,), **axes
            ),
        )

    def adopt(self, name: str, model: Family) -> None:
        """`start`: begins with the backbone of a trained model; its class rows are drawn anew."""
        if name != "start":
            return super().adopt(name, model)
        if not isinstance(model, Recognition):
            raise UserError(f"start is a {type(model).__name__}, expected a recognition model; give the folder of one")
        try:
            self.backbone.load_state_dict(model.backbone.state_dict())
        except RuntimeError as error:
            raise UserError(f"start does not fit: {str(error).splitlines()[-1].strip()}; give it and this model the same shapes") from None
        return None

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


def _require_pairs(rows_by_class: Sequence[int], origin: str) -> None:
    """Raises UserError when so many pictures of each identity make too few pairs to score."""
    rows = sum(rows_by_class)
    genuine = sum(count * (count - 1) // 2 for count in rows_by_class)
    impostor = rows * (rows - 1) // 2 - genuine
    people = sum(count > 0 for count in rows_by_class)
    if min(genuine, impostor) < FOLDS:
        raise UserError(
            f"{origin} has {rows} pictures of {people} {'identity' if people == 1 else 'identities'}: {genuine} genuine and {impostor} "
            f"impostor pairs, expected {FOLDS} or more of each; add pictures of these people and of others, or score another split"
        )


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
            others = "" if split == "train" else ", or hold out whole identities"
            raise UserError(
                f"split {split} has one picture of {names[alone[0]]}, expected 2 or more; add pictures or leave that one out{others}"
            )
    return names[: known[-1] + 1]
