"""Preparing a data set: the same bytes with any number of workers, only what changed is made, and a failure leaves what was there."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from clusters import preprocess
from clusters.preprocess import prepare
from clusters.session import ray_cluster
from components import storage
from components.data.dataset import Dataset
from components.data.index import DatasetIndex, ShardEntry, read_whole_index, sums_file
from components.data.prepare_config import PrepareConfig
from components.data.reuse import Reuse
from components.data.shards import ShardSpec
from components.data.verify import verify_dataset
from components.data.write import shard_file
from components.errors import UserError
from tests.data.sources import encoded, pictures, write, write_idx, write_pictures
from tests.reading import note_files_read
from tests.s3 import S3Server

CONFIG = PrepareConfig(rows_per_shard=16, size=4)


@pytest.fixture(scope="module")
def cluster(s3_server: S3Server) -> Iterator[None]:
    """A Ray cluster of two CPUs, whose workers find the S3 server in the environment they were started in."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        with ray_cluster(None, cpus=2):
            yield


def content(folder: Path | str) -> dict[str, bytes]:
    return {name: storage.read_bytes(storage.join(str(folder), name)) for name in storage.list_files(str(folder))}


def modified(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_any_number_of_workers_gives_the_same_bytes(tmp_path: Path) -> None:
    write_pictures(tmp_path / "source", ("a", "b", "c"), 40)
    progress: list[tuple[int, int, int]] = []
    alone = prepare(str(tmp_path / "source"), str(tmp_path / "0"), CONFIG)
    for workers in (1, 2):
        index = prepare(str(tmp_path / "source"), str(tmp_path / str(workers)), CONFIG, workers, lambda *numbers: progress.append(numbers))
        assert index == alone
        assert content(tmp_path / str(workers)) == content(tmp_path / "0")
    shards = sum(len(entries) for entries in alone.splits.values())
    assert [done for done, total, _ in progress if total == shards] == [*range(shards + 1)] * 2
    assert progress[-1] == (shards, shards, 120)
    verify_dataset(str(tmp_path / "2"))


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_a_mistake_found_by_a_worker_arrives_as_its_own_line(tmp_path: Path) -> None:
    write_pictures(tmp_path / "source", ("a", "b"), 40)
    prepare(str(tmp_path / "source"), str(tmp_path / "out"), CONFIG)
    before = content(tmp_path / "out")
    bad = write(tmp_path / "source" / "b" / "0020b.png", encoded(pictures(1)[0])[:-20])
    with pytest.raises(UserError) as caught:
        prepare(str(tmp_path / "source"), str(tmp_path / "out"), CONFIG, workers=2)
    assert str(caught.value).startswith(f"{bad} is no readable PNG, JPEG or PGM picture")
    assert content(tmp_path / "out") == before


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_from_s3_to_s3_on_workers(s3: str, tmp_path: Path) -> None:
    write_pictures(tmp_path / "source", ("a", "b"), 20)
    for file in storage.list_files(str(tmp_path / "source")):
        storage.upload(str(tmp_path / "source" / file), f"{s3}/source/{file}")
    local = prepare(str(tmp_path / "source"), str(tmp_path / "out"), CONFIG)
    for workers in (0, 2):
        assert prepare(f"{s3}/source", f"{s3}/{workers}", CONFIG, workers) == local
        assert content(f"{s3}/{workers}") == content(tmp_path / "out")


def test_an_unchanged_source_makes_nothing_again(tmp_path: Path) -> None:
    write_idx(tmp_path / "source", "train", 60)
    first = prepare(str(tmp_path / "source"), str(tmp_path / "out"), CONFIG)
    before = modified(tmp_path / "out")
    progress: list[tuple[int, int, int]] = []
    again = prepare(str(tmp_path / "source"), str(tmp_path / "out"), CONFIG, on_progress=lambda *numbers: progress.append(numbers))
    after = modified(tmp_path / "out")
    shards = sum(len(entries) for entries in first.splits.values())
    assert again == first
    assert progress == [(shards, shards, 60)]
    assert {name for name in after if after[name] != before[name]} == {"index.json", sums_file(first)}


def test_added_files_make_only_new_shards_and_give_the_data_set_of_a_fresh_run(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    write_pictures(source, ("a", "b"), 80)
    prepare(str(source), str(out), CONFIG)
    before = modified(out)
    for number, pixels in enumerate(pictures(3, 77)):
        write(source / "b" / f"new-{number}.png", encoded(pixels))
    grown = prepare(str(source), str(out), CONFIG)
    after = modified(out)
    kept = {name for name in before if after.get(name) == before[name]}
    assert len(kept) >= len(before) - 4, "the shards of class a and most of b are untouched"
    fresh = prepare(str(source), str(tmp_path / "fresh"), CONFIG)
    assert grown == fresh
    assert content(out) == content(tmp_path / "fresh"), "shards that nothing names any more are gone"


def test_a_shard_that_was_lost_is_made_again(tmp_path: Path) -> None:
    write_idx(tmp_path / "source", "train", 60)
    index = prepare(str(tmp_path / "source"), str(tmp_path / "out"), CONFIG)
    before = content(tmp_path / "out")
    lost, short = (tmp_path / "out" / entry.file for entry in index.splits["train"][:2])
    lost.unlink()
    short.write_bytes(short.read_bytes()[:100])
    prepare(str(tmp_path / "source"), str(tmp_path / "out"), CONFIG)
    assert content(tmp_path / "out") == before


def test_a_failure_while_writing_leaves_the_earlier_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path / "source", "train", 60)
    prepare(str(tmp_path / "source"), str(tmp_path / "out"), CONFIG)
    before = content(tmp_path / "out")
    write_idx(tmp_path / "source", "train-more", 60, 1)
    written, write_shard = [], preprocess.write_shard

    def fail_at_third(*args: object) -> object:
        if len(written) == 2:
            raise UserError("the disk is full")
        written.append(write_shard(*args))
        return written[-1]

    monkeypatch.setattr(preprocess, "write_shard", fail_at_third)
    with pytest.raises(UserError, match="the disk is full"):
        prepare(str(tmp_path / "source"), str(tmp_path / "out"), CONFIG)
    assert len(written) == 2
    assert content(tmp_path / "out") == before
    dataset = Dataset.open(str(tmp_path / "out"))
    assert len(dataset.take(np.arange(dataset.num_rows))["label"]) == dataset.num_rows


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_two_who_prepare_one_place_take_turns(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    out = str(tmp_path / "out") if kind == "local" else f"{request.getfixturevalue('s3')}/out"
    write_idx(tmp_path / "source", "train", 60)
    owners: list[str] = []
    inside, go_on = threading.Event(), threading.Event()

    def pause(done: int, total: int, rows: int) -> None:
        inside.set()
        assert go_on.wait(60)

    def wait(owner: str) -> None:
        owners.append(owner)
        go_on.set()

    first = threading.Thread(target=prepare, args=(str(tmp_path / "source"), out, CONFIG, 0, pause))
    first.start()
    assert inside.wait(60)
    progress: list[tuple[int, int, int]] = []
    prepare(str(tmp_path / "source"), out, CONFIG, 0, lambda *numbers: progress.append(numbers), wait)
    first.join()
    assert [owner.split(" on ")[0] for owner in owners] == [f"process {os.getpid()}"]
    assert [done == total for done, total, _ in progress] == [True], "the second found all made"
    assert not [file for file in storage.list_files(out.removesuffix("/out")) if file.endswith(".lock")]
    verify_dataset(out)


def test_an_index_of_another_version_is_replaced(tmp_path: Path) -> None:
    write_idx(tmp_path / "source", "train", 60)
    index = prepare(str(tmp_path / "source"), str(tmp_path / "out"), CONFIG)
    storage.write_json(str(tmp_path / "out" / "index.json"), index.to_json() | {"format_version": 99})
    with pytest.raises(UserError, match="format_version 99"):
        Dataset.open(str(tmp_path / "out"))
    prepare(str(tmp_path / "source"), str(tmp_path / "out"), CONFIG)
    assert read_whole_index(str(tmp_path / "out")) == index


def test_files_that_are_not_ours_stay(tmp_path: Path) -> None:
    write_idx(tmp_path / "source", "train", 60)
    write(tmp_path / "out" / "notes.txt", b"mine")
    write(tmp_path / "out" / "shard-of-something-else.arrow", b"mine")
    write(tmp_path / "out" / "shard-0123456789abcdef.arrow", b"left over by a run that was killed")
    prepare(str(tmp_path / "source"), str(tmp_path / "out"), CONFIG)
    names = set(storage.list_names(str(tmp_path / "out")))
    assert {"notes.txt", "shard-of-something-else.arrow"} <= names
    assert "shard-0123456789abcdef.arrow" not in names


def test_a_single_process_needs_neither_ray_nor_torch() -> None:
    program = "import clusters.preprocess, sys; assert not {'ray', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


def grow(source: Path) -> None:
    for number, pixels in enumerate(pictures(3, 77)):
        write(source / "b" / f"0040-{number}.png", encoded(pixels))


def shards_written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The specifications of the shards that are made in this process from now on."""
    made, write_shard = [], preprocess.write_shard

    def noting(spec: ShardSpec, out: str) -> ShardEntry:
        made.append(spec.fingerprint)
        return write_shard(spec, out)

    monkeypatch.setattr(preprocess, "write_shard", noting)
    return made


def test_shards_of_earlier_data_sets_are_carried_over_and_the_result_is_that_of_a_fresh_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, old, out = (tmp_path / name for name in ("source", "old", "out"))
    write_pictures(source, ("a", "b"), 80)
    before = prepare(str(source), str(old), CONFIG)
    kept = content(old)
    write_idx(tmp_path / "other", "train", 60)
    prepare(str(tmp_path / "other"), str(tmp_path / "of other data"), CONFIG)
    grow(source)
    fresh = prepare(str(source), str(tmp_path / "fresh"), CONFIG)
    made = shards_written(monkeypatch)
    datasets = tuple(str(tmp_path / name) for name in ("of other data", "nowhere", "old"))
    assert prepare(str(source), str(out), CONFIG, reuse=Reuse(datasets=datasets)) == fresh
    assert content(out) == content(tmp_path / "fresh")
    assert set(made) == set(specs(fresh)) - set(specs(before))
    assert 1 <= len(made) <= 6
    shared = set(specs(before)) & set(specs(fresh))
    assert all((old / shard_file(spec)).samefile(out / shard_file(spec)) for spec in shared)
    assert content(old) == kept


def specs(index: DatasetIndex) -> list[str]:
    return [entry.spec for entries in index.splits.values() for entry in entries]


@pytest.mark.parametrize("damage", ["short", "missing", "index", "index of another version"])
def test_what_is_damaged_is_not_carried_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    source, old, out = (tmp_path / name for name in ("source", "old", "out"))
    write_idx(source, "train", 60)
    index = prepare(str(source), str(old), CONFIG)
    whole, shard = content(old), old / index.splits["train"][1].file
    if damage == "short":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif damage == "missing":
        shard.unlink()
    elif damage == "index":
        (old / "index.json").write_text("{")
    else:
        storage.write_json(str(old / "index.json"), index.to_json() | {"format_version": 99})
    made = shards_written(monkeypatch)
    prepare(str(source), str(out), CONFIG, reuse=Reuse(datasets=(str(old),)))
    assert content(out) == whole
    assert set(made) == ({index.splits["train"][1].spec} if damage in ("short", "missing") else set(specs(index)))


def test_a_failure_leaves_nothing_of_what_was_carried_over(tmp_path: Path) -> None:
    source, old, out = (tmp_path / name for name in ("source", "old", "out"))
    write_pictures(source, ("a", "b"), 40)
    prepare(str(source), str(old), CONFIG)
    kept = content(old)
    write(source / "b" / "0020b.png", encoded(pictures(1)[0])[:-20])
    with pytest.raises(UserError, match=r"0020b\.png is no readable"):
        prepare(str(source), str(out), CONFIG, reuse=Reuse(datasets=(str(old),)))
    assert content(out) == {}
    assert content(old) == kept


def test_on_s3_shards_are_copied_by_the_server(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    write_pictures(source, ("a", "b"), 40)
    old = prepare(str(source), f"{s3}/old", CONFIG)
    grow(source)
    prepare(str(source), str(tmp_path / "fresh"), CONFIG)
    made, read = shards_written(monkeypatch), note_files_read(monkeypatch)
    prepare(str(source), f"{s3}/out", CONFIG, reuse=Reuse(datasets=(f"{s3}/old",)))
    assert 1 <= len(made) <= 3
    assert [url for url in read if url.startswith("s3://")] == [f"{s3}/old/index.json", f"{s3}/old/{sums_file(old)}"]
    assert content(f"{s3}/out") == content(tmp_path / "fresh")
