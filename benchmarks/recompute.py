"""Step time and activation memory with activation checkpointing off and in segments of k blocks.

    python -m benchmarks.recompute

The model is a Transformer prior of n = 16 blocks. `kept` are the distinct tensors that autograd holds from forward to backward, weights
aside; `peak` is the most of all tensors at any time of the step, beyond those that were there before it. With b bytes between two blocks
and a inside one, kept + k a is least for k = sqrt(n b / a).
"""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from benchmarks.table import Table
from components.families.prior import Prior
from components.training.communication import Communication
from components.training.context import Context
from components.training.randomness import Draws
from components.training.recompute import recompute

ROUNDS, ROWS, LAYERS, WIDTH, GRID = 5, 64, 16, 128, (7, 7)
LENGTHS = (0, 1, 2, 4, 8, 16)


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors made in the block that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {tensor.untyped_storage().data_ptr() for tensor in tree_iter(args) if isinstance(tensor, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()).data_ptr() not in given:
                self._live[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
        self._live = {place: entry for place, entry in self._live.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return out


def _prior(length: int) -> Prior:
    torch.manual_seed(0)
    prior = Prior(Prior.Config(layers=LAYERS, heads=4, width=WIDTH, code_count=256, grid=GRID, num_classes=10)).train()
    if length:
        recompute(prior, prior.recomputed, length)
    return prior


def _loss(prior: Prior) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    batch = {"codes": torch.randint(256, (ROWS, *GRID), generator=draw), "label": torch.randint(10, (ROWS,), generator=draw)}
    ctx = Context(0, prior.phases[0].name, Draws(0, 0, "train", 0, torch.device("cpu")), ROWS, ROWS, Communication())
    return prior.loss(prior.phases[0].name, batch, ctx).loss


def _step_seconds(prior: Prior) -> float:
    started = time.perf_counter()
    _loss(prior).backward()
    return time.perf_counter() - started


def kept_bytes(prior: Prior) -> int:
    own = {p.untyped_storage().data_ptr() for p in prior.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _loss(prior)
    return sum(storage.nbytes() for storage in kept.values())


def peak_bytes(prior: Prior) -> int:
    """Beyond the gradients, which are there before."""
    with LiveBytes() as live:
        _loss(prior).backward()
    return live.peak


def main() -> Table:
    models = {length: _prior(length) for length in LENGTHS}
    seconds: dict[int, list[float]] = {length: [] for length in LENGTHS}
    for _ in range(1 + ROUNDS):  # the first is a warm-up
        for length, model in models.items():
            seconds[length].append(_step_seconds(model))
    kept, peak = ({length: measure(model) for length, model in models.items()} for measure in (kept_bytes, peak_bytes))
    boundary = ROWS * math.prod(GRID) * WIDTH * 4
    inside = (kept[0] - kept[1]) / LAYERS + boundary  # what a block keeps for its backward, its input among it
    best = math.sqrt(LAYERS * boundary / inside)
    table = Table(
        f"activation checkpointing, prior of {LAYERS} blocks, {ROWS} rows: b = {boundary / 1e6:.2f} MB, a = {inside / 1e6:.2f} MB, "
        f"best k = sqrt(n b / a) = {best:.1f}",
        ["segments of", "kept MB", "ratio", "peak MB", "ratio", "step s", "ratio"],
    )
    base = statistics.median(seconds[0][1:])
    for length in LENGTHS:
        step = statistics.median(seconds[length][1:])
        sizes = (size for each in (kept, peak) for size in (each[length] / 1e6, each[length] / each[0]))
        table.add(str(length) if length else "off", *sizes, step, step / base)
    return table


if __name__ == "__main__":
    print(main())
