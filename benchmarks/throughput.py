"""Tokenizer training samples per second in our loop under Ray, beside a bare `torch.distributed` script fed from memory.

    python -m benchmarks.throughput

The peer trains the same family with the same optimizer, batch and steps, from one tensor in memory, in two gloo processes of one thread.
The two take turns.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from benchmarks.table import Table
from benchmarks.work import prepared, tokenizer_job
from components.config import Config
from components.data.dataset import Dataset
from components.families.contract import Family
from components.training.communication import Communication
from components.training.context import Context
from components.training.job import TrainingJob, build
from components.training.randomness import Draws

ROUNDS, STEPS, WARM_STEPS = 3, 120, 20


class _Loss(torch.nn.Module):
    def __init__(self, family: Family) -> None:
        super().__init__()
        self._family = (family,)
        for name in family.phases[0].trains:
            self.add_module(name, family.get_submodule(name))

    def forward(self, batch: dict[str, torch.Tensor], ctx: Context) -> Any:
        return self._family[0].loss(ctx.phase, batch, ctx)


def _bare(rank: int, store: str, job_values: dict[str, Any], answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    job = TrainingJob.parse(job_values, "benchmark")
    data = Dataset.open(job.data, "train")
    images = torch.from_numpy(data.take(torch.arange(data.num_rows).numpy())["image"])
    family = build(job, data).train()
    phase = family.phases[0]
    model = DistributedDataParallel(_Loss(family), forward_sync_buffers=False, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=job.train.optimizer.lr, betas=job.train.optimizer.betas, fused=True)
    half, world = job.train.batch_size // 2, Communication.current()
    order = torch.Generator().manual_seed(0)
    started = 0.0
    for step in range(WARM_STEPS + STEPS):
        if step == WARM_STEPS:
            started = time.perf_counter()
        rows = torch.randint(len(images), (job.train.batch_size,), generator=order)[rank * half : (rank + 1) * half]
        ctx = Context(step, phase.name, Draws(0, step, phase.name, rank * half, torch.device("cpu")), half, 2 * half, world)
        output = model({"image": images[rows]}, ctx)
        optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        family.after_step(phase.name, {name: world.sum(value) for name, value in output.stats.items()}, ctx)
    if rank == 0:
        answers.put(STEPS * job.train.batch_size / (time.perf_counter() - started))
    dist.barrier()
    dist.destroy_process_group()


def _peer(scratch: str, number: int) -> float:
    context = mp.get_context("spawn")
    answers = context.SimpleQueue()
    values: dict[str, Any] = tokenizer_job(scratch, "peer", STEPS).to_json()
    arguments = (os.path.join(scratch, f"rendezvous-{number}"), values, answers)
    processes = [context.Process(target=_bare, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return answers.get()


def _ours(group: Any, scratch: str, number: int) -> float:
    """The rate after warm-up, from the run's own rows: samples over seconds between the first row and the last."""
    rows: list[dict[str, Any]] = []
    job: Config = tokenizer_job(scratch, f"ours-{number}", WARM_STEPS + STEPS, log_every=WARM_STEPS)
    group.train(job, rows.append)
    return statistics.median(row["samples_per_second"] for row in rows[1:])


def main() -> Table:
    from clusters.session import ray_cluster

    peer, ours = [], []
    with tempfile.TemporaryDirectory() as scratch, ray_cluster(None, cpus=4):
        from clusters.train import worker_group

        prepared(scratch)
        with worker_group(2) as group:
            for number in range(ROUNDS):
                peer.append(_peer(scratch, number))
                ours.append(_ours(group, scratch, number))
    table = Table("tokenizer training, 2 workers", ["who", "samples/s", "ratio"])
    table.add("bare torch.distributed, from memory", statistics.median(peer), 1.0)
    table.add("raymill under Ray Train", statistics.median(ours), statistics.median(a / b for a, b in zip(ours, peer, strict=True)))
    return table


if __name__ == "__main__":
    print(main())
