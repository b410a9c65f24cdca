"""Running again after a day of new data: the old files are not read, their shards are carried over, and the artifact is a fresh run's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from clusters import preprocess
from components import storage
from components.config import Config, fingerprint
from components.data.prepare_config import PrepareConfig
from components.errors import UserError
from pipelines.source import SourceReader
from pipelines.stage import Pipeline
from pipelines.store import Artifact, Store
from pipelines.tokens import images
from pipelines.workers import Workers
from tests.data.sources import encoded, pictures, write, write_tar
from tests.reading import note_files_read

CLASSES = ("cats", "dogs")


class DataConfig(Config):
    """A pipeline that ends with its data."""

    data: str
    images: PrepareConfig = PrepareConfig(rows_per_shard=16)


PREPARED = Pipeline("prepared", "Pictures alone.", DataConfig, [images], {})


class Quiet:
    """Nobody is told."""

    def begins(self, stage: str) -> None: ...
    def reports(self, stage: str, row: Mapping[str, Any]) -> None: ...
    def waits(self, stage: str, owner: str) -> None: ...
    def ends(self, stage: str, artifact: Artifact, made: bool) -> None: ...


def run(data: str, store: str, **options: object) -> tuple[Artifact, bool]:
    with Workers(0) as workers:
        config = DataConfig(data=data, images=PrepareConfig(rows_per_shard=16, **options))
        return PREPARED.run(config, Store(store), workers, Quiet(), "")["images"]


def add_days(data: str, first: int, last: int) -> None:
    """Twenty pictures a day and class, by date; as old as files of the real world are."""
    for day in range(first, last):
        for number, name in enumerate(CLASSES):
            for index, pixels in enumerate(pictures(20, 2 * day + number)):
                place = f"{data}/{name}/{day:03d}-{index:02d}.png"
                if storage.is_remote(place):
                    storage.write_bytes(place, encoded(pixels))
                else:
                    write(Path(place), encoded(pixels))
                    os.utime(place, (1_000_000_000,) * 2)


def content(artifact: Artifact) -> dict[str, bytes]:
    return {file: storage.read_bytes(storage.join(artifact.url, file)) for file in artifact.manifest.files}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by the specification of every shard that is made."""
    specs, write_shard = [], preprocess.write_shard

    def noting(spec: Any, out: str) -> Any:
        specs.append(spec.fingerprint)
        return write_shard(spec, out)

    monkeypatch.setattr(preprocess, "write_shard", noting)
    return specs


def test_a_new_day_reads_the_new_files_and_makes_their_shards(tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    data, store = str(tmp_path / "data"), str(tmp_path / "store")
    add_days(data, 0, 10)
    run(data, store)
    all_shards = len(made)
    add_days(data, 10, 11)
    made.clear()
    read = note_files_read(monkeypatch)
    second, was_made = run(data, store)
    assert was_made
    assert 2 <= len(made) < all_shards / 2
    sources = [os.path.basename(url) for url in read if url.startswith(data)]
    to_hash = sources[: 2 * 20]
    assert all(name.startswith("010-") for name in to_hash)
    assert len(sources) - len(to_hash) <= 16 * len(made), "and what the new shards hold"
    assert not [url for url in read if url.endswith(".arrow")]
    second.verify()
    fresh, _ = run(data, str(tmp_path / "another store"))
    assert content(fresh) == content(second)
    assert fresh.manifest.files == second.manifest.files
    assert fresh.name == second.name


def test_without_new_data_no_file_of_it_is_read(tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    data, store = str(tmp_path / "data"), str(tmp_path / "store")
    add_days(data, 0, 2)
    first, _ = run(data, store)
    made.clear()
    read = note_files_read(monkeypatch)
    assert run(data, store) == (first, False)
    assert [os.path.basename(url) for url in read if "/artifacts/" not in url] == [f"source-{fingerprint(data)}.json"]
    assert {os.path.basename(url) for url in read if "/artifacts/" in url} == {"artifact.json"}
    assert made == []


def test_other_settings_and_what_was_removed_give_what_a_fresh_run_gives(tmp_path: Path, made: list[str]) -> None:
    data, store = str(tmp_path / "data"), str(tmp_path / "store")
    add_days(data, 0, 4)
    for number, options in enumerate(({}, {"size": 4}, {"holdout": 0.3}, {"limit": 50}, {"size": 4, "limit": 50})):
        again, _ = run(data, store, **options)
        assert content(again) == content(run(data, str(tmp_path / f"fresh-{number}"), **options)[0])
    for name in ("cats/001-07.png", "dogs/003-19.png"):
        os.remove(f"{data}/{name}")
    made.clear()
    fewer, _ = run(data, store)
    assert 0 < len(made) <= 4
    assert content(fewer) == content(run(data, str(tmp_path / "fresh"))[0])


def test_a_changed_file_changes_its_shard_and_the_fingerprint(tmp_path: Path, made: list[str]) -> None:
    data, store = str(tmp_path / "data"), str(tmp_path / "store")
    add_days(data, 0, 4)
    first, _ = run(data, store)
    made.clear()
    write(Path(data) / "cats" / "002-05.png", encoded(pictures(1, 999)[0]))
    second, _ = run(data, store)
    assert second.name != first.name
    assert len(made) == 1
    assert content(second) == content(run(data, str(tmp_path / "fresh"))[0])
    first.verify()


def test_what_is_carried_over_outlives_the_artifact_it_came_from(tmp_path: Path) -> None:
    data, store = str(tmp_path / "data"), str(tmp_path / "store")
    add_days(data, 0, 3)
    first, _ = run(data, store)
    add_days(data, 3, 4)
    second, _ = run(data, store)
    storage.remove(first.url)
    second.verify()


def test_what_was_found_is_kept_even_if_a_later_stage_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, store = str(tmp_path / "data"), str(tmp_path / "store")
    add_days(data, 0, 1)
    monkeypatch.setattr(Quiet, "ends", lambda *_: (_ for _ in ()).throw(UserError("no")))
    with pytest.raises(UserError, match="no"):
        run(data, store)
    read = note_files_read(monkeypatch)
    SourceReader(Store(store)).read(data, "data")
    assert not [url for url in read if url.startswith(data)]


def test_on_s3(s3: str, tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    data, store = f"{s3}/data", f"{s3}/store"
    monkeypatch.setattr("components.data.sources.known.SETTLED_SECONDS", -60.0)
    for day in range(4):
        storage.write_bytes(f"{data}/{day:03d}.tar", write_tar_bytes(tmp_path, day))
    first, _ = run(data, store)
    storage.write_bytes(f"{data}/004.tar", write_tar_bytes(tmp_path, 4))
    made.clear()
    read = note_files_read(monkeypatch)
    second, _ = run(data, store)
    assert 4 <= len(made) <= 8
    assert {url for url in read if url.startswith(data)} == {f"{data}/004.tar"}
    assert not [url for url in read if url.endswith(".arrow")]
    second.verify()
    first.verify()
    read.clear()
    assert run(data, store) == (second, False)
    assert not [url for url in read if url.startswith(data)]
    assert content(run(data, str(tmp_path / "fresh"))[0]) == content(second)


def write_tar_bytes(folder: Path, day: int) -> bytes:
    write_tar(folder / "day.tar", 50, day)
    return (folder / "day.tar").read_bytes()
