"""A store on a real S3 server holds the same as a local one, and nothing half made is ever visible in it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from components import storage
from components.errors import UserError
from pipelines.source import SourceReader
from pipelines.store import COMMIT, Artifact, Recipe, Store

RECIPE = Recipe(stage="numbers", version=1, config={"count": 3}, inputs={"data": "00"})


def never_waits(owner: str) -> None:
    raise AssertionError(f"waits for {owner}")


def publish(store: Store) -> Artifact:
    """An artifact with one file of the driver's and one that a worker wrote where the artifact will be."""
    with store.drafting(RECIPE, never_waits) as draft:
        (draft.folder / "deep").mkdir()
        (draft.folder / "deep" / "here.txt").write_text("here")
        storage.write_bytes(storage.join(draft.out, "there.txt"), b"there")
        storage.write_bytes(storage.join(draft.work, "checkpoints", "one"), b"1")
        return store.publish(draft, RECIPE, {}, 1.0, "")


def test_both_kinds_of_store_hold_the_same(s3: str, tmp_path: Path) -> None:
    here, there = publish(Store(str(tmp_path / "store"))), publish(Store(f"{s3}/store"))
    assert there.manifest.files == here.manifest.files
    assert there.fingerprint == here.fingerprint
    assert there.manifest.files["there.txt"].sha256 == hashlib.sha256(b"there").hexdigest()
    assert storage.list_files(there.url) == storage.list_files(here.url) == [COMMIT, "deep/here.txt", "there.txt"]
    there.verify()
    store = Store(f"{s3}/store")
    assert store.find(RECIPE) == there
    assert store.artifacts() == [there]
    assert store.resolve("numbers") == there
    assert storage.list_files(store.place("runs")) == []


def test_a_killed_publication_is_invisible_and_leaves_nothing_to_the_next(s3: str) -> None:
    store = Store(s3)
    storage.write_bytes(store.place("artifacts", RECIPE.name, "half.txt"), b"half")
    storage.write_bytes(store.place("artifacts", RECIPE.name, "there.txt"), b"th")
    assert store.find(RECIPE) is None
    assert store.artifacts() == []
    with pytest.raises(UserError, match="no artifact 'numbers'"):
        store.resolve("numbers")
    assert "half.txt" not in publish(store).manifest.files
    assert storage.list_files(store.place("artifacts", RECIPE.name)) == [COMMIT, "deep/here.txt", "there.txt"]
    store.resolve("numbers").verify()


def test_the_manifest_is_written_last(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: list[str] = []
    upload = storage.upload

    def noting(local_file: str, url: str) -> None:
        uploaded.append(url.rsplit("/", 1)[-1])
        upload(local_file, url)

    monkeypatch.setattr(storage, "upload", noting)
    publish(Store(s3))
    assert uploaded == ["here.txt", COMMIT]


def test_an_altered_object_is_named_with_both_checksums(s3: str) -> None:
    made = publish(Store(s3))
    storage.write_bytes(storage.join(made.url, "there.txt"), b"their")
    with pytest.raises(UserError, match=r"there\.txt was altered") as problem:
        made.verify()
    for text in (b"there", b"their"):
        assert hashlib.sha256(text).hexdigest() in str(problem.value)


def test_the_work_folder_outlives_a_failure_and_is_swept_after_publication(s3: str) -> None:
    store = Store(s3)

    def work_and_fail() -> None:
        with store.drafting(RECIPE, never_waits) as draft:
            storage.write_bytes(storage.join(draft.work, "checkpoints", "one"), b"1")
            raise UserError("no")

    with pytest.raises(UserError, match="no"):
        work_and_fail()
    left = store.place("runs", RECIPE.name, "checkpoints", "one")
    assert storage.exists(left)
    publish(store)
    assert not storage.exists(left)
    storage.write_bytes(left, b"1")  # as if the driver had been killed between publication and removal
    store.sweep()
    assert not storage.exists(left)


def test_a_source_has_one_fingerprint_wherever_it_lies(s3: str, tmp_path: Path) -> None:
    for name, data in (("a/x.bin", b"x"), ("y.bin", b"y"), (".hidden", b"h"), ("a/.z", b"z")):
        storage.write_bytes(str(tmp_path / "data" / name), data)
        storage.write_bytes(f"{s3}/data/{name}", data)
    reader = SourceReader(Store(str(tmp_path / "store")))
    assert reader.read(f"{s3}/data", "data").fingerprint == reader.read(str(tmp_path / "data"), "data").fingerprint
    assert reader.read(f"{s3}/data/y.bin", "data").fingerprint == reader.read(str(tmp_path / "data" / "y.bin"), "data").fingerprint
    with pytest.raises(UserError, match="does not exist"):
        reader.read(f"{s3}/nowhere", "data")
