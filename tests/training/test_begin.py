"""What a family does outside the gradient: it begins from the first training rows, the same on every worker, and projects after a step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from components.config import Config
from components.data.dataset import Dataset
from components.data.order import rows_at
from components.families.contract import Batch, Family, Phase, PhaseOutput
from components.training.communication import Communication
from components.training.config import TrainConfig
from components.training.context import Context
from components.training.loop import Trainer
from components.training.measures import Measures
from components.training.outlet import Outlet
from tests.gang import Gang

CPU = torch.device("cpu")
CLIP = 0.01


class Centred(Family):
    """Learns where points are. It begins at their mean, but for what a worker's rank adds, and is clipped to a box after each step."""

    Config = Config
    phases = (Phase("centred", ("net",)),)
    averaged = ("net",)
    headline = ("distance", "min")

    def __init__(self, surveyed: int, clip: float | None = None) -> None:
        super().__init__(Config())
        self.net = nn.Linear(2, 1, bias=False)
        self.surveyed_rows, self.clip = surveyed, clip

    def begin(self, rows: Batch) -> None:
        self.points = rows["point"]
        self.net.weight.copy_(rows["point"].mean(0)[None] + 100 * Communication.current().rank)

    def loss(self, phase: str, batch: Batch, ctx: Context) -> PhaseOutput:
        return PhaseOutput((batch["point"] - self.net.weight).square().mean())

    def after_step(self, phase: str, stats: dict[str, Tensor], ctx: Context) -> None:
        if self.clip is not None:
            self.net.weight.clamp_(-self.clip, self.clip)


def begun(folder: str, surveyed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The rows that this worker's family was given, its weight after all, and the average that training would begin with."""
    family = Centred(surveyed)
    trainer = Trainer(family, TrainConfig(batch_size=48, ema_decay=0.9, seed=3), Outlet(CPU, Communication.current()))
    trainer.begin(Dataset.open(folder, "train"))
    assert trainer.average is not None
    return family.points, family.net.weight.detach(), trainer.average.average["net.weight"]


def test_every_worker_begins_with_the_same_first_rows(small_data_folders: dict[str, Path], gang: Gang) -> None:
    folder, surveyed = str(small_data_folders["points"]), 100  # two batches and a part of the third
    data = Dataset.open(folder, "train")
    expected = torch.from_numpy(data.take(rows_at(3, 0, surveyed, data.num_rows))["point"])
    mean = expected.mean(0)[None]
    for points, weight, average in [begun(folder, surveyed), *gang.run(begun, 3, folder, surveyed)]:
        assert torch.equal(points, expected)
        assert torch.equal(weight, mean), "all have what rank 0 made"
        assert torch.equal(average, mean)


def test_a_family_that_surveys_nothing_does_not_begin(small_data_folders: dict[str, Path]) -> None:
    family = Centred(0)
    Trainer(family, TrainConfig(), Outlet(CPU)).begin(Dataset.open(str(small_data_folders["points"])))
    assert not hasattr(family, "points")


@pytest.mark.parametrize("decay", [None, 0.5])
def test_weights_are_projected_before_they_are_averaged(decay: float | None) -> None:
    family = Centred(0, clip=CLIP)
    trainer = Trainer(family, TrainConfig.parse({"batch_size": 8, "ema_decay": decay, "optimizer": {"lr": 1.0}}, "test"), Outlet(CPU))
    family.net.weight.data.zero_()
    if trainer.average:
        trainer.average.average["net.weight"].zero_()
    measures = Measures(CPU, trainer.world, 8)
    for _ in range(3):
        trainer.train_step({"point": torch.full((8, 2), 5.0)}, measures)
        assert torch.equal(family.net.weight.detach(), torch.full((1, 2), CLIP))
    if trainer.average:
        average = trainer.average.average["net.weight"]
        assert (average > 0).all()
        assert (average <= CLIP).all()
