"""One trial in this process: the bits of plain training, stopped when told, taken up again, and what it makes of divergence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from components.errors import UserError
from components.sweep.trial import Guide, Outcome, Trial, is_evaluation, run_here, run_trial
from components.training.job import TrainingJob, execute
from components.training.outlet import Outlet, Row

HERE = Outlet(torch.device("cpu"))


def job(folder: Path, data: Path, **train: Any) -> TrainingJob:
    settings = {
        "steps": 12,
        "batch_size": 32,
        "log_every": 2,
        "checkpoint_every": 4,
        "evaluate_every": 4,
        "optimizer": {"lr": 0.01},
    } | train
    model = {"widths": [4, 8], "feature_dim": 8}
    return TrainingJob.parse({"family": "classifier", "model": model, "train": settings, "data": str(data), "run": str(folder)}, "test")


def same(a: Path, b: Path) -> bool:
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (a, b))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def until(step: int, rows: list[Row]) -> Any:
    """A reporter that keeps rows and stops at `step`."""

    def report(row: Row) -> bool:
        rows.append(row)
        return row["step"] < step

    return report


def test_a_trial_has_the_bits_of_training_and_tells_its_scores(tmp_path: Path, small_data_folders: dict[str, Path]) -> None:
    rows: list[Row] = []
    outcome = run_trial(job(tmp_path / "trial", small_data_folders["images"]), HERE, until(99, rows))
    execute(job(tmp_path / "plain", small_data_folders["images"]), HERE)
    assert same(tmp_path / "trial", tmp_path / "plain")
    assert outcome is not None
    assert outcome.state == "finished"
    assert [row["step"] for row in rows if is_evaluation(row)] == [4, 8, 12]
    assert outcome.scores["accuracy"] == rows[-1]["held_out.accuracy"]


def test_a_stopped_trial_goes_on_with_the_same_bits_and_tells_earlier_scores_again(
    tmp_path: Path, small_data_folders: dict[str, Path]
) -> None:
    data, first, second = small_data_folders["images"], [], []
    assert run_trial(job(tmp_path / "trial", data), HERE, until(8, first)) is None
    assert first[-1]["step"] == 8
    assert not (tmp_path / "trial" / "model").exists()
    outcome = run_trial(job(tmp_path / "trial", data), HERE, until(99, second))
    execute(job(tmp_path / "plain", data), HERE)
    assert same(tmp_path / "trial", tmp_path / "plain")
    scores = {row["step"]: row["held_out.nll"] for row in first + second if is_evaluation(row)}
    assert outcome is not None
    assert sorted(scores) == [4, 8, 12]
    assert [row["step"] for row in second if is_evaluation(row)] == [4, 8, 12]
    again = []
    assert run_trial(job(tmp_path / "trial", data), HERE, until(99, again)) == outcome  # finished: nothing runs, all is told
    assert {row["step"]: row["held_out.nll"] for row in again} == scores


def test_a_checkpoint_without_the_scores_before_it_is_not_gone_on_from(tmp_path: Path, small_data_folders: dict[str, Path]) -> None:
    data, rows = small_data_folders["images"], []
    run_trial(job(tmp_path / "trial", data), HERE, until(8, []))
    for file in (tmp_path / "trial" / "metrics").iterdir():
        file.unlink()
    run_trial(job(tmp_path / "trial", data), HERE, until(99, rows))
    assert [row["step"] for row in rows if is_evaluation(row)] == [4, 8, 12]


def test_divergence_is_an_outcome_and_a_mistake_is_not(tmp_path: Path, small_data_folders: dict[str, Path]) -> None:
    wild = job(tmp_path / "wild", small_data_folders["images"], optimizer={"name": "sgd", "lr": 1e30}, clip_norm=None)
    outcome = run_trial(wild, HERE, lambda row: True)
    assert outcome is not None
    assert outcome.state == "failed"
    assert "not finite" in outcome.problem
    with pytest.raises(UserError, match="no data set"):
        run_trial(job(tmp_path / "lost", tmp_path), HERE, lambda row: True)


class Listed(Guide):
    """A guide with a list of jobs, which stops trial 1 at its first scores."""

    def __init__(self, jobs: list[TrainingJob]) -> None:
        self._jobs, self._next = jobs, 0
        self.heard: list[Any] = []

    def next(self) -> Trial | None:
        self._next += 1
        return Trial(self._next - 1, self._jobs[self._next - 1])

    def exhausted(self) -> bool:
        return self._next == len(self._jobs)

    def reports(self, number: int, row: Row) -> bool:
        self.heard.append((number, row["step"]))
        return number != 1

    def ends(self, number: int, outcome: Outcome) -> None:
        self.heard.append((number, outcome.state))


def test_trials_one_after_another(tmp_path: Path, small_data_folders: dict[str, Path]) -> None:
    guide = Listed([job(tmp_path / str(n), small_data_folders["images"], steps=8) for n in range(3)])
    run_here(guide)
    assert guide.heard == [(0, 4), (0, 8), (0, "finished"), (1, 4), (2, 4), (2, 8), (2, "finished")]
