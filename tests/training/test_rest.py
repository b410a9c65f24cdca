"""A run asked to rest stops at one step on all workers, with a checkpoint; any number of workers goes on with the same global batches."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from components.families.model_folder import load_model
from components.training.checkpoint import CheckpointFolder
from components.training.communication import Communication
from components.training.job import TrainingJob, execute
from components.training.loop import Trainer
from components.training.outlet import Outlet
from components.training.record import read_metrics
from tests.gang import Gang

MODELS: dict[str, dict[str, Any]] = {
    "classifier": {"widths": [4, 8], "feature_dim": 8},
    "recognition": {"widths": [8], "depths": [1], "embedding_dim": 8, "loss": "cosface", "m3": 0.2},  # with a head cut over the workers
}
DATA = {"classifier": "images", "recognition": "identities"}

Diary = list[tuple[int, list[bytes]]]  # step, the rows that this worker trained


def job(family: str, run: Path, folders: dict[str, Path]) -> TrainingJob:
    train = {"steps": 14, "batch_size": 32, "log_every": 2, "checkpoint_every": 5, "optimizer": {"name": "sgd", "lr": 0.05}}
    values = {"family": family, "model": MODELS[family], "data": str(folders[DATA[family]]), "run": str(run), "train": train}
    return TrainingJob.parse(values, "test")


def trains(one: TrainingJob, rest_at_row: int | None) -> tuple[bool, Diary]:
    """Runs the job on this worker; rank 0 alone is asked to rest when so many rows were asked about, others would say no."""
    world, diary, asked = Communication.current(), [], []
    original: Callable[..., None] = Trainer.train_step

    def noted(self: Trainer, batch: Any, measures: Any) -> None:
        diary.append((self.step, [image.numpy().tobytes() for image in batch["image"]]))
        original(self, batch, measures)

    def word() -> bool:
        asked.append(1)
        return world.rank == 0 and len(asked) == rest_at_row

    Trainer.train_step = noted  # type: ignore[method-assign]
    try:
        return execute(one, Outlet(torch.device("cpu"), world, asked_to_rest=word)), diary
    finally:
        Trainer.train_step = original  # type: ignore[method-assign]


def global_batches(answers: list[tuple[bool, Diary]]) -> Diary:
    """What the workers of a group trained together, in order of rank."""
    steps = [[step for step, _ in diary] for _, diary in answers]
    assert all(each == steps[0] for each in steps)  # one step for all to stop at
    return [(step, [row for _, diary in answers for row in diary[place][1]]) for place, step in enumerate(steps[0])]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_model(str(run / "model")).state_dict()


def in_parts(gang: Gang, one: TrainingJob, parts: tuple[tuple[int, int | None], ...]) -> Diary:
    """Runs the job by groups of so many workers, all but the last asked to rest; returns all that was trained."""
    trained: Diary = []
    for workers, rest_at_row in parts:
        answers = gang.run(trains, workers, one, rest_at_row)
        assert all(ended is (rest_at_row is None) for ended, _ in answers)
        trained += global_batches(answers)
        if rest_at_row is not None:
            assert CheckpointFolder(f"{one.run}/checkpoints").steps()[-1] == trained[-1][0] + 1
    return trained


@pytest.mark.parametrize("family", list(MODELS))
def test_one_then_three_then_two_workers_train_what_one_does(
    family: str, gang: Gang, tmp_path: Path, small_data_folders: dict[str, Path]
) -> None:
    calm = in_parts(gang, job(family, tmp_path / "calm", small_data_folders), ((1, None),))
    changing = in_parts(gang, job(family, tmp_path / "changing", small_data_folders), ((1, 2), (3, 3), (2, None)))
    assert [step for step, _ in changing] == list(range(14))  # none twice
    assert changing == calm
    found = weights(tmp_path / "changing")
    for name, value in weights(tmp_path / "calm").items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0)
    rows = {name: [row["step"] for row in read_metrics(str(tmp_path / name))] for name in ("calm", "changing")}
    assert rows["changing"] == rows["calm"] == [2, 4, 5, 6, 8, 10, 12, 14]
    info = json.loads((tmp_path / "changing" / "run.json").read_text())
    assert info["sizes"] == [{"step": 0, "workers": 1}, {"step": 4, "workers": 3}, {"step": 8, "workers": 2}]


@pytest.mark.parametrize("family", list(MODELS))
def test_a_rest_between_equal_groups_changes_no_bit(family: str, gang: Gang, tmp_path: Path, small_data_folders: dict[str, Path]) -> None:
    in_parts(gang, job(family, tmp_path / "calm", small_data_folders), ((2, None),))
    in_parts(gang, job(family, tmp_path / "rested", small_data_folders), ((2, 1), (2, 3), (2, None)))
    found = weights(tmp_path / "rested")
    assert all(torch.equal(found[name], value) for name, value in weights(tmp_path / "calm").items())


def test_a_run_at_its_last_step_does_not_rest(gang: Gang, tmp_path: Path, small_data_folders: dict[str, Path]) -> None:
    one = job("classifier", tmp_path / "run", small_data_folders)
    assert all(ended for ended, _ in gang.run(trains, 2, one, 8))  # the row of the last step
    assert (tmp_path / "run" / "model" / "config.json").exists()
