"""The ring all-reduce beside gloo's own: time, and what a worker sends, for two to four workers and a thousand to ten million floats.

    python -m benchmarks.ring

Workers are fresh processes of one thread on this machine. The last column is a naive all-reduce, in which each worker sends its whole
tensor to all others.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.table import Table
from components.training.communication import Communication
from components.training.ring import ring_all_reduce

SIZES, ROUNDS, FLOAT_BYTES = (10**3, 10**4, 10**5, 10**6, 10**7), 7, 4


def _seconds(reduce: Callable[[], object], world: Communication) -> float:
    """The median over rounds; the first is a warm-up."""
    rounds = []
    for _ in range(1 + ROUNDS):
        world.barrier()
        started = time.perf_counter()
        reduce()
        rounds.append(time.perf_counter() - started)
    return statistics.median(rounds[1:])


def _rank(rank: int, size: int, store: str, answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    world = Communication.current()
    results = []
    for elements in SIZES:
        value = torch.zeros(elements)
        sent = ring_all_reduce(value, world)
        results.append(
            (sent, _seconds(lambda v=value: ring_all_reduce(v, world), world), _seconds(lambda v=value: dist.all_reduce(v), world))
        )
    answers.put(results)
    dist.barrier()
    dist.destroy_process_group()


def measure(workers: int) -> list[tuple[int, float, float]]:
    """For each size the most that a worker sent and the slowest worker's seconds, by the ring and by the library."""
    context = mp.get_context("spawn")
    answers = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (workers, os.path.join(folder, "store"), answers)
        processes = [context.Process(target=_rank, args=(rank, *arguments)) for rank in range(workers)]
        for process in processes:
            process.start()
        results = [answers.get() for _ in processes]
        for process in processes:
            process.join()
    return [tuple(map(max, zip(*each, strict=True))) for each in zip(*results, strict=True)]


def main() -> Table:
    table = Table(
        "sum over workers of float32, ring beside gloo", ["workers, elements", "ring s", "gloo s", "ratio", "ring sends MB", "naive MB"]
    )
    for workers in (2, 3, 4):
        for elements, (sent, ring, library) in zip(SIZES, measure(workers), strict=True):
            naive = (workers - 1) * elements
            table.add(f"{workers}, {elements:,}", ring, library, ring / library, sent * FLOAT_BYTES / 1e6, naive * FLOAT_BYTES / 1e6)
    return table


if __name__ == "__main__":
    print(main())
