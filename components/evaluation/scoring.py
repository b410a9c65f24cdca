"""Scores of a family over a data set: sums and counts in float64, merged over batches and workers, never means of means."""

from __future__ import annotations

import torch
from torch import Tensor

from components.data.dataset import Dataset
from components.data.loader import evaluation_batches
from components.errors import UserError
from components.families.contract import Family
from components.training.communication import Communication
from components.training.context import Context
from components.training.randomness import Draws

Scores = dict[str, float | list[float]]


@torch.no_grad()
def evaluate(
    family: Family,
    dataset: Dataset,
    world: Communication | None = None,
    batch_size: int = 256,
    limit: int | None = None,
    seed: int = 0,
) -> Scores:
    """Every score of `family.evaluate` over the rows (the first `limit`) of `dataset`, the same on all workers.

    A vector stays a list. Raises UserError when the data set is not of the kind that the family learnt from.
    """
    world = world or Communication()
    family.require_fitting(dataset.shape, dataset.url, dataset.split)
    device = next(family.parameters()).device
    training = family.training
    family.eval()
    totals: dict[str, tuple[Tensor, Tensor]] = {}
    described: dict[int, dict[str, Tensor]] = {}  # by number of the batch in the data set
    try:
        for number, batch in enumerate(evaluation_batches(dataset, batch_size, world.rank, world.size, limit)):
            first_row = (number * world.size + world.rank) * batch_size
            batch = {name: column.to(device, non_blocking=True) for name, column in batch.items()}
            rows = next(iter(batch.values())).shape[0]
            ctx = Context(0, "evaluate", Draws(seed, 0, "evaluate", first_row, device), rows, rows, Communication())
            for name, (total, count) in family.evaluate(batch, ctx).items():
                before = totals.get(name, (0.0, 0.0))
                totals[name] = (before[0] + total.double(), before[1] + count.double())
            described[first_row] = {name: value.cpu() for name, value in family.describe(batch, ctx).items()}
    finally:
        family.train(training)
    try:
        return family.finish(_merge(totals, world), _in_order(described, world))
    except UserError as error:
        raise UserError(f"split {dataset.split} of {dataset.url}{'' if limit is None else f', its first {limit} rows'}: {error}") from None


def _merge(totals: dict[str, tuple[Tensor, Tensor]], world: Communication) -> dict[str, tuple[Tensor, Tensor]]:
    """Sums over workers. A worker without rows learns the names and shapes from none: it takes part by gathering objects."""
    if world.size == 1:
        return totals
    gathered = world.gather_objects({name: (a.cpu(), b.cpu()) for name, (a, b) in totals.items()})
    names = sorted({name for part in gathered for name in part})
    return {name: tuple(sum(part[name][i] for part in gathered if name in part) for i in (0, 1)) for name in names}


def _in_order(described: dict[int, dict[str, Tensor]], world: Communication) -> dict[str, Tensor]:
    """All workers' rows in the order of the data set."""
    parts = {first: part for each in world.gather_objects(described) for first, part in each.items()}
    names = sorted({name for part in parts.values() for name in part})
    return {name: torch.cat([parts[first][name] for first in sorted(parts)]) for name in names}
