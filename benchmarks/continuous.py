"""Continuous flows beside what is known: held-out nats of points from two densities in the plane, and the entropy that bounds them.

    python -m benchmarks.continuous [--steps 2000]

A ring of eight Gaussians and a pinwheel of five (`benchmarks/densities.py`), 100,000 points to train on and 10,000 others to score, through
the ordinary loop. Besides the nats the table has what the true density gives the same held-out points, which differs from the entropy by
chance alone, and how often the field is asked for a solve in training and in a score.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.densities import PINWHEEL, RING, Petals
from benchmarks.table import Table
from components.data.columns import Column
from components.data.write import write_dataset
from components.families.flow import Flow
from components.families.model_folder import load_model
from components.families.points import POINT
from components.networks.continuous_flow import ContinuousFlow
from components.training.job import TrainingJob, execute
from components.training.outlet import Outlet
from components.training.record import read_metrics

TRAIN, TEST = 100_000, 10_000
MODEL = {"network": {"kind": "continuous", "solver": {"method": "rk4", "steps": 8}}}
OPTIMIZER = {"lr": 1e-2, "betas": [0.9, 0.99]}
TRAINING = {
    "steps": 2000,
    "batch_size": 256,
    "optimizer": OPTIMIZER,
    "warmup_steps": 50,
    "clip_norm": 10.0,
    "ema_decay": 0.99,
    "log_every": 100,
}
GOAL = 0.08  # nats above the entropy, at most


def write_points(folder: Path, density: Petals) -> str:
    """A data set of points drawn from the density."""
    columns = {POINT: Column(dtype="float32", shape=(2,))}
    splits = {name: [{POINT: density.sample(rows, seed).numpy()}] for name, rows, seed in (("train", TRAIN, 0), ("test", TEST, 1))}
    write_dataset(str(folder), splits, columns, (), {"made": "for a benchmark"})
    return str(folder)


def measure(table: Table, name: str, density: Petals, steps: int) -> None:
    settings = {"model": MODEL, "train": TRAINING | {"steps": steps}}
    with tempfile.TemporaryDirectory() as scratch:
        data, run = write_points(Path(scratch) / "points", density), str(Path(scratch) / "run")
        job = TrainingJob.parse({"family": "flow", "data": data, "run": run, **settings}, "benchmark")
        started = time.perf_counter()
        execute(job, Outlet(torch.device("cpu")))
        minutes = (time.perf_counter() - started) / 60
        nats = json.loads((Path(run) / "run.json").read_text())["scores"]["nats"]
        asked = [row["evaluations"] for row in read_metrics(run)]
        scored = evaluations_of_a_score(str(Path(run) / "model"), density)
    entropy, true = density.entropy(), -float(density.log_prob(density.sample(TEST, 1)).mean())
    table.add(name, job.train.steps, minutes, entropy, true, nats, nats - entropy, asked[-1], scored)


def evaluations_of_a_score(model: str, density: Petals) -> int:
    """Of the field, for a batch of 500 points."""
    flow = load_model(model)
    assert isinstance(flow, Flow)
    assert isinstance(flow.network, ContinuousFlow)
    with torch.inference_mode():
        return flow.network.eval().solved(density.sample(500, 2)).evaluations


def main(arguments: list[str] | None = None) -> Table:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=TRAINING["steps"], help="of training")
    steps = parser.parse_args(arguments if arguments is not None else []).steps
    columns = ["density", "steps", "minutes", "entropy", "true density", "nats", "above entropy", "evaluations", "of a score"]
    table = Table(f"continuous flows, held-out nats; the goal is at most {GOAL} above the entropy", columns)
    for name, density in (("ring of 8 Gaussians", RING), ("pinwheel of 5", PINWHEEL)):
        measure(table, name, density, steps)
    return table


if __name__ == "__main__":
    print(main(sys.argv[1:]))
