"""A source that grows day by day, and schedules over it: pictures of the shipped set as PNG files in class folders, tiny classifiers."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipelines.console import Console
from pipelines.schedule.config import ScheduleConfig
from pipelines.schedule.decision import Decision
from pipelines.schedule.retrain import retrain
from pipelines.store import Store
from pipelines.tracking_server import connect
from pipelines.workers import Workers
from tests.pipelines.world import png
from tests.small_data import shipped_images

CLASSES = 4
TINY = {
    "images.holdout": 0.3,
    "model.model.widths": [8],
    "model.model.feature_dim": 16,
    "model.model.dropout": 0.0,
    "model.train.batch_size": 32,
    "model.train.warmup_steps": 0,
    "model.train.ema_decay": None,
    "model.train.optimizer.lr": 0.01,
}
STEPS = "model.train.steps"
IMAGES, LABELS = shipped_images("train", 6000)
OF_CLASSES = np.flatnonzero(LABELS < CLASSES)


def add_pictures(folder: Path, first: int, count: int, labels: Literal["true", "shuffled", "swapped"] = "true") -> None:
    """Pictures `first` to `first + count` of the four classes, each in the folder of its class; shuffled: of any; swapped: of the next."""
    rows = OF_CLASSES[first : first + count]
    wrong = {"shuffled": np.random.default_rng(first).permutation(LABELS[rows]), "swapped": (LABELS[rows] + 1) % CLASSES}
    for place, (row, label) in enumerate(zip(rows, wrong.get(labels, LABELS[rows]), strict=True), start=first):
        file = folder / f"class{label}" / f"{place:05d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(IMAGES[row, 0]))


@functools.cache
def _empty_database() -> bytes:
    """MLflow's tables, whose making takes a second."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "mlflow.db"
        connect(f"sqlite:///{place}").search_experiments()
        return place.read_bytes()


def new_store(folder: Path) -> Store:
    """An empty store with a database of its own."""
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(_empty_database())
    return Store(str(folder))


def schedule(
    source: Path, name: str = "nightly", steps: int = 30, settings: Mapping[str, Any] | None = None, **values: Any
) -> ScheduleConfig:
    return ScheduleConfig.parse(
        {
            "name": name,
            "source": str(source),
            "set": {**TINY, STEPS: steps, **(settings or {})},
            "workers": 0,
            "trigger": {"new_data": True},
            **{"gate": {"block_rows": 4}, **values},
        },
        "test",
    )


def run(config: ScheduleConfig, run_id: str, store: Store) -> Decision:
    with Workers(0) as workers:
        return retrain(config, run_id, store, workers, Console(quiet=True), f"raymill schedule run {config.name}")
