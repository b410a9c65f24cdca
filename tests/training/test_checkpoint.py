"""Checkpoints are whole or absent, free of pickle, kept by age and by score, and tell when they were altered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from components.errors import UserError
from components.training.checkpoint import COMMIT, CheckpointFolder


def state(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"w": torch.full((3,), value)}, "optimizer": {"phase/w/step": torch.tensor(value)}}


def test_round_trip_and_background_write(tmp_path: Path) -> None:
    folder = CheckpointFolder(str(tmp_path))
    weights = state(1.0)
    folder.save(5, "vqvae", weights)
    weights["model"]["w"].fill_(9.0)  # training goes on while the write is under way
    folder.close()
    found = CheckpointFolder(str(tmp_path)).latest()
    assert found is not None
    assert (found.step, found.family) == (5, "vqvae")
    assert torch.equal(found.state["model"]["w"], torch.ones(3))
    assert {path.suffix for path in tmp_path.rglob("*.*")} == {".safetensors", ".json"}


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(str(tmp_path), keep_last=2, keep_best=1, best_is="min")
    for step, score in ((1, 0.5), (2, 0.1), (3, 0.3), (4, 0.2), (5, None)):
        folder.save(step, "f", state(step), score)
    folder.close()
    assert folder.steps() == [2, 4, 5]
    best = folder.best()
    assert best is not None
    assert best.step == 2


def test_a_folder_without_its_commit_is_no_checkpoint(tmp_path: Path) -> None:
    folder = CheckpointFolder(str(tmp_path), keep_last=2)
    folder.save(1, "f", state(1.0))
    folder.save(2, "f", state(2.0))
    folder.close()
    (tmp_path / "step_00000002" / COMMIT).unlink()
    assert folder.steps() == [1]
    again = CheckpointFolder(str(tmp_path), keep_last=2)
    again.save(2, "f", state(3.0))
    again.close()
    assert again.read(2).state["model"]["w"][0] == 3.0


def test_altered_and_foreign_checkpoints_are_named(tmp_path: Path) -> None:
    folder = CheckpointFolder(str(tmp_path))
    folder.save(1, "f", state(1.0))
    folder.close()
    file = tmp_path / "step_00000001" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"model\.safetensors was altered: sha256 .*, expected .*; remove"):
        folder.latest()
    commit = tmp_path / "step_00000001" / COMMIT
    commit.write_text(json.dumps(json.loads(commit.read_text()) | {"format_version": 99}))
    with pytest.raises(UserError, match="format version 99"):
        folder.latest()


def test_a_failed_write_is_raised_by_the_next_call(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    folder = CheckpointFolder(str(tmp_path / "file"))
    folder.save(1, "f", state(1.0))
    with pytest.raises(UserError):
        folder.wait()
