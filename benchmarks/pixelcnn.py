"""Gated PixelCNN and MADE: pictures a second, drawn by what earlier pixels left and by a whole pass for each; the first trained, too.

    python -m benchmarks.pixelcnn

Untrained weights of the preset `full`, 28 x 28 binary pixels, for the time does not depend on what the weights are; one process. The naive
way makes the passes for the first pixels of a picture only, of which each costs the same, and its rate is that for all of them. The bare
loop trains the same network with the same optimizer and precision on one tensor in memory. Both take turns; figures are medians.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.table import Table
from benchmarks.work import prepared
from components.data.dataset import Dataset
from components.families.autoregressive import Autoregressive, AutoregressiveConfig
from components.networks.autoregressive import AutoregressiveNetwork
from components.training.job import TrainingJob, execute
from components.training.optimization import make_optimizer
from components.training.outlet import Outlet
from components.training.record import read_metrics
from pipelines.settings import family_preset

ROUNDS, BATCHES = 3, (1, 64, 256)
NAIVE_PIXELS = 8  # of 784
STEPS, WARM_STEPS = 20, 5
SHAPE = (1, 28, 28)
MADE = {"network": {"kind": "made"}}


def _ink(parameters: Tensor, uniform: Tensor) -> Tensor:
    return (uniform < parameters[:, 0].sigmoid()).float()


def _network(model: dict[str, Any]) -> AutoregressiveNetwork:
    return Autoregressive(AutoregressiveConfig.parse(model, "benchmark")).eval().network


@torch.inference_mode()
def _naive(network: AutoregressiveNetwork, uniform: Tensor, pixels: int) -> None:
    """The first `pixels` pixels, with a pass over the whole picture for each."""
    x = torch.zeros(len(uniform), *SHAPE)
    for pixel in range(pixels):
        row, column = divmod(pixel, SHAPE[2])
        x[:, 0, row, column] = _ink(network(x)[:, :, 0, row, column], uniform[:, pixel])


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _drawing(table: Table, name: str, network: AutoregressiveNetwork) -> None:
    for batch in BATCHES:
        uniform = torch.rand(batch, SHAPE[1] * SHAPE[2])
        contenders: list[Callable[[], object]] = [
            partial(network.draw, uniform, None, None, None, _ink),
            partial(_naive, network, uniform, NAIVE_PIXELS),
        ]
        times = [[_seconds(work) for work in contenders] for _ in range(1 + ROUNDS)][1:]  # the first warms up
        ours, naive = (statistics.median(column) for column in zip(*times, strict=True))
        whole = naive * SHAPE[1] * SHAPE[2] / NAIVE_PIXELS
        table.add(f"{name}, drawn, batch {batch}", batch / ours, batch / whole, whole / ours)


def _bare(job: TrainingJob, images: Tensor) -> float:
    """Trained pictures a second of the same network in the shortest loop."""
    network = _network(job.model).train()
    optimizer = make_optimizer(dict(network.named_parameters()), job.train.optimizer)
    started = 0.0
    for step in range(WARM_STEPS + STEPS):
        if step == WARM_STEPS:
            started = time.perf_counter()
        x = (images[torch.randint(len(images), (job.train.batch_size,))] > 127).float()
        with torch.autocast("cpu", torch.bfloat16, enabled=job.train.precision == "bfloat16"):
            logits = network(x)[:, 0].float()
        optimizer.zero_grad(set_to_none=True)
        (F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x)).backward()
        optimizer.step()
    return STEPS * job.train.batch_size / (time.perf_counter() - started)


def _ours(job: TrainingJob) -> float:
    """The same from the rows that a run writes."""
    execute(job, Outlet(torch.device("cpu")))
    return statistics.median(row["samples_per_second"] for row in read_metrics(job.run)[1:] if "samples_per_second" in row)


def _training(table: Table, model: dict[str, Any], train: dict[str, Any], scratch: str) -> None:
    data = prepared(scratch)
    dataset = Dataset.open(data, "train")
    images = torch.from_numpy(dataset.take(torch.arange(5000).numpy())["image"])
    settings = train | {"steps": WARM_STEPS + STEPS, "warmup_steps": 1, "log_every": WARM_STEPS, "checkpoint_every": 1000}
    settings |= {"held_out": "test", "ema_decay": None}
    rates = []
    for number in range(1 + ROUNDS):
        values = {"family": "autoregressive", "model": model, "train": settings, "data": data, "run": str(Path(scratch) / f"run{number}")}
        job = TrainingJob.parse(values, "benchmark")
        rates.append((_ours(job), _bare(job, images)))
    ours, bare = (statistics.median(column) for column in zip(*rates[1:], strict=True))
    table.add(f"Gated PixelCNN, trained, batch {train['batch_size']}", ours, bare, ours / bare)


def main() -> Table:
    preset = family_preset("autoregressive", "full")
    torch.manual_seed(0)
    table = Table("autoregressive models, pictures a second", ["", "ours", "naive or bare", "ratio"])
    _drawing(table, "Gated PixelCNN", _network(preset["model"]))
    _drawing(table, "MADE", _network(MADE))
    with tempfile.TemporaryDirectory() as scratch:
        _training(table, preset["model"], preset["train"], scratch)
    return table


if __name__ == "__main__":
    print(main())
