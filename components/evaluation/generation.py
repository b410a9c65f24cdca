"""How good generated pictures are: two distances to real ones on the features of a judge, and how evenly its labels are spread.

The judge is a small classifier of the project's own, so the Fréchet distance is called FD-cnn, never FID. It falls with the number of
samples, which stands beside every score; the kernel distance (KID) is unbiased, and can be negative.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Self

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from components.config import Config
from components.data.dataset import Dataset
from components.data.loader import evaluation_batches
from components.errors import UserError
from components.evaluation.frechet import Moments, frechet_distance
from components.evaluation.kernel import kernel_distance, own_similarity
from components.evaluation.sampling import to_images
from components.families.classifier import Classifier
from components.families.contract import Family
from components.families.images import IMAGE

BATCH = 256  # pictures that a judge looks at together
CHUNK = 1024  # samples drawn and judged at a time, whole lanes of them
KERNEL_ROWS = 10_000  # of each side at most, for the kernel distance: its cost grows with their product

Scores = dict[str, float]  # fd, kid, label_entropy (bits) and samples, their number


@dataclass(frozen=True)
class Reference:
    """Real pictures as a judge sees them: moments of all rows, and features of rows evenly spaced over the data set."""

    moments: Moments
    features: Tensor  # (K, D) float32
    own_similarity: float  # of `features`

    @classmethod
    @torch.inference_mode()
    def of(cls, judge: Classifier, dataset: Dataset) -> Reference:
        """Of all rows of `dataset`. Raises UserError when its pictures are not the judge's, or too few for a covariance."""
        judge.require_fitting(dataset.shape, dataset.url, dataset.split)
        require_enough(judge, dataset.num_rows, f"split {dataset.split} of {dataset.url} has")
        every = -(-dataset.num_rows // KERNEL_ROWS)
        moments, kept, row = [], [], 0
        for batch in evaluation_batches(dataset, BATCH):
            features = features_of(judge, batch[IMAGE])
            moments.append(Moments.of(features))
            kept.append(features[-row % every :: every])
            row += len(features)
        features = torch.cat(kept)
        return cls(reduce(add, moments), features, own_similarity(features))

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        count, own = torch.tensor(self.moments.count), torch.tensor(self.own_similarity, dtype=torch.float64)
        tensors = {"count": count, "total": self.moments.total, "outer": self.moments.outer, "features": self.features, "own": own}
        return safetensors.torch.save({name: value.contiguous() for name, value in tensors.items()})

    @classmethod
    def from_bytes(cls, data: bytes) -> Reference:
        """The inverse of `to_bytes`; raises ValueError for anything else."""
        try:
            found = safetensors.torch.load(data)
            moments = Moments(int(found["count"]), found["total"], found["outer"])
            return cls(moments, found["features"], found["own"].item())
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"no reference: {error}") from None


@dataclass(frozen=True)
class Tally:
    """What a judge sees in generated pictures, in the order of their rows; parts of different workers add up to the whole."""

    moments: Moments
    features: Tensor  # (K, D) float32, of the first KERNEL_ROWS pictures
    labels: Tensor  # (classes,) int64: how many pictures the judge takes for each

    @classmethod
    @torch.inference_mode()
    def of(cls, judge: Classifier, images: Tensor) -> Tally:
        """Of images (N, C, H, W), uint8 or numbers in [0, 1]."""
        features = torch.cat([features_of(judge, part) for part in images.split(BATCH)])
        labels = judge.head(features.to(judge.head.weight.device)).argmax(1).cpu()
        return cls(Moments.of(features), features[:KERNEL_ROWS], torch.bincount(labels, minlength=judge.config.num_classes))

    def __add__(self, other: Self) -> Tally:
        features = torch.cat([self.features, other.features])[:KERNEL_ROWS]
        return Tally(self.moments + other.moments, features, self.labels + other.labels)

    def scores(self, reference: Reference) -> Scores:
        """`fd` and `kid` to the real pictures, `label_entropy` in bits, at most log2(classes), and the number of `samples`."""
        shares = self.labels[self.labels > 0].double() / self.moments.count
        return {
            "fd": frechet_distance(self.moments, reference.moments),
            "kid": kernel_distance(self.features, reference.features, own_similarity_of_b=reference.own_similarity),
            "label_entropy": -(shares * shares.log2()).sum().item() + 0.0,
            "samples": self.moments.count,
        }


@dataclass(frozen=True)
class Generated:
    """What a model's samples come to: their scores, what one costs, and the first of them as pictures (N, C, H, W) uint8."""

    scores: Scores
    evaluations: float  # of the network, for one sample; a mean where a solver decides by itself
    seconds: float  # of drawing alone
    pictures: Tensor
    features: Tensor  # (K, D) float32, the judge's, of the first KERNEL_ROWS samples

    @property
    def images_per_second(self) -> float:
        return self.scores["samples"] / self.seconds


def score_samples(model: Family, judge: Classifier, reference: Reference, count: int, seed: int, sampler: Config, shown: int) -> Generated:
    """Draws the first `count` samples of `seed`, scores them, and keeps the first `shown`.

    Raises UserError for a sampler that the model has not, or that leaves the finite numbers, and for too few samples.
    """
    require_enough(judge, count, "samples:")
    parts: list[Tally] = []
    pictures: list[Tensor] = []
    seconds = 0.0
    with _rows_counted(model) as seen:
        started = time.perf_counter()
        for images in drawn(model, count, seed, sampler):
            seconds += time.perf_counter() - started
            parts.append(Tally.of(judge, images))
            pictures.append(images[: max(0, shown - CHUNK * len(pictures))])
            started = time.perf_counter()
    evaluations = model.evaluations(sampler)
    tally = reduce(add, parts)
    every = seen[0] / count if evaluations is None else evaluations
    return Generated(tally.scores(reference), every, seconds, torch.cat(pictures), tally.features)


def drawn(model: Family, count: int, seed: int, sampler: Config) -> Iterator[Tensor]:
    """The first `count` samples of `seed` as pictures (N, C, H, W) uint8, CHUNK at a time; raises UserError for one that is not finite."""
    for first in range(0, count, CHUNK):
        samples = model.sample(min(CHUNK, count - first), seed, sampler, first)
        yield to_images(model, samples, first)


@contextmanager
def _rows_counted(model: Family) -> Iterator[list[int]]:
    """How many rows go through the networks that samples ask: what an adaptive solver asked of them is known only then."""
    seen = [0]

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[0] += next(len(each) for each in inputs if each.dim())  # a time may stand first

    asked = model.asked or [child for phase in model.phases for child in phase.trains]
    hooks = [model.get_submodule(name).register_forward_pre_hook(count) for name in asked]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def features_of(judge: Classifier, images: Tensor) -> Tensor:
    """Features (N, D) float32, on the CPU, of images (N, C, H, W), uint8 or numbers in [0, 1]."""
    images = images.to(judge.head.weight.device)
    return judge.features(images.float() / 255 if images.dtype == torch.uint8 else images).float().cpu()


def require_enough(judge: Classifier, count: int, what: str) -> None:
    """Raises UserError unless there are more pictures than features: the Fréchet distance is one between covariances."""
    if count <= judge.config.feature_dim:
        raise UserError(f"{what} {count} pictures, and the judge has {judge.config.feature_dim} features; give more pictures than features")
