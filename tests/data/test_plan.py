"""Plans: shards depend on content alone, adding files remakes only what they fall in, and every row has one fixed place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clusters.preprocess import prepare
from components import storage
from components.data.dataset import Dataset
from components.data.index import sums_file
from components.data.plan import plan
from components.data.prepare_config import PrepareConfig
from components.data.selection import cut_names, first_words, words_of
from components.data.sources.known import KnownFiles
from components.data.verify import verify_dataset
from tests.data.sources import write_idx, write_parquet, write_pictures, write_tar
from tests.reading import note_files_read


def specs(source: Path, **options: object) -> set[str]:
    planned = plan(str(source), PrepareConfig(**options))
    return {spec.fingerprint for shards in planned.shards.values() for spec in shards}


@pytest.mark.parametrize("most", [1, 2, 7, 100])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 50, 1000])
def test_cuts_cover_all_names_in_bounded_runs(count: int, most: int) -> None:
    runs = cut_names([f"{number:05d}" for number in range(count)], most)
    assert [number for run in runs for number in range(count)[run]] == list(range(count))
    assert all(1 <= run.stop - run.start <= most for run in runs)
    if count > most:
        assert count / len(runs) > most / 5, "runs are not needlessly short"


def test_a_name_more_or_less_changes_few_runs() -> None:
    names = [f"{number:06d}" for number in range(0, 40_000, 2)]

    def runs(names: list[str]) -> set[tuple[str, ...]]:
        return {tuple(names[run]) for run in cut_names(names, 100)}

    before, changed = runs(names), []
    for added in np.random.default_rng(0).integers(0, 20_000, 60).tolist():
        changed.append(len(runs(sorted([*names, f"{2 * added + 1:06d}"])) - before))
    # one run, or two where it is parted; a cut that moves higher up is rare
    assert np.median(changed) <= 2
    assert np.mean(changed) < 0.05 * len(before)


def test_adding_a_picture_remakes_only_the_shard_it_falls_in(tmp_path: Path) -> None:
    write_pictures(tmp_path, ("a", "b"), 150)
    before = specs(tmp_path, rows_per_shard=16)
    write_pictures(tmp_path / "more", ("a",), 1, seed=9)
    (tmp_path / "more" / "a" / "0000.png").rename(tmp_path / "a" / "0077b.png")
    shutil.rmtree(tmp_path / "more")
    after = specs(tmp_path, rows_per_shard=16)
    assert 1 <= len(after - before) <= 2
    assert len(before - after) == 1


ADD_FILE: dict[str, Callable[[Path, str, int], object]] = {
    "idx": lambda folder, name, seed: write_idx(folder, name, 40, seed),
    "tar": lambda folder, name, seed: write_tar(folder / f"{name}.tar", 40, seed),
    "parquet": lambda folder, name, seed: write_parquet(folder / f"{name}.parquet", age=np.arange(40) + seed),
    "npz": lambda folder, name, seed: (folder.mkdir(exist_ok=True), np.savez(folder / f"{name}.npz", age=np.arange(40) + seed)),
}


@pytest.mark.parametrize("kind", ADD_FILE)
def test_adding_a_file_of_rows_makes_only_new_shards(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source"
    for seed, name in enumerate(("train-b", "train-d")):
        ADD_FILE[kind](source, name, seed)
    before = specs(source, rows_per_shard=16)
    ADD_FILE[kind](source, "train-c", 2)
    after = specs(source, rows_per_shard=16)
    assert before < after
    moved = tmp_path / "elsewhere"
    source.rename(moved)
    assert specs(moved, rows_per_shard=16) == after, "the place of a source does not matter"


def test_a_day_of_pictures_makes_as_many_shards_however_many_days_there_are() -> None:
    """Names by date, at the end of each of four classes: what changes are the shards there."""

    def runs(days: int) -> set[tuple[str, ...]]:
        names = [f"{name}/{day:04d}-{number:03d}" for name in "abcd" for day in range(days) for number in range(32)]
        return {tuple(names[run]) for run in cut_names(names, 32)}

    made = {days: [len(runs(day + 1) - runs(day)) for day in range(days, days + 6)] for days in (4, 40, 150)}
    assert all(np.median(counts) <= 16 for counts in made.values())  # two runs a day and class where they are of three quarters the length
    assert np.mean(made[150]) < 0.05 * len(runs(150))


def test_words_of_many_files_are_those_of_each() -> None:
    paths = ["a/1.png", "a/2.png", "ü.png"]
    each = [words_of(7, path, np.zeros(1, np.int64))[0] for path in paths]
    assert first_words(7, paths).tolist() == each
    assert first_words(7, []).tolist() == []


def test_a_limit_moves_with_the_data_and_remakes_what_it_chooses_from(tmp_path: Path) -> None:
    """What `limit` takes are the rows with the smallest words of all: its bound is part of every shard's specification."""
    write_idx(tmp_path, "train-a", 200)
    before = specs(tmp_path, rows_per_shard=16, limit=10)
    write_idx(tmp_path, "train-b", 40, 1)
    after = specs(tmp_path, rows_per_shard=16, limit=10)
    assert not before & after
    assert len(after) <= 2 * 10, "no more shards than rows, in either split"


