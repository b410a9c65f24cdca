"""Is one model better than another? Both scored on the same held-out rows, and an interval of the difference by the paired bootstrap.

    candidate, champion = (block_scores(model, data, 8)["accuracy"] for model in (new, old))
    paired_bootstrap(candidate, champion, resamples=2000, confidence=0.95, seed=0).surpasses(0.0, "max")

Blocks of rows are drawn with replacement, the same ones for both models, so that rows which are hard for both cancel. The interval is the
percentile interval (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from components.data.dataset import Dataset
from components.data.loader import evaluation_batches
from components.errors import UserError
from components.families.contract import Family
from components.training.communication import Communication
from components.training.context import Context
from components.training.randomness import Draws

BATCH_ROWS = 256  # read at once, at least
DRAWN_AT_ONCE = 2**20  # blocks: bounds the memory of resampling, whatever the number of blocks and resamples

Sums = tuple[np.ndarray, np.ndarray]  # (N,) sums and (N,) counts of N blocks, float64


@dataclass(frozen=True)
class Interval:
    """The difference candidate - champion of a score, and where it lies with the asked confidence."""

    difference: float
    low: float
    high: float
    blocks: int

    def surpasses(self, margin: float, best: Literal["min", "max"]) -> bool:
        """Whether the whole interval lies beyond `margin` on the better side; `best` as in the family's `headline`."""
        return self.low > margin if best == "max" else self.high < -margin


@torch.no_grad()
def block_scores(model: Family, data: Dataset, block_rows: int) -> dict[str, Sums]:
    """Sums and counts of the model's scalar scores on blocks of `block_rows` consecutive rows (the last may be short), in order.

    Their ratio of sums is the score that `raymill evaluate` gives. Raises UserError when the model does not fit the data, when there are
    fewer than two blocks, and for a family whose headline is no sum over rows (recognition's pairs of pictures).
    """
    if block_rows < 1:
        raise UserError(f"block_rows={block_rows} is not valid; expected 1 or more")
    model.require_fitting(data.shape, data.url, data.split)
    device, training = next(model.parameters()).device, model.training
    found: dict[str, list[tuple[float, float]]] = {}
    model.eval()
    try:
        for number, block in enumerate(_blocks(data, block_rows)):
            batch = {name: column.to(device) for name, column in block.items()}
            rows = next(iter(batch.values())).shape[0]
            ctx = Context(0, "evaluate", Draws(0, number, "evaluate", 0, device), rows, rows, Communication())
            pairs = {name: pair for name, pair in model.evaluate(batch, ctx).items() if pair[0].ndim == 0}
            if number == 0:
                _require_headline(model, pairs, data)
            for name, (total, count) in pairs.items():
                found.setdefault(name, []).append((float(total), float(count)))
    finally:
        model.train(training)
    blocks = max((len(pairs) for pairs in found.values()), default=0)
    if blocks < 2:
        raise UserError(
            f"split {data.split} of {data.url} has {data.num_rows} rows, {blocks} of {block_rows}; expected two blocks or more: "
            f"hold out more rows or take smaller blocks"
        )
    assert all(len(pairs) == blocks for pairs in found.values()), "a family gives the same scores for all rows"
    return {name: (table[:, 0], table[:, 1]) for name, table in ((name, np.array(pairs)) for name, pairs in found.items())}


def paired_bootstrap(candidate: Sums, champion: Sums, *, resamples: int, confidence: float, seed: int) -> Interval:
    """The interval of ratio(candidate) - ratio(champion), where a ratio is sum of sums over sum of counts.

    Both on the same N blocks, drawn jointly; equal seeds give equal intervals. Time grows with N x resamples, memory with N alone.
    Raises UserError for settings out of range.
    """
    if resamples < 1 or not 0 < confidence < 1:
        raise UserError(f"resamples={resamples}, confidence={confidence} are not valid; expected 1 or more, and a share between 0 and 1")
    table = np.stack([np.asarray(part, np.float64) for part in (*candidate, *champion)])  # (4, N)
    blocks = table.shape[1]
    assert (table[[1, 3]] > 0).all(), "every block counts something"
    generator = np.random.default_rng(seed)
    at_once = max(1, DRAWN_AT_ONCE // blocks)
    drawn = np.concatenate(
        [
            _difference(table[:, generator.integers(0, blocks, (min(at_once, resamples - first), blocks))])
            for first in range(0, resamples, at_once)
        ]
    )
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(_difference(table)), float(low), float(high), blocks)


def _difference(table: np.ndarray) -> np.ndarray:
    """(4, ..., N) sums and counts of both models to (...) differences of their ratios."""
    sums, counts, other_sums, other_counts = table.sum(-1)
    return sums / counts - other_sums / other_counts


def _blocks(data: Dataset, block_rows: int) -> Iterator[dict[str, Tensor]]:
    """Rows in order, `block_rows` at a time, read many blocks at once."""
    for batch in evaluation_batches(data, -(-BATCH_ROWS // block_rows) * block_rows):
        rows = next(iter(batch.values())).shape[0]
        for first in range(0, rows, block_rows):
            yield {name: column[first : first + block_rows] for name, column in batch.items()}


def _require_headline(model: Family, pairs: Mapping[str, object], data: Dataset) -> None:
    headline = model.headline[0]
    if headline not in pairs:
        raise UserError(
            f"{type(model).__name__} is scored by {headline}, over all rows of {data.url} together: it is no sum over rows, so there is no "
            f"interval by rows; compare models of this family by the score itself"
        )
