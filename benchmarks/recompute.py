"""Peak bytes of saved activations and step time with activation checkpointing off, every block and every k-th block.

    python -m benchmarks.recompute

The model is a Transformer prior of sixteen blocks; bytes are those of distinct tensors that autograd keeps from forward to backward,
weights aside.
"""

from __future__ import annotations

import statistics
import time

import torch

from benchmarks.table import Table
from components.families.prior import Prior
from components.training.communication import Communication
from components.training.context import Context
from components.training.randomness import Draws
from components.training.recompute import recompute

ROUNDS, ROWS, LAYERS = 5, 64, 16


def _prior() -> Prior:
    torch.manual_seed(0)
    return Prior(Prior.Config(layers=LAYERS, heads=4, width=128, code_count=256, grid=(7, 7), num_classes=10))


def _step(prior: Prior) -> tuple[float, int]:
    """Seconds of forward and backward, and the bytes kept between them."""
    own = {p.untyped_storage().data_ptr() for p in prior.parameters()}
    kept: dict[int, int] = {}
    alive: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    draw = torch.Generator().manual_seed(0)
    batch = {"codes": torch.randint(256, (ROWS, 7, 7), generator=draw), "label": torch.randint(10, (ROWS,), generator=draw)}
    ctx = Context(0, prior.phases[0].name, Draws(0, 0, "train", 0, torch.device("cpu")), ROWS, ROWS, Communication())
    started = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = prior.loss(prior.phases[0].name, batch, ctx).loss
    loss.backward()
    return time.perf_counter() - started, sum(kept.values())


def main() -> Table:
    settings = {0: "off", 1: "every block", 2: "every 2nd block", 4: "every 4th block"}
    models = {every: _prior().train() for every in settings}
    for every, model in models.items():
        if every:
            recompute(model, model.recomputed, every)
    results = {every: [_step(model)] for every, model in models.items()}  # the first is a warm-up
    for _ in range(ROUNDS):
        for every, model in models.items():
            results[every].append(_step(model))
    base_seconds = statistics.median(seconds for seconds, _ in results[0][1:])
    base_bytes = results[0][-1][1]
    table = Table(f"activation checkpointing, prior of {LAYERS} blocks, {ROWS} rows", ["setting", "saved MB", "ratio", "step s", "ratio"])
    for every, label in settings.items():
        seconds = statistics.median(seconds for seconds, _ in results[every][1:])
        size = results[every][-1][1]
        table.add(label, size / 1e6, size / base_bytes, seconds, seconds / base_seconds)
    return table


if __name__ == "__main__":
    print(main())
