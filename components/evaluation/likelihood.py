"""How likely a model finds real pictures: bits for each of their numbers, a uniform density being 8 of them."""

from __future__ import annotations

import math

import torch

from components.data.dataset import Dataset
from components.data.loader import evaluation_batches
from components.errors import UserError
from components.families.contract import Family
from components.families.images import IMAGE, LABEL
from components.training.communication import Communication
from components.training.context import Context
from components.training.randomness import Draws


@torch.no_grad()
def evaluate_likelihood(
    family: Family, dataset: Dataset, batch_size: int, limit: int | None, seed: int, bound: bool = False
) -> dict[str, float]:
    """`bits_per_dim`, its standard error over rows, and their number, of the first `limit` rows, given their classes.

    With `bound` by the variational bound, which codes the 8-bit numbers as they are; else by the density of dequantized ones.

    A row's draws depend on its number and the seed alone, with a `batch_size` that is a multiple of `LANE`. Raises UserError for a family
    without a density, and for a data set that is not of the kind that it learnt from.
    """
    if IMAGE not in dataset.shape.columns:
        raise UserError(
            f"{dataset.url} holds no pictures, and bits per dimension are of their 8-bit numbers; leave out --likelihood: a model of "
            "points with a density has its nats among the scores"
        )
    family.require_fitting(dataset.shape, dataset.url, dataset.split)
    device = next(family.parameters()).device
    measure = family.bound_in_bits_per_dim if bound else family.bits_per_dim
    count, total, squares = 0, 0.0, 0.0
    for batch in evaluation_batches(dataset, batch_size, limit=limit):
        images = batch[IMAGE].to(device)
        rows = len(images)
        ctx = Context(0, "likelihood", Draws(seed, 0, "likelihood", count, device), rows, rows, Communication())
        labels = batch[LABEL].to(device).long() if getattr(family.config, "num_classes", 0) else None
        bits = measure(images, ctx, labels).double()
        count, total, squares = count + rows, total + bits.sum().item(), squares + bits.square().sum().item()
    mean = total / count
    spread = math.sqrt(max(0.0, squares / count - mean**2) / max(1, count - 1))
    return {"bits_per_dim": mean, "standard_error": spread, "rows": count}
