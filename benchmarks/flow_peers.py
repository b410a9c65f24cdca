"""Flows beside normflows and zuko: training samples per second, and pictures per second that Glow's inverse makes.

    python -m benchmarks.flow_peers

Each peer is built of its own layers with the same networks, takes our weights, and must give the same log-probabilities and pictures. Our
training is the whole one of the `flow` family in this process; a peer's is a bare loop around it that dequantizes, clips and steps as ours
does, fed from one tensor. All take turns, medians.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.flow_models import normflows_model, zuko_model
from benchmarks.table import Table
from benchmarks.work import prepared
from components.data.dataset import Dataset
from components.data.write import write_dataset
from components.families.contract import Column, OptimizerConfig
from components.families.flow import LEVELS, Flow
from components.training.checkpoint import CheckpointFolder
from components.training.config import TrainConfig
from components.training.job import TrainingJob, build
from components.training.loop import Trainer, train
from components.training.outlet import Outlet

ROUNDS, GROUPS, BATCH = 3, 6, 64
PICTURE_STEPS, POINT_STEPS = 4, 80  # in a group, of which the first warms up
SAMPLING_ROUNDS = {1: 9, 64: 5}  # by batch
TOLERANCE = 1e-4  # of the largest number of a result
NETWORKS: dict[str, dict[str, Any]] = {
    "Glow, 8 steps of width 64": {"kind": "glow", "squeezes": (4,), "steps": 8, "width": 64},
    "Glow, two levels of 4 steps": {"kind": "glow", "squeezes": (2, 2), "steps": 4, "width": 64},
    "RealNVP, 8 couplings": {"kind": "realnvp", "squeezes": (4,), "couplings": 4, "width": 64},
}
POINTS = {"kind": "realnvp", "couplings": 6, "width": 64}
Peer = Callable[[Flow], Any]


def training_job(data: str, run: str, network: dict[str, Any], group: int = PICTURE_STEPS) -> TrainingJob:
    steps = GROUPS * group
    settings = TrainConfig(steps=steps, batch_size=BATCH, log_every=group, checkpoint_every=10 * steps, optimizer=OptimizerConfig(lr=1e-3))
    return TrainingJob(family="flow", model={"network": network}, train=settings, data=data, run=run)


def our_rate(job: TrainingJob) -> tuple[float, Flow]:
    """Training samples per second from the run's own rows, without the first, and what was trained."""
    shown: list[dict[str, Any]] = []
    data = Dataset.open(job.data, "train")
    trainer = Trainer(build(job, data), job.train, Outlet(show=shown.append))
    with closing(CheckpointFolder(job.run)) as checkpoints:
        train(trainer, data, None, checkpoints, job.family)
    assert isinstance(trainer.family, Flow)
    return statistics.median(row["samples_per_second"] for row in shown[1:]), trainer.family


def bare_rate(job: TrainingJob, model: Any) -> float:
    """The same of a peer in a loop that is as short as can be."""
    data = Dataset.open(job.data, "train")
    (column,) = {"image", "point"} & data.shape.columns.keys()
    rows = torch.from_numpy(data.take(np.arange(data.num_rows))[column])
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    settings, group = job.train.optimizer, job.train.log_every
    optimizer = torch.optim.AdamW(parameters, settings.lr, settings.betas, weight_decay=settings.weight_decay, fused=True)
    marks = []
    for step in range(job.train.steps + 1):
        if step % group == 0:
            marks.append(time.perf_counter())
        x = rows[torch.randint(len(rows), (BATCH,))]
        if column == "image":
            x = (x.float() + torch.rand(x.shape)) / LEVELS
        loss = -model.log_prob(x).mean() / x[0].numel()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return statistics.median(group * BATCH / (end - start) for start, end in pairwise(marks[1:]))


def measure_training(table: Table, title: str, job: TrainingJob, peer: Peer) -> Flow:
    rates = []
    for number in range(ROUNDS):
        ours, family = our_rate(job.model_copy(update={"run": f"{job.run}-{number}"}))
        _assert_close(family.network.log_prob, peer(family).log_prob, _rows(family))
        rates.append((ours, bare_rate(job, peer(family))))
    medians = (statistics.median(rate) for rate in zip(*rates, strict=True))
    table.add(f"{title}: training samples/s", *medians, statistics.median(ours / theirs for ours, theirs in rates))
    return family


def measure_sampling(table: Table, title: str, family: Flow, peer: Peer, batch: int) -> None:
    model = peer(family.eval()).eval()
    latents = torch.randn(batch, *family.sample_shape)
    draws: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] = family.network.inverse, model.inverse
    with torch.inference_mode():
        _assert_close(draws[0], draws[1], latents)
        runs = [[_seconds(draw, latents) for draw in draws] for _ in range(SAMPLING_ROUNDS[batch])]
    ours, theirs = (batch / statistics.median(each) for each in zip(*runs, strict=True))
    table.add(f"{title}: pictures/s, batch {batch}", ours, theirs, ours / theirs)


def _seconds(call: Callable[[Tensor], Tensor], x: Tensor) -> float:
    started = time.perf_counter()
    call(x)
    return time.perf_counter() - started


def _rows(family: Flow) -> Tensor:
    return torch.rand(16, *family.sample_shape)


@torch.no_grad()
def _assert_close(ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], x: Tensor) -> None:
    mine, other = ours(x), theirs(x)
    assert (mine - other).abs().max() < TOLERANCE * mine.abs().max(), "the results differ"


def write_points(folder: str) -> str:
    """A data set of points of the plane, near a circle."""
    generator = torch.Generator().manual_seed(0)
    angle = 2 * torch.pi * torch.rand(20_000, generator=generator)
    points = torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(20_000, 2, generator=generator)
    blocks = {split: [{"point": part.numpy()}] for split, part in (("train", points[:-1000]), ("test", points[-1000:]))}
    write_dataset(folder, blocks, {"point": Column(dtype="float32", shape=(2,))}, (), {"made": "for a benchmark"})
    return folder


def main() -> Table:
    torch.manual_seed(0)
    table = Table(f"flows, {torch.get_num_threads()} threads", ["what", "raymill", "normflows / zuko", "ratio"])
    with tempfile.TemporaryDirectory() as scratch:
        for number, (title, network) in enumerate(NETWORKS.items()):
            job = training_job(prepared(scratch), str(Path(scratch) / f"run-{number}"), network)
            family = measure_training(table, title, job, normflows_model)
            for batch in SAMPLING_ROUNDS:
                measure_sampling(table, title, family, normflows_model, batch)
        job = training_job(write_points(str(Path(scratch) / "points")), str(Path(scratch) / "run-points"), POINTS, POINT_STEPS)
        measure_training(table, "RealNVP of points (zuko)", job, lambda family: zuko_model(family.network, 2))
    return table


if __name__ == "__main__":
    print(main())
