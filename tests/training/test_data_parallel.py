"""Data parallelism: the gradients of the loop are those of the whole batch on one process, reduced once a step, and nobody leaves early."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from components.config import Config
from components.data.columns import DataShape
from components.data.dataset import Dataset
from components.evaluation.scoring import Scores, evaluate
from components.families.contract import Batch, Family, Phase, PhaseOutput
from components.training.communication import Communication, rows_of
from components.training.config import TrainConfig
from components.training.context import Context
from components.training.loop import Trainer
from components.training.measures import Measures
from components.training.outlet import Outlet, torchrun
from components.training.randomness import LANE
from tests.data.samples import make, random_rows
from tests.gang import Gang

CPU = torch.device("cpu")
FEATURES, CLASSES = 6, 4
# Rows of a global batch and micro-batches: of even shards, and of shards that differ by a lane or are not full.
BATCHES = [(96, 1), (44, 1), (96, 3), (100, 3)]


class Small(Family):
    """A classifier of made-up rows, begun at random; its scores say how many rows they are of."""

    Config = Config
    phases = (Phase("small", ("net",)),)
    headline = ("accuracy", "max")

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        super().__init__(Config())
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(FEATURES, 12), nn.Tanh(), nn.Linear(12, CLASSES)).to(dtype)

    def require_fitting(self, data: DataShape, url: str, split: str | None = None) -> None:
        """Any data will do."""

    def loss(self, phase: str, batch: Batch, ctx: Context) -> PhaseOutput:
        logits = self.net(batch["x"])
        hits = (logits.argmax(1) == batch["label"]).to(logits.dtype)
        return PhaseOutput(F.cross_entropy(logits, batch["label"]), {"accuracy": hits.mean()})

    def evaluate(self, batch: Batch, ctx: Context) -> dict[str, tuple[Tensor, Tensor]]:
        labels = batch["label"]
        rows = labels.new_tensor(len(labels))
        return {"label": (labels.sum(), rows), "rows": (rows, torch.tensor(float(ctx.first_row == 0)))}


def rows(count: int, dtype: torch.dtype, step: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(step)
    x = torch.randn(count, FEATURES, generator=g, dtype=torch.float64).to(dtype)
    return {"x": x, "label": torch.randint(CLASSES, (count,), generator=g)}


class Worker:
    """A trainer on this rank, begun with weights that differ from rank to rank, and its part of any global batch."""

    def __init__(self, dtype: torch.dtype, count: int, accumulate: int, optimizer: str = "sgd") -> None:
        self.world, self.dtype, self.count = Communication.current(), dtype, count
        settings = {"batch_size": count, "accumulate": accumulate, "clip_norm": None, "optimizer": {"name": optimizer, "lr": 0.01}}
        self.family = Small(dtype, seed=self.world.rank).train()
        self.trainer = Trainer(self.family, TrainConfig.parse(settings, "test"), Outlet(CPU, self.world))
        self.measures = Measures(CPU, self.world, count)

    def step(self) -> None:
        mine = rows_of(self.world.rank, self.world.size, self.count, LANE)
        whole = rows(self.count, self.dtype, self.trainer.step)
        self.trainer.train_step({name: column[mine] for name, column in whole.items()}, self.measures)


def gradients_on_worker(dtype: torch.dtype, count: int, accumulate: int) -> tuple[list[Tensor], dict[str, Any]]:
    worker = Worker(dtype, count, accumulate)
    worker.step()
    return [parameter.grad for parameter in worker.family.parameters()], worker.measures.read(1, 0.0)


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize(("count", "accumulate"), BATCHES)
@pytest.mark.parametrize("workers", [2, 3, 4])
def test_gradients_are_those_of_the_whole_batch(
    gang: Gang, workers: int, count: int, accumulate: int, dtype: torch.dtype, within: float
) -> None:
    alone, batch = Small(dtype, seed=0), rows(count, dtype)
    logits = alone.net(batch["x"])
    loss = F.cross_entropy(logits, batch["label"])
    loss.backward()
    for gradients, row in gang.run(gradients_on_worker, workers, dtype, count, accumulate):
        for found, parameter in zip(gradients, alone.parameters(), strict=True):
            assert (found - parameter.grad).abs().max() < within
        assert row["loss.small"] == pytest.approx(loss.item(), abs=1e-6)
        assert row["accuracy"] == pytest.approx((logits.argmax(1) == batch["label"]).float().mean().item(), abs=1e-6)


def collectives_on_worker(accumulate: int) -> list[str]:
    """What the group is asked for in the third step; in the first two DistributedDataParallel arranges its buckets."""
    worker = Worker(torch.float32, 96, accumulate)
    worker.step()
    worker.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        worker.step()
    return [event.name for event in profile.events() if event.name.startswith("gloo:")]


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_step_reduces_once_however_many_micro_batches(gang: Gang, accumulate: int) -> None:
    assert gang.run(collectives_on_worker, 3, accumulate) == [["gloo:all_reduce"]] * 3


def weights_on_worker(steps: int) -> tuple[str, str]:
    worker = Worker(torch.float32, 44, 1, "adamw")
    first = weights_hash(worker.family)
    for _ in range(steps):
        worker.step()
    return first, weights_hash(worker.family)


def weights_hash(family: Family) -> str:
    return hashlib.sha256(b"".join(parameter.detach().numpy().tobytes() for parameter in family.parameters())).hexdigest()


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_all_workers_have_the_same_weights_after_twenty_steps(gang: Gang, workers: int) -> None:
    found = gang.run(weights_on_worker, workers, 20)
    assert len({first for first, _ in found}) == len({last for _, last in found}) == 1
    assert found[0][0] == weights_hash(Small(torch.float32, seed=0)) != found[0][1]


def scores_on_worker(folder: str, limit: int | None) -> Scores:
    data = Dataset.open(folder, "test")
    return evaluate(Small(torch.float32, 0), data, Communication.current(), batch_size=8, limit=limit)


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("limit", [None, 20, 5])
def test_scores_count_each_row_once(gang: Gang, tmp_path: Path, workers: int, limit: int | None) -> None:
    """Batches of eight rows: some workers get a short one, some get one less, some get none."""
    held_out = random_rows(37, seed=1)
    make(str(tmp_path), random_rows(8), held_out)
    labels = held_out["label"][:limit]
    for scores in gang.run(scores_on_worker, workers, str(tmp_path), limit):
        assert scores == {"label": pytest.approx(np.mean(labels), abs=1e-12), "rows": len(labels)}


def leave_on_worker(folder: str, kind: str) -> list[int]:
    """How many workers were still at work, at each time when this one destroyed a group; the later ranks take longer."""
    world, absent = Communication.current(), []

    def watched(group: dist.ProcessGroup | None = None) -> None:
        absent.append(world.size - len(list(Path(folder).iterdir())))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "destroy_process_group", watched)
        patch.setattr(dist, "init_process_group", lambda backend: None)  # this group is there already
        patch.setattr(torch.cuda, "is_available", lambda: False)
        with torchrun() if kind == "torchrun" else world.apart():
            time.sleep(0.2 * world.rank)
            (Path(folder) / str(world.rank)).touch()
    return absent


@pytest.mark.parametrize("kind", ["torchrun", "apart"])
def test_no_worker_destroys_a_group_that_others_need(gang: Gang, tmp_path: Path, kind: str) -> None:
    assert gang.run(leave_on_worker, 3, str(tmp_path), kind) == [[0]] * 3
