"""Workers and a start that depends on data: Glow on several agrees with one, and starts from each worker's own rows are seen.

ActNorm takes its weights from a batch, before the first step; no collective of the training itself would tell that workers took other rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from components.data.dataset import Dataset
from components.data.loader import Loader
from components.families.contract import Batch, replicated
from components.families.flow import Flow, FlowConfig
from components.training.communication import Communication
from components.training.config import TrainConfig
from components.training.loop import Trainer
from components.training.measures import Measures
from components.training.outlet import Outlet
from tests.gang import Gang

CPU = torch.device("cpu")
STEPS, ROWS = 4, 48
NETWORKS = {
    "images": {"kind": "glow", "steps": 1, "width": 4},
    "points": {"kind": "glow", "steps": 3, "width": 16},
}

Begin = Callable[[Trainer, Dataset], None]


def all_see_the_same_rows(trainer: Trainer, data: Dataset) -> None:
    trainer.begin(data)


def each_sees_its_own(trainer: Trainer, data: Dataset) -> None:
    with torch.no_grad():
        trainer.family.begin(next(batches(data, 1)))


def the_first_tells_the_others(trainer: Trainer, data: Dataset) -> None:
    """What broadcasting without the same rows comes to: all are equal, but to the start from a part of the batch."""
    each_sees_its_own(trainer, data)
    for tensor in replicated(trainer.family).values():
        trainer.world.broadcast(tensor)


def batches(data: Dataset, steps: int) -> Iterator[Batch]:
    """This worker's rows."""
    world = Communication.current()
    return islice(Loader(data, ROWS, 0, world.rank, world.size).batches(0, steps), steps)


def weights(folder: str, kind: str, begin: Begin) -> dict[str, Tensor]:
    """All weights of this rank after some steps."""
    data, world = Dataset.open(folder, "train"), Communication.current()
    torch.manual_seed(0)
    config = FlowConfig.parse({"network": NETWORKS[kind]}, "test")
    family = Flow(FlowConfig.parse(Flow.fit(config, data.shape).to_json(), "test")).train()
    family.surveyed_rows = ROWS
    settings = {"batch_size": ROWS, "optimizer": {"name": "sgd", "lr": 1e-2, "momentum": 0.9}}
    trainer = Trainer(family, TrainConfig.parse(settings, "test"), Outlet(CPU, world))
    begin(trainer, data)
    measures = Measures(CPU, world, ROWS)
    for batch in batches(data, STEPS):
        trainer.train_step(batch, measures)
    return {name: value.detach().double() for name, value in family.state_dict().items()}


def difference(found: list[dict[str, Tensor]], alone: dict[str, Tensor]) -> float:
    return max(float((each[name] - value).abs().max()) for each in found for name, value in alone.items() if value.numel())


@pytest.mark.parametrize(("kind", "workers"), [("images", 2), ("points", 2), ("points", 3)])
def test_glow_on_several_workers_agrees_with_one(small_data_folders: dict[str, Path], gang: Gang, kind: str, workers: int) -> None:
    folder = str(small_data_folders[kind])
    found = gang.run(weights, workers, folder, kind, all_see_the_same_rows)
    assert difference(found, weights(folder, kind, all_see_the_same_rows)) < 1e-6


@pytest.mark.parametrize("kind", NETWORKS)
def test_starts_from_other_rows_are_told_apart(small_data_folders: dict[str, Path], gang: Gang, kind: str) -> None:
    folder = str(small_data_folders[kind])
    alone = weights(folder, kind, each_sees_its_own)  # one worker's own rows are all there are
    assert difference([alone], weights(folder, kind, all_see_the_same_rows)) < 1e-6
    first, second = gang.run(weights, 2, folder, kind, each_sees_its_own)
    assert difference([first], second) > 1e-2, "workers train models that differ, without an error"
    assert difference([first], alone) > 1e-2
    first, second = gang.run(weights, 2, folder, kind, the_first_tells_the_others)
    assert difference([first], second) == 0.0
    assert difference([first], alone) > 1e-2
