"""What a distance between generated and real pictures stands beside: Gaussians in pixel space, noise, real pictures that nobody saw."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from components.data.dataset import Dataset
from components.data.loader import evaluation_batches
from components.evaluation.baselines import class_gaussians
from components.evaluation.generation import BATCH, Reference, Scores, Tally
from components.families.classifier import Classifier
from components.families.images import IMAGE, LABEL, pixels

MAX_LINEAR_ROWS, MAX_LINEAR_PIXELS = 20_000, 4096  # beyond, covariances of pixels take longer than they tell
HELD_OUT = "real held-out pictures"


@dataclass(frozen=True)
class Gathered:
    """Rows of a split in memory: images (N, C, H, W) uint8 and labels (N,)."""

    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, dataset: Dataset, limit: int | None = None) -> Gathered:
        batches = list(evaluation_batches(dataset, 4 * BATCH, limit=limit))
        return cls(torch.cat([batch[IMAGE] for batch in batches]), torch.cat([batch[LABEL] for batch in batches]))

    def linear(self) -> Gathered | None:
        """As many rows as covariances of pixels are worth; None when there are too many pixels."""
        if self.images[0].numel() > MAX_LINEAR_PIXELS:
            return None
        return Gathered(self.images[:MAX_LINEAR_ROWS], self.labels[:MAX_LINEAR_ROWS])


def drawn_points(train: Gathered, count: int, seed: int) -> Iterator[tuple[str, Tensor]]:
    """`count` pictures (count, C, H, W) in [0, 1] of each reference point that is drawn, with its name."""
    generator = torch.Generator().manual_seed(seed)
    linear = train.linear()
    if linear is not None:
        yield "class Gaussians", class_gaussians(pixels({IMAGE: linear.images}), linear.labels, count, generator)
    yield "noise", torch.rand((count, *train.images.shape[1:]), generator=generator)


def point_scores(judge: Classifier, reference: Reference, train: Dataset, held_out: Dataset | None, count: int) -> dict[str, Scores]:
    """The scores of `count` pictures of every reference point; of held-out pictures as many as there are up to that."""
    found = {}
    if held_out is not None:
        found[HELD_OUT] = Tally.of(judge, Gathered.of(held_out, count).images).scores(reference)
    for name, images in drawn_points(Gathered.of(train, MAX_LINEAR_ROWS), count, seed=0):
        found[name] = Tally.of(judge, images).scores(reference)
    return found
