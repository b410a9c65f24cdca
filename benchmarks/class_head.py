"""Training with a class-sharded head: step time, the head's share of it, and memory of each rank, from a thousand to a million classes.

    python -m benchmarks.class_head

Each row is a few whole training steps of the recognition family in fresh gloo processes of one thread, on made-up pictures. The head's
part of a step is what the step takes beyond one with two classes; the memory of a rank is its peak resident size, and beyond that one's.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from itertools import product
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.table import Table
from components.families.recognition import Recognition
from components.training.communication import Communication
from components.training.config import TrainConfig
from components.training.loop import Trainer
from components.training.measures import Measures
from components.training.outlet import Outlet

WARM_STEPS, STEPS, BATCH, DIM, SIDE = 3, 20, 128, 64, 32
SIZES = (1_000, 5_000, 20_000, 100_000, 1_000_000)
HEADS: dict[str, dict[str, Any]] = {
    "whole": {},
    "a tenth": {"sample_rate": 0.1},
    "a tenth, other rows stay": {"sample_rate": 0.1, "move_unsampled": False},
}
Result = tuple[float, float, float]  # seconds of a step, peak GB of a rank, GB of a rank's class rows and their optimizer state


def _rank(rank: int, size: int, store: str, classes: int, head: dict[str, Any], answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    shapes = {"num_classes": classes, "image_size": (SIDE, SIDE), "embedding_dim": DIM, "loss": "cosface"}
    config = Recognition.Config.parse(shapes | head, "benchmark")
    train = TrainConfig.parse({"steps": WARM_STEPS + STEPS, "batch_size": BATCH}, "benchmark")
    world = Communication.current()
    trainer = Trainer(Recognition(config).train(), train, Outlet(torch.device("cpu"), world))
    measures = Measures(torch.device("cpu"), world, BATCH)
    g = torch.Generator().manual_seed(rank)
    seconds = []
    for _ in range(WARM_STEPS + STEPS):
        labels = torch.randint(classes, (BATCH // size,), generator=g)
        images = torch.randint(256, (BATCH // size, 1, SIDE, SIDE), generator=g, dtype=torch.uint8)
        world.barrier()
        started = time.perf_counter()
        trainer.train_step({"image": images, "label": labels}, measures)
        seconds.append(time.perf_counter() - started)
    rows = sum(t.numel() * t.element_size() for part in trainer.rows().values() for t in part.tensors.values())
    answers.put((statistics.median(seconds[WARM_STEPS:]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, rows / 1e9))
    dist.barrier()
    dist.destroy_process_group()


def measure(workers: int, classes: int, head: dict[str, Any]) -> Result:
    """The slowest and largest of all ranks."""
    context = mp.get_context("spawn")
    answers = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (workers, os.path.join(folder, "store"), classes, head, answers)
        processes = [context.Process(target=_rank, args=(rank, *arguments)) for rank in range(workers)]
        for process in processes:
            process.start()
        results = [answers.get() for _ in processes]
        for process in processes:
            process.join()
    seconds, peak, rows = zip(*results, strict=True)
    return max(seconds), max(peak), max(rows)


def main(sizes: tuple[int, ...] = SIZES) -> Table:
    table = Table(
        f"class-sharded head, {BATCH} pictures a step, {DIM} dimensions, AdamW",
        ["classes, workers, head", "step s", "head's share", "rank GB", "of it head", "rows and state GB"],
    )
    base = {workers: measure(workers, 2, {}) for workers in (1, 2)}
    for classes in sizes:
        for workers, (name, head) in product((1, 2), HEADS.items()):
            seconds, peak, rows = measure(workers, classes, head)
            share = max(0.0, 1 - base[workers][0] / seconds)
            table.add(f"{classes:,}, {workers}, {name}", seconds, share, peak, peak - base[workers][1], rows)
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, nargs="+", default=SIZES, help="numbers of classes")
    print(main(tuple(parser.parse_args().classes)))
