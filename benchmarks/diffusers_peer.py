"""Denoising diffusion beside diffusers and a bare loop: pictures per second of 50 steps of DDIM, and training samples per second.

    python -m benchmarks.diffusers_peer

Sampling: the same network and weights as `UNet2DModel` with `DDIMScheduler`, with its weights and pictures in both memory orders, of which
the faster counts; both sides in inference mode, results equal. Training: the whole training of the `diffusion` family in this process,
beside a bare loop around the same U-Net that draws, adds noise, clips and steps as it does, fed from one tensor. All take turns, medians.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.table import Table
from benchmarks.work import prepared
from components.data.dataset import Dataset
from components.families.contract import OptimizerConfig
from components.families.denoising_sampler import DenoisingSampler
from components.families.diffusion import Diffusion
from components.training.checkpoint import CheckpointFolder
from components.training.config import TrainConfig
from components.training.job import TrainingJob, build
from components.training.loop import Trainer, train
from components.training.outlet import Outlet

ROUNDS = {1: 7, 64: 3}  # by batch
# Neither the noisiest level nor clipping: hardly trained, the network would have its rounding errors there multiplied by 20,000.
DDIM = DenoisingSampler(sampler="ddim", steps=50, spacing="leading", clip=False)
TRAINING_ROUNDS, STEPS, WARM_STEPS, BATCH = 3, 20, 4, 64
TOLERANCE = 1e-5  # of the largest number of a result
Draw = Callable[[Tensor, Tensor], Tensor]  # noise (B, C, H, W) and labels (B,) to pictures


def training_job(scratch: str, run: str) -> TrainingJob:
    optimizer, steps = OptimizerConfig(lr=1e-3), WARM_STEPS + STEPS
    train = TrainConfig(steps=steps, batch_size=BATCH, log_every=WARM_STEPS, checkpoint_every=10 * steps, optimizer=optimizer)
    return TrainingJob(family="diffusion", train=train, data=prepared(scratch), run=str(Path(scratch) / run))


def our_rate(job: TrainingJob) -> tuple[float, Diffusion]:
    """Training samples per second from the run's own rows, without the first, and what was trained."""
    rows: list[dict[str, Any]] = []
    data = Dataset.open(job.data, "train")
    trainer = Trainer(build(job, data), job.train, Outlet(show=rows.append))
    with closing(CheckpointFolder(job.run)) as checkpoints:
        train(trainer, data, None, checkpoints, job.family)
    assert isinstance(trainer.family, Diffusion)
    return statistics.median(row["samples_per_second"] for row in rows[1:]), trainer.family


def bare_rate(job: TrainingJob) -> float:
    """The same of a loop that is as short as can be."""
    data = Dataset.open(job.data, "train")
    columns = data.take(torch.arange(data.num_rows).numpy())
    images, labels = torch.from_numpy(columns["image"]), torch.from_numpy(columns["label"]).long()
    family = build(job, data).train()
    assert isinstance(family, Diffusion)
    network, dropout, classes = family.network, family.config.condition_dropout, family.config.num_classes
    levels = torch.arange(family.schedule.levels)
    alpha, sigma = (part.float()[:, None, None, None] for part in (f(family.schedule.time_of(levels)) for f in _curves(family)))
    settings = job.train.optimizer
    optimizer = torch.optim.AdamW(network.parameters(), settings.lr, settings.betas, weight_decay=settings.weight_decay, fused=True)
    started = 0.0
    for step in range(WARM_STEPS + STEPS):
        if step == WARM_STEPS:
            started = time.perf_counter()
        rows, level = torch.randint(len(images), (BATCH,)), torch.randint(len(levels), (BATCH,))
        x0 = images[rows].float() / 127.5 - 1
        eps, told = torch.randn_like(x0), labels[rows].masked_fill(torch.rand(BATCH) < dropout, classes)
        loss = F.mse_loss(network(alpha[level] * x0 + sigma[level] * eps, level.float(), told), eps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    return STEPS * BATCH / (time.perf_counter() - started)


def _curves(family: Diffusion) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    return family.schedule.alpha, family.schedule.sigma


def peer(folder: Path, layout: torch.memory_format) -> Draw:
    """diffusers' own loop over the exported folder, pictures and weights in the memory order `layout`."""
    from diffusers import DDIMScheduler, UNet2DModel

    model: Any = UNet2DModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False).eval().to(memory_format=layout)
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler", timestep_spacing=DDIM.spacing, clip_sample=DDIM.clip)

    def draw(start: Tensor, labels: Tensor) -> Tensor:
        scheduler.set_timesteps(DDIM.steps)
        x = start.contiguous(memory_format=layout)
        with torch.inference_mode():
            for level in scheduler.timesteps:
                x = scheduler.step(model(x, level, labels, return_dict=False)[0], level, x, return_dict=False)[0]
        return x

    return draw


def _timed(draw: Draw, start: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    started = time.perf_counter()
    pictures = draw(start, labels)
    return time.perf_counter() - started, pictures


def measure_sampling(table: Table, family: Diffusion, folder: Path, batch: int) -> None:
    family.export(folder)
    start, labels = torch.randn(batch, *family.sample_shape), torch.arange(batch) % family.config.num_classes
    draws: list[Draw] = [lambda x, classes: family.from_noise(x, DDIM, classes)]
    draws += [peer(folder, layout) for layout in (torch.contiguous_format, torch.channels_last)]
    runs = [[_timed(draw, start, labels) for draw in draws] for _ in range(1 + ROUNDS[batch])]
    for ours, *theirs in runs:
        for _, pictures in theirs:
            assert (ours[1] - pictures).abs().max() < TOLERANCE * pictures.abs().max(), "the samples differ"
    seconds = [statistics.median(run[contender][0] for run in runs[1:]) for contender in range(len(draws))]  # the first warms up
    ours_rate, theirs_rate = batch / seconds[0], batch / min(seconds[1:])
    table.add(f"DDIM-50 pictures/s, batch {batch}, {torch.get_num_threads()} threads", ours_rate, theirs_rate, ours_rate / theirs_rate)


def main() -> Table:
    torch.manual_seed(0)
    table = Table("denoising diffusion", ["what", "raymill", "diffusers / bare loop", "ratio"])
    with tempfile.TemporaryDirectory() as scratch:
        jobs = [training_job(scratch, f"run-{number}") for number in range(TRAINING_ROUNDS)]
        rates = [(our_rate(job), bare_rate(job)) for job in jobs]
        ratio = statistics.median(ours / bare for (ours, _), bare in rates)
        medians = (statistics.median(rate) for rate in zip(*((ours, bare) for (ours, _), bare in rates), strict=True))
        table.add(f"training samples/s, {torch.get_num_threads()} threads", *medians, ratio)
        family = rates[-1][0][1].eval()
        for batch in ROUNDS:
            measure_sampling(table, family, Path(scratch) / "exported", batch)
    return table


if __name__ == "__main__":
    print(main())
