"""A store on a real S3 server holds the same as a local one, and nothing half made is ever visible in it."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import socket
import time
from pathlib import Path

import pytest

from components import storage
from components.errors import UserError
from components.lease import LeaseLost
from pipelines.source import SourceReader
from pipelines.store import COMMIT, Artifact, Recipe, Store

RECIPE = Recipe(stage="numbers", version=1, config={"count": 3}, inputs={"data": "00"})
SPAWN = multiprocessing.get_context("spawn")


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


def _publish_slowly(url: str, barrier, order) -> None:
    store = Store(url, lease_seconds=2.0)
    barrier.wait(60)
    with store.drafting(RECIPE, lambda owner: order.put(f"waits for {owner}")) as draft:
        if store.find(RECIPE) is not None:
            order.put("found")
            return
        storage.write_bytes(storage.join(draft.out, "pid.txt"), str(os.getpid()).encode())
        time.sleep(3.0)
        store.publish(draft, RECIPE, {}, 0.0, "")
        order.put("made")


def test_two_machines_make_one_artifact_once(s3: str) -> None:
    barrier, order = SPAWN.Barrier(2), SPAWN.Queue()
    both = [SPAWN.Process(target=_publish_slowly, args=(s3, barrier, order)) for _ in range(2)]
    for process in both:
        process.start()
    waits, *then = [order.get(timeout=120) for _ in range(3)]
    for process in both:
        process.join()
    assert then == ["made", "found"]
    maker = int(storage.read_bytes(Store(s3).resolve("numbers").path("pid.txt")))
    assert waits == f"waits for process {maker} on {socket.gethostname()}"
    assert {file.split("/")[0] for file in storage.list_files(s3)} == {"artifacts"}


def _draft_for_ever(url: str, ready) -> None:
    with Store(url, lease_seconds=1.0).drafting(RECIPE, never_waits) as draft:
        storage.write_bytes(storage.join(draft.out, "half.txt"), b"half")
        storage.write_bytes(storage.join(draft.work, "checkpoints", "one"), b"1")
        ready.set()
        time.sleep(120)


def test_after_a_kill_the_next_goes_on_and_no_lock_stays(s3: str) -> None:
    ready = SPAWN.Event()
    killed = SPAWN.Process(target=_draft_for_ever, args=(s3, ready))
    killed.start()
    assert ready.wait(60)
    store = Store(s3, lease_seconds=1.0)
    store.discard(RECIPE)
    store.sweep()
    assert storage.exists(store.place("runs", RECIPE.name, "checkpoints", "one")), "it is in use"
    killed.kill()
    killed.join()
    with store.drafting(RECIPE, lambda owner: None) as draft:
        assert storage.list_files(draft.out) == []
        assert storage.list_files(draft.work) == ["checkpoints/one"]
        store.publish(draft, RECIPE, {}, 0.0, "")
    assert {file.split("/")[0] for file in storage.list_files(s3)} == {"artifacts"}


def test_who_lost_the_lease_publishes_and_removes_nothing(s3: str) -> None:
    store = Store(s3)

    def lose() -> None:
        with store.drafting(RECIPE, never_waits) as draft:
            storage.write_bytes(storage.join(draft.work, "run.json"), b"{}")
            storage.write_bytes(store.place("locks", f"{RECIPE.name}.lock"), b'{"pid": 7, "host": "elsewhere"}')
            store.publish(draft, RECIPE, {}, 0.0, "")

    with pytest.raises(LeaseLost, match="was lost to process 7 on elsewhere"):
        lose()
    assert store.find(RECIPE) is None
    assert storage.list_files(s3) == [f"locks/{RECIPE.name}.lock", f"runs/{RECIPE.name}/run.json"]


def test_a_source_has_one_fingerprint_wherever_it_lies(s3: str, tmp_path: Path) -> None:
    for name, data in (("a/x.bin", b"x"), ("y.bin", b"y"), (".hidden", b"h"), ("a/.z", b"z")):
        storage.write_bytes(str(tmp_path / "data" / name), data)
        storage.write_bytes(f"{s3}/data/{name}", data)
    reader = SourceReader(Store(str(tmp_path / "store")))
    assert reader.read(f"{s3}/data", "data").fingerprint == reader.read(str(tmp_path / "data"), "data").fingerprint
    assert reader.read(f"{s3}/data/y.bin", "data").fingerprint == reader.read(str(tmp_path / "data" / "y.bin"), "data").fingerprint
    with pytest.raises(UserError, match="does not exist"):
        reader.read(f"{s3}/nowhere", "data")
