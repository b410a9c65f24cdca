"""Memory and step time of a deep flow: activations kept, recomputed block by block from inputs, and recomputed from outputs.

    python -m benchmarks.invertible

Steps of Glow on pictures of 8 x 8 pixels, as many as the table says: plain backpropagation, activation checkpointing of each step and of
segments of sqrt(layers) steps, whose memory is about the least that it can reach, and backward from outputs
(`components/networks/invertible.py`). `kept` is what autograd holds from forward to backward, weights aside; `peak` the most of all tensors
at any time of a step, beyond weights and their gradients. Gradients are compared with those of plain backpropagation: in float32 a few
units stand so near the corner of a ReLU that the rounding of the inverse decides on which side, in float64 (1e-14) hardly any.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.recompute import kept_bytes, peak_bytes
from benchmarks.table import Table
from components.families.flow import Flow
from components.training.recompute import recompute

LAYERS, ROUNDS = (4, 16, 64, 256), 3
SLACK = 0.01  # of peaks, for speed
ROWS, SIDE, WIDTH = 64, 8, 64
PLAIN, CHECKPOINTED, FROM_OUTPUTS = "plain", "checkpointed", "from outputs"


def flow(layers: int, from_outputs: bool = False) -> Flow:
    """`layers` steps of Glow on SIDE x SIDE pixels, their weights moved away from the identity and then initialised by pictures."""
    torch.manual_seed(0)
    network = {"kind": "glow", "squeezes": [2], "steps": layers, "width": WIDTH, "from_outputs": from_outputs}
    model = Flow(Flow.Config.parse({"shape": (1, SIDE, SIDE), "network": network}, "benchmark")).train()
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.network.initialize(pictures(2))
    return model


def pictures(seed: int) -> Tensor:
    return torch.rand(ROWS, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def settings(layers: int) -> dict[str, Flow]:
    """The same model three or four times, by how its memory is spent."""
    models = {PLAIN: flow(layers)}
    for length in sorted({1, math.isqrt(layers)}):
        models[f"{CHECKPOINTED}, k = {length}"] = flow(layers)
        recompute(models[f"{CHECKPOINTED}, k = {length}"], models[PLAIN].recomputed, length)
    return models | {FROM_OUTPUTS: flow(layers, from_outputs=True)}


def loss_of(model: Flow, x: Tensor) -> Callable[[], Tensor]:
    return lambda: -model.network.log_prob(x).mean() / x[0].numel()


def _step_seconds(model: Flow, loss: Callable[[], Tensor]) -> float:
    model.zero_grad(set_to_none=False)
    started = time.process_time()
    loss().backward()
    return time.process_time() - started


def difference(model: nn.Module, other: nn.Module) -> float:
    """The distance of all gradients, relative to their size."""
    one, two = (torch.cat([p.grad.flatten() for p in each.parameters() if p.grad is not None]).double() for each in (model, other))
    return float((one - two).norm() / two.norm())


def measure(table: Table, layers: int) -> None:
    models = settings(layers)
    x = pictures(1)
    losses = {name: loss_of(model, x) for name, model in models.items()}
    sizes = {}
    for name, model in models.items():
        _step_seconds(model, losses[name])  # a warm-up; gradients are there from now on
        sizes[name] = kept_bytes(model, losses[name]) / 1e6, peak_bytes(losses[name], SLACK) / 1e6
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(ROUNDS):
        for name, model in models.items():
            seconds[name].append(_step_seconds(model, losses[name]))
    step = {name: statistics.median(values) for name, values in seconds.items()}
    for name, model in models.items():
        table.add(f"{layers} layers, {name}", *sizes[name], step[name], step[name] / step[PLAIN], difference(model, models[PLAIN]))


def main(arguments: list[str] | None = None) -> Table:
    torch.set_num_threads(1)
    table = Table("a deep Glow", ["flow", "kept MB", "peak MB", "step, CPU s", "ratio", "gradient off by"])
    for layers in map(int, arguments) if arguments else LAYERS:
        measure(table, layers)
    return table


if __name__ == "__main__":
    print(main(sys.argv[1:]))
