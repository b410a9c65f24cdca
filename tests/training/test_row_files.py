"""Rows written by one number of workers and read by another: the same bits, only the files that are needed, and a clear word when not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from components.errors import UserError
from components.networks.class_rows import ClassRows, rows_owned
from components.training.checkpoint import CheckpointFolder
from components.training.communication import Communication
from components.training.row_files import Rows, RowSlice, read_rows
from tests.gang import Gang

CLASSES, DIM = 11, 4


def whole() -> torch.Tensor:
    return torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(0))


def reshard(url: str, step: int) -> torch.Tensor:
    """Reads this worker's rows from the last checkpoint, or cuts them from the whole, and saves them as the next one."""
    world = Communication.current()
    span = rows_owned(world.rank, world.size, CLASSES)
    with world.apart() as writers:
        folder = CheckpointFolder(url, keep_last=9, writers=writers)
        found = folder.latest({"head": span}) if step > 1 else None
        rows: Rows = found.rows if found is not None else {"head": RowSlice(*span, {"model/weight": whole()[slice(*span)]})}
        folder.save(step, "recognition", {"model": {}, "optimizer": {"count": torch.ones(1)}}, None, rows)
        folder.close()
    return rows["head"].tensors["model/weight"]


def test_two_then_three_then_one_worker_keep_every_bit(gang: Gang, tmp_path: Path) -> None:
    for step, workers in ((1, 2), (2, 3), (3, 1), (4, 4)):
        rows = torch.cat(gang.run(reshard, workers, str(tmp_path), step))
        assert torch.equal(rows, whole())
        x = torch.randn(5, DIM, generator=torch.Generator().manual_seed(1))
        assert torch.equal(x @ rows.T, x @ whole().T)


def test_altered_and_missing_rows_are_named(gang: Gang, tmp_path: Path) -> None:
    gang.run(reshard, 2, str(tmp_path), 1)
    folder = tmp_path / "step_00000001"
    manifest = json.loads((folder / "checkpoint.json").read_text())
    half = {file: held for file, held in manifest["rows"].items() if "00001-of" in file}
    with pytest.raises(UserError, match="rows 0 to 11"):
        read_rows(str(folder), half, manifest["sha256"], {"head": (0, CLASSES)})
    file = next(folder.glob("rows-00000*"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="altered"):
        CheckpointFolder(str(tmp_path)).read(1, {"head": (0, 2)})
    assert CheckpointFolder(str(tmp_path)).read(1, {"head": (7, 9)}).rows["head"].tensors["model/weight"].shape == (2, DIM)


def test_initial_rows_do_not_depend_on_the_number_of_workers() -> None:
    def rows(rank: int, size: int) -> torch.Tensor:
        head = ClassRows(3000, DIM)
        head.cut(rank, size, seed=7)
        return head.weight.detach()

    assert torch.equal(torch.cat([rows(rank, 3) for rank in range(3)]), rows(0, 1))
    assert rows(0, 1).std().item() == pytest.approx(DIM**-0.5, rel=0.05)
    assert [rows_owned(rank, 3, 2) for rank in range(3)] == [(0, 1), (1, 2), (2, 2)]
