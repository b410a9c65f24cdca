"""Step time and activation memory with activation checkpointing off and in segments of k blocks.

    python -m benchmarks.recompute

The models are a Transformer prior, whose blocks hold much inside, and many narrow blocks, which hold little. `kept` are the distinct
tensors that autograd holds from forward to backward, weights aside; `peak` is the most of all tensors at any time of the step, beyond
those that were there before it. With b bytes between two of n blocks and a inside one, kept + k a is least for k = sqrt(n b / a).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from benchmarks.table import Table
from components.families.prior import Prior
from components.training.communication import Communication
from components.training.context import Context
from components.training.randomness import Draws
from components.training.recompute import recompute

ROUNDS, LENGTHS = 5, (0, 1, 2, 4, 8, 16)
CPU = torch.device("cpu")


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors made in the block that were alive at once, at most the share `slack` too few."""

    def __init__(self, slack: float = 0.0) -> None:
        super().__init__()
        self.peak, self.slack = 0, slack
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self._bound = 0  # on the bytes alive: those who died since it was last counted are in it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {tensor.untyped_storage().data_ptr() for tensor in tree_iter(args) if isinstance(tensor, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()).data_ptr() not in given:
                self._live[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
                self._bound += storage.nbytes()
        if self._bound > self.peak * (1 + self.slack):  # else no new peak is possible
            self._live = {place: entry for place, entry in self._live.items() if not entry[0].expired()}
            self._bound = sum(size for _, size in self._live.values())
            self.peak = max(self.peak, self._bound)
        return out


@dataclass
class Case:
    """A model of `blocks` blocks with `boundary` bytes between two, and its loss on a fixed batch."""

    label: str
    blocks: int
    boundary: int
    make: Callable[[], tuple[nn.Module, tuple[str, ...], Callable[[], Tensor]]]  # the model, the names of its blocks and its loss


def prior(rows: int = 32, layers: int = 16, width: int = 128, grid: tuple[int, int] = (7, 7)) -> Case:
    def make() -> tuple[nn.Module, tuple[str, ...], Callable[[], Tensor]]:
        model = Prior(Prior.Config(layers=layers, heads=4, width=width, code_count=256, grid=grid, num_classes=10)).train()
        batch = {"codes": torch.randint(256, (rows, *grid)), "label": torch.randint(10, (rows,))}
        ctx = Context(0, "prior", Draws(0, 0, "prior", 0, CPU), rows, rows, Communication())
        return model, model.recomputed, lambda: model.loss("prior", batch, ctx).loss

    return Case(f"prior of {layers} blocks", layers, rows * math.prod(grid) * width * 4, make)


def narrow(rows: int = 128, layers: int = 64, width: int = 64) -> Case:
    def make() -> tuple[nn.Module, tuple[str, ...], Callable[[], Tensor]]:
        blocks = (nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Dropout(0.1)) for _ in range(layers))
        model, x = nn.ModuleDict({"blocks": nn.Sequential(*blocks)}), torch.randn(rows, width)
        return model, ("blocks.*",), lambda: model["blocks"](x).sum()

    return Case(f"{layers} narrow blocks", layers, rows * width * 4, make)


def _step_seconds(loss: Callable[[], Tensor]) -> float:
    started = time.perf_counter()
    loss().backward()
    return time.perf_counter() - started


def kept_bytes(model: nn.Module, loss: Callable[[], Tensor]) -> int:
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss()
    return sum(storage.nbytes() for storage in kept.values())


def peak_bytes(loss: Callable[[], Tensor], slack: float = 0.0) -> int:
    with LiveBytes(slack) as live:
        loss().backward()
    return live.peak


def measure(table: Table, case: Case) -> None:
    losses, kept, peak = {}, {}, {}
    for length in LENGTHS:
        torch.manual_seed(0)
        model, names, losses[length] = case.make()
        if length:
            recompute(model, names, length)
        _step_seconds(losses[length])  # a warm-up; gradients are there from now on
        kept[length], peak[length] = kept_bytes(model, losses[length]), peak_bytes(losses[length])
    seconds: dict[int, list[float]] = {length: [] for length in LENGTHS}
    for length in LENGTHS * ROUNDS:
        seconds[length].append(_step_seconds(losses[length]))
    inside = (kept[0] - kept[1]) / case.blocks + case.boundary  # all that a block holds for its backward, its input among it
    best = math.sqrt(case.blocks * case.boundary / inside)
    step = {length: statistics.median(values) for length, values in seconds.items()}
    for length in LENGTHS:
        label = f"{case.label}, k = {length}" if length else f"{case.label}, off (best k = {best:.1f})"
        sizes = (size for each in (kept, peak) for size in (each[length] / 1e6, each[length] / each[0]))
        table.add(label, *sizes, step[length], step[length] / step[0])


def main() -> Table:
    table = Table("activation checkpointing, segments of k blocks", ["model", "kept MB", "ratio", "peak MB", "ratio", "step s", "ratio"])
    for case in (prior(), narrow()):
        measure(table, case)
    return table


if __name__ == "__main__":
    print(main())