@pytest.mark.parametrize("kind", [*ADD_FILE, "pictures"])
def test_known_files_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    source, cache, config = tmp_path / "source", str(tmp_path / "known.json"), PrepareConfig(rows_per_shard=16)

    def add(name: str, seed: int) -> None:
        if kind == "pictures":
            write_pictures(source, (name,), 20, seed)
        else:
            ADD_FILE[kind](source, f"{name}-train", seed)

    for seed, name in enumerate("bc"):
        add(name, seed)
    for file in source.rglob("*"):
        os.utime(file, (1_000_000_000,) * 2)
    files = KnownFiles(cache)
    planned = plan(str(source), config, files)
    files.save()
    assert planned == plan(str(source), config)
    read = note_files_read(monkeypatch)
    assert plan(str(source), config, KnownFiles(cache)) == planned
    assert read == [cache]
    add("d", 2)
    grown = plan(str(source), config, KnownFiles(cache))
    assert {os.path.relpath(url, source)[0] for url in read[2:]} == {"d"}
    assert grown == plan(str(source), config) != planned


def test_options_and_content_change_specifications_that_they_concern(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", 40)
    write_idx(tmp_path, "t10k", 40, 1)
    plain = specs(tmp_path)
    assert specs(tmp_path, class_names=["a", "b", "c"]) == plain
    assert specs(tmp_path, seed=3) == plain, "a seed that chooses nothing changes nothing"
    assert not specs(tmp_path, size=4) & plain
    assert not specs(tmp_path, channels=3) & plain
    assert len(specs(tmp_path, limit=10) & plain) == 0
    write_idx(tmp_path, "t10k", 40, 2)
    assert len(specs(tmp_path) & plain) == 1


@pytest.mark.parametrize("kind", ["idx", "pictures"])
def test_rows_keep_their_split_when_files_are_added(tmp_path: Path, kind: str) -> None:
    def add(name: str, seed: int) -> None:
        if kind == "idx":
            write_idx(tmp_path / "source", name, 300, seed)
        else:
            write_pictures(tmp_path / "source", (name,), 300, seed)

    def images(split: str) -> set[bytes]:
        dataset = Dataset.open(str(tmp_path / "out"), split)
        return {image.tobytes() for image in dataset.take(np.arange(dataset.num_rows))["image"]}

    config = PrepareConfig(holdout=0.2, rows_per_shard=64)
    add("b", 1)
    prepare(str(tmp_path / "source"), str(tmp_path / "out"), config)
    train, test = images("train"), images("test")
    assert len(train) + len(test) == 300
    assert not train & test
    assert 30 <= len(test) <= 90  # 60 of 300, four standard deviations each way
    add("a", 2)
    prepare(str(tmp_path / "source"), str(tmp_path / "out"), config)
    assert train < images("train")
    assert test < images("test")


@pytest.mark.parametrize("kind", ["idx", "pictures"])
def test_limit_takes_that_many_at_random_and_holdout_stays_apart(tmp_path: Path, kind: str) -> None:
    if kind == "idx":
        write_idx(tmp_path / "source", "train", 300)
    else:
        write_pictures(tmp_path / "source", ("a", "b", "c"), 100)

    def images(split: str, **options: object) -> set[bytes]:
        prepare(str(tmp_path / "source"), str(tmp_path / "out"), PrepareConfig(holdout=0.3, rows_per_shard=64, **options))
        dataset = Dataset.open(str(tmp_path / "out"), split)
        rows = dataset.take(np.arange(dataset.num_rows))
        assert len(np.unique(rows["label"])) == 3, "every class is among those chosen"
        return {image.tobytes() for image in rows["image"]}

    whole, held_out = images("train"), images("test")
    some, some_held_out = images("train", limit=40), images("test", limit=40)
    assert len(some) == len(some_held_out) == 40
    assert some < whole
    assert some_held_out < held_out
    assert some < images("train", limit=60), "a larger limit adds rows"
    assert some != images("train", limit=40, seed=1)


def test_verify_finds_what_opening_cannot(tmp_path: Path) -> None:
    write_idx(tmp_path / "source", "train", 60)
    out = tmp_path / "out"
    index = prepare(str(tmp_path / "source"), str(out), PrepareConfig(rows_per_shard=16))
    verified = verify_dataset(str(out))
    assert (verified.fingerprint, verified.rows) == (index.fingerprint, 60)
    shard = out / index.splits["train"][1].file
    data = bytearray(shard.read_bytes())
    pixels = Dataset.open(str(out)).take(np.array([index.splits["train"][0].rows]))["image"].tobytes()
    data[data.index(pixels)] ^= 1  # the file still opens
    shard.write_bytes(data)
    Dataset.open(str(out))
    altered = storage.sha256_file(str(shard))
    with pytest.raises(ValueError, match=rf"{shard.name} has .* sha256 {altered}, its index says .* {index.splits['train'][1].sha256}"):
        verify_dataset(str(out))


def test_verify_computes_figures_again(tmp_path: Path) -> None:
    write_idx(tmp_path / "source", "train", 60)
    index = prepare(str(tmp_path / "source"), str(tmp_path / "out"), PrepareConfig())
    place = str(tmp_path / "out" / sums_file(index))
    sums = storage.read_json(place)
    altered = sums | {(first := index.splits["train"][0].file): sums[first] | {"classes": {"0": 61}}}
    storage.write_json(place, altered)
    with pytest.raises(ValueError, match="its sums are not those of its rows"):
        verify_dataset(str(tmp_path / "out"))
    storage.write_json(place, sums)
    values = index.to_json()
    values["statistics"]["train"]["columns"]["image"]["mean"] = [0.5]
    storage.write_json(str(tmp_path / "out" / "index.json"), values)
    with pytest.raises(ValueError, match=r"statistics in index\.json do not follow"):
        verify_dataset(str(tmp_path / "out"))
