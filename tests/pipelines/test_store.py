"""The store: identity by recipe, one atomic publication, locks, sweeping, damage that is named."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from components import storage
from components.config import fingerprint
from components.data.columns import Column
from components.data.index import sums_file
from components.data.write import write_dataset
from components.errors import UserError
from components.lock import is_locked, locked
from pipelines.source import SourceReader
from pipelines.store import COMMIT, Artifact, Draft, Recipe, Store, open_artifact
from tests.reading import note_files_read

RECIPE = Recipe(stage="numbers", version=1, config={"count": 3}, inputs={"data": "00"})


def never_waits(owner: str) -> None:
    raise AssertionError(f"waits for {owner}")


def publish(store: Store, recipe: Recipe = RECIPE, text: str = "1 2 3") -> Artifact:
    with store.drafting(recipe, never_waits) as draft:
        (draft.folder / "deep").mkdir()
        (draft.folder / "deep" / "numbers.txt").write_text(text)
        return store.publish(draft, recipe, {"data": "/from/here"}, 1.5, "raymill run numbers")


def tree(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def test_a_published_artifact_is_found_with_its_lineage(store: Store) -> None:
    made = publish(store)
    found = store.find(RECIPE)
    assert found == made
    assert Path(found.path("deep", "numbers.txt")).read_text() == "1 2 3"
    assert found.manifest.files["deep/numbers.txt"].sha256 == hashlib.sha256(b"1 2 3").hexdigest()
    assert (found.manifest.inputs, found.manifest.sources) == ({"data": "00"}, {"data": "/from/here"})
    assert (found.manifest.seconds, found.manifest.command) == (1.5, "raymill run numbers")
    assert {path.name for path in Path(store.url).iterdir()} <= {"artifacts", "staging", "locks"}


@pytest.mark.parametrize(
    "other",
    [{"stage": "number"}, {"version": 2}, {"config": {"count": 4}}, {"inputs": {"data": "01"}}, {"inputs": {"date": "00"}}],
)
def test_every_part_of_the_recipe_decides_the_fingerprint(other: dict) -> None:
    assert RECIPE.model_copy(update=other).fingerprint != RECIPE.fingerprint


def test_the_fingerprint_is_the_hash_of_the_recipe_alone() -> None:
    text = '{"config":{"count":3},"inputs":{"data":"00"},"stage":"numbers","version":1}'
    assert RECIPE.fingerprint == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_a_failed_draft_leaves_nothing(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.drafting(RECIPE, never_waits) as draft:
        1 / (draft.folder / "half").write_text("")
    assert store.find(RECIPE) is None
    assert not [path for path in Path(store.url).rglob("*") if path.is_file()]
    store.tidy()
    assert not Path(store.url).exists()


@pytest.mark.parametrize(("checkpoint", "stays"), [("checkpoints/step_00000001/checkpoint.json", True), ("run.json", False)])
def test_after_a_mistake_the_work_folder_stays_only_for_its_checkpoints(store: Store, checkpoint: str, stays: bool) -> None:
    file = Path(store.place("runs", RECIPE.name, checkpoint))

    def work_and_fail(draft: Draft) -> None:
        assert file.is_relative_to(draft.work)
        file.parent.mkdir(parents=True)
        file.write_text("{}")
        raise UserError("no")

    with pytest.raises(UserError, match="no"), store.drafting(RECIPE, never_waits) as draft:
        work_and_fail(draft)
    assert file.exists() == stays


def test_the_work_folder_goes_with_the_publication(store: Store) -> None:
    with store.drafting(RECIPE, never_waits) as draft:
        work = Path(draft.work)
        (work / "checkpoints").mkdir(parents=True)
        (work / "model").mkdir()
        (work / "model" / "weights").write_text("w")
        draft.adopt(str(work / "model"), "model")
        made = store.publish(draft, RECIPE, {}, 0.0, "")
    assert list(made.manifest.files) == ["model/weights"]
    assert not work.exists()


def test_a_file_that_is_missing_or_cut_is_named_before_use(store: Store) -> None:
    place = Path(publish(store).path("deep", "numbers.txt"))
    place.write_text("1 2")
    with pytest.raises(UserError, match=r"numbers\.txt has 3 bytes, expected 5"):
        store.find(RECIPE)
    place.unlink()
    with pytest.raises(UserError, match=r"numbers\.txt is missing"):
        store.find(RECIPE)


def test_verify_names_both_checksums_of_an_altered_file(store: Store) -> None:
    made = publish(store)
    made.verify()
    Path(made.path("deep", "numbers.txt")).write_text("1 2 4")
    with pytest.raises(UserError) as problem:
        made.verify()
    for text in (b"1 2 3", b"1 2 4"):
        assert hashlib.sha256(text).hexdigest() in str(problem.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"format_version": 9}', '{"format_version": 1, "stage": "x"}'])
def test_a_manifest_of_another_kind_is_refused_by_name(store: Store, text: str) -> None:
    place = Path(publish(store).url) / COMMIT
    place.write_text(text)
    with pytest.raises(UserError, match=r"artifact\.json"):
        open_artifact(str(place.parent))


def test_an_altered_manifest_does_not_fit_its_fingerprint(store: Store) -> None:
    place = Path(publish(store).url) / COMMIT
    values = json.loads(place.read_text())
    assert values["fingerprint"] == RECIPE.fingerprint
    place.write_text(json.dumps(values | {"config": {"count": 4}}))
    with pytest.raises(UserError, match="was altered"):
        store.find(RECIPE)


def test_references(store: Store) -> None:
    first = publish(store)
    second = publish(store, RECIPE.model_copy(update={"version": 2}))
    other = publish(store, RECIPE.model_copy(update={"stage": "letters"}))
    assert store.resolve("numbers") == second
    assert store.resolve(first.name) == first
    assert store.resolve("lett") == other
    assert store.resolve(first.url) == first
    with pytest.raises(UserError, match="did you mean 'numbers'"):
        store.resolve("nunbers")
    with pytest.raises(UserError, match="start of 2 artifacts"):
        store.resolve("number")


def test_sweeping_takes_what_the_dead_left_and_nothing_else(store: Store) -> None:
    made = publish(store)
    dead, living, unfinished, stale = (
        Path(store.place(*p)) for p in (("staging", "a"), ("staging", "b"), ("runs", "c"), ("runs", made.name))
    )
    for folder in (dead, living, unfinished, stale):
        folder.mkdir(parents=True)
    before = tree(Path(store.url) / "artifacts")
    with locked(Path(store.place("locks", "b.lock")), never_waits):
        store.sweep()
    assert (dead.exists(), living.exists(), unfinished.exists(), stale.exists()) == (False, True, True, False)
    assert tree(Path(store.url) / "artifacts") == before


def _hold(path: str, ready) -> None:
    with locked(Path(path), never_waits):
        ready.set()
        time.sleep(60)


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, path = context.Event(), tmp_path / "locks" / "x.lock"
    holder = context.Process(target=_hold, args=(str(path), ready))
    holder.start()
    assert ready.wait(60)
    assert is_locked(path)
    owners: list[str] = []

    def waiting(owner: str) -> None:
        owners.append(owner)
        os.kill(holder.pid, signal.SIGKILL)

    with locked(path, waiting):
        assert [owner.split(" on ")[0] for owner in owners] == [f"process {holder.pid}"]
    holder.join()
    assert not is_locked(path)


def _publish_slowly(url: str, barrier, order) -> None:
    store = Store(url)
    barrier.wait(60)
    with store.drafting(RECIPE, lambda owner: None) as draft:
        if store.find(RECIPE) is not None:
            order.put("found")
            return
        (draft.folder / "pid").write_text(str(os.getpid()))
        time.sleep(0.5)
        store.publish(draft, RECIPE, {}, 0.0, "")
        order.put("made")


def test_two_processes_make_one_artifact_once(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, order = context.Barrier(2), context.Queue()
    both = [context.Process(target=_publish_slowly, args=(store.url, barrier, order)) for _ in range(2)]
    for process in both:
        process.start()
    assert [order.get(timeout=60) for _ in both] == ["made", "found"]
    for process in both:
        process.join()


def test_sources_are_known_by_content(store: Store, tmp_path: Path) -> None:
    for place in ("here", "there"):
        (tmp_path / place / "a").mkdir(parents=True)
        (tmp_path / place / "a" / "x.bin").write_bytes(b"x")
        (tmp_path / place / ".hidden").write_text(place)
    here, there = (SourceReader(store).read(str(tmp_path / place), "data") for place in ("here", "there"))
    assert here.fingerprint == there.fingerprint == fingerprint({"a/x.bin": hashlib.sha256(b"x").hexdigest()})
    (tmp_path / "there" / "a" / "x.bin").write_bytes(b"y")
    assert SourceReader(store).read(str(tmp_path / "there"), "data").fingerprint != here.fingerprint


def test_a_remembered_hash_holds_until_size_or_time_changes(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "x.bin"
    file.write_bytes(b"x")
    os.utime(file, (1000, 1000))
    reader = SourceReader(store)
    first = reader.read(str(file), "data").fingerprint
    reader.remember()
    (cache,) = Path(store.place("cache")).iterdir()
    assert hashlib.sha256(b"x").hexdigest() in cache.read_text()
    file.write_bytes(b"y")
    os.utime(file, (1000, 1000))  # the same size and time: the reader may not look again
    assert SourceReader(store).read(str(file), "data").fingerprint == first
    os.utime(file, (1001, 1001))
    assert SourceReader(store).read(str(file), "data").fingerprint != first
    cache.write_text("{")
    assert SourceReader(store).read(str(file), "data").fingerprint != first


def test_a_file_changed_just_now_is_not_remembered(store: Store, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"x")
    reader = SourceReader(store)
    reader.read(str(tmp_path / "x.bin"), "data")
    reader.remember()
    assert not Path(store.place("cache")).exists()


def test_an_artifact_as_source_stands_for_itself(store: Store) -> None:
    made = publish(store)
    assert SourceReader(store).read(made.url, "data").fingerprint == made.fingerprint


@pytest.mark.parametrize(("name", "problem"), [("nowhere", "does not exist"), ("empty", "holds no files")])
def test_a_source_that_is_not_there_is_named(store: Store, tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"data: .*{name}.* ?{problem}"):
        SourceReader(store).read(str(tmp_path / name), "data")


def test_what_an_index_tells_of_its_shards_is_not_read_to_publish(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    column = {"x": Column(dtype="int64")}
    with store.drafting(RECIPE, never_waits) as draft:
        index = write_dataset(draft.out, {"train": [{"x": np.arange(10)}], "test": [{"x": np.arange(3)}]}, column)
        (draft.folder / "more.txt").write_text("more")
        read = note_files_read(monkeypatch)
        made = store.publish(draft, RECIPE, {}, 1.0, "")
    assert not [url for url in read if url.endswith(".arrow")]
    assert {url.rsplit("/", 1)[-1] for url in read} == {"index.json", sums_file(index), "more.txt"}
    assert len(made.manifest.files) == 5
    made.verify()


def test_what_has_another_name_already_is_not_put_on_the_disk_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = publish(store)
    synced: list[str] = []
    sync = os.fsync

    def noting(descriptor: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    other = RECIPE.model_copy(update={"version": 2})
    with store.drafting(other, never_waits) as draft:
        storage.copy(first.path("deep", "numbers.txt"), str(draft.folder / "linked.txt"))
        (draft.folder / "new.txt").write_text("new")
        monkeypatch.setattr(os, "fsync", noting)
        store.publish(draft, other, {}, 1.0, "")
    assert {"new.txt", other.name} <= set(synced)
    assert "linked.txt" not in synced


@pytest.mark.parametrize("text", ["{}", "not JSON", '{"format_version": 99}'])
def test_a_file_that_is_called_index_and_is_none_is_published_like_any_other(store: Store, text: str) -> None:
    with store.drafting(RECIPE, never_waits) as draft:
        (draft.folder / "index.json").write_text(text)
        made = store.publish(draft, RECIPE, {}, 1.0, "")
    assert made.manifest.files["index.json"].sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_a_shard_that_is_not_as_its_index_says_is_read_to_publish(store: Store) -> None:
    with store.drafting(RECIPE, never_waits) as draft:
        index = write_dataset(draft.out, {"train": [{"x": np.arange(10)}]}, {"x": Column(dtype="int64")})
        shard = index.splits["train"][0].file
        (draft.folder / shard).write_bytes(b"short")
        made = store.publish(draft, RECIPE, {}, 1.0, "")
    assert made.manifest.files[shard].sha256 == hashlib.sha256(b"short").hexdigest()


def test_the_newest_artifacts_of_a_stage(store: Store) -> None:
    recipes = [RECIPE.model_copy(update={"version": version}) for version in range(4)]
    made = [publish(store, recipe) for recipe in recipes]
    publish(store, RECIPE.model_copy(update={"stage": "numbers-more"}))
    for age, number in enumerate((2, 0, 3, 1)):
        os.utime(os.path.join(made[number].url, COMMIT), (10_000 - age,) * 2)
    os.remove(os.path.join(made[0].url, COMMIT))
    assert store.newest("numbers", 2) == [made[2].url, made[3].url]
    assert store.newest("numbers", 9) == [made[2].url, made[3].url, made[1].url]
    assert store.newest("number", 9) == []
    assert Store(store.place("nowhere")).newest("numbers", 1) == []
