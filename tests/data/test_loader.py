"""The loader: batches are those of the pure order, at any step, for any number of workers, block and shard size."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import components.data.loader as loader_module
from components.data.dataset import Dataset
from components.data.loader import Loader, evaluation_batches
from components.data.order import rows_at
from components.errors import UserError
from tests.data.samples import make, random_rows

ROWS = 100


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    make(str(tmp_path), random_rows(ROWS), rows_per_shard=16)
    return Dataset.open(str(tmp_path))


@pytest.mark.parametrize("block_bytes", [1, 5_000, 8 * 2**20])
def test_batches_are_the_rows_of_the_order(dataset: Dataset, monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr(loader_module, "BLOCK_BYTES", block_bytes)
    rows, batch_size = random_rows(ROWS), 24
    for first, last in ((0, 30), (17, 23), (1000, 1003), (5, 5)):
        batches = list(Loader(dataset, batch_size, seed=3).batches(first, last))
        assert len(batches) == last - first
        for step, batch in enumerate(batches, start=first):
            asked = rows_at(3, step * batch_size, batch_size, ROWS)
            for name, values in rows.items():
                assert torch.equal(batch[name], torch.from_numpy(values[asked])), (step, name)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_each_epoch_has_every_row_once_over_all_workers(dataset: Dataset, size: int) -> None:
    workers = [Loader(dataset, 20, 1, rank, size, lane=4).batches(0, 2 * ROWS // 20) for rank in range(size)]
    images = torch.cat([part["image"] for parts in zip(*workers, strict=True) for part in parts])
    original = sorted(random_rows(ROWS)["image"].reshape(ROWS, -1).tolist())
    for epoch in images.split(ROWS):
        assert sorted(epoch.reshape(ROWS, -1).tolist()) == original


@pytest.mark.parametrize(("batch_size", "lane"), [(24, 8), (25, 8), (26, 4)])
def test_global_batches_do_not_depend_on_the_number_of_workers(dataset: Dataset, batch_size: int, lane: int) -> None:
    def global_batches(size: int) -> list[torch.Tensor]:
        workers = [Loader(dataset, batch_size, 5, rank, size, lane).batches(2, 9) for rank in range(size)]
        return [torch.cat([part["image"] for part in parts]) for parts in zip(*workers, strict=True)]

    alone = global_batches(1)
    for size in (2, 3):
        assert all(torch.equal(a, b) for a, b in zip(alone, global_batches(size), strict=True))


def test_batches_may_be_changed_and_kept(dataset: Dataset) -> None:
    kept = []
    for batch in Loader(dataset, 16, seed=0).batches(0, 40):
        kept.append(batch["image"].clone())
        batch["image"].zero_()
        batch["weight"].mul_(2)
    again = [batch["image"] for batch in Loader(dataset, 16, seed=0).batches(0, 40)]
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


def test_leaving_early_ends_the_background_thread(dataset: Dataset) -> None:
    batches = Loader(dataset, 8, seed=0).batches(0, 10**6)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_an_error_in_the_background_reaches_the_consumer(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise UserError("the disk is gone")

    monkeypatch.setattr(dataset, "gather", fail)
    with pytest.raises(UserError, match="the disk is gone"):
        list(Loader(dataset, 8, seed=0).batches(0, 3))


def test_waiting_is_counted(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, gather = threading.Event(), dataset.gather

    def gated(*args: object) -> object:
        assert gate.wait(30)
        return gather(*args)

    monkeypatch.setattr(dataset, "gather", gated)
    loader = Loader(dataset, 8, seed=0)
    threading.Timer(0.2, gate.set).start()
    list(loader.batches(0, 2))
    assert loader.seconds_waited > 0.1


def test_too_many_workers_and_empty_data_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="global batch of 16 rows has 2 lanes of 8, too few for 3 workers; raise batch_size"):
        Loader(dataset, 16, 0, rank=0, size=3)
    make(str(tmp_path / "empty"), random_rows(3), {name: values[:0] for name, values in random_rows(1).items()})
    with pytest.raises(UserError, match="has no rows"):
        Loader(Dataset.open(str(tmp_path / "empty"), "test"), 8, 0)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("limit", [None, 0, 1, 50, 1000])
def test_evaluation_sees_every_row_once_in_order(dataset: Dataset, size: int, limit: int | None) -> None:
    batch_size, rows = 16, random_rows(ROWS)
    count = ROWS if limit is None else min(limit, ROWS)
    found: dict[int, torch.Tensor] = {}
    for rank in range(size):
        for turn, batch in enumerate(evaluation_batches(dataset, batch_size, rank, size, limit)):
            found[turn * size + rank] = batch["image"]
    whole = torch.cat([found[number] for number in sorted(found)]) if found else torch.empty(0, 3, 4, 5, dtype=torch.uint8)
    assert np.array_equal(whole.numpy(), rows["image"][:count])
