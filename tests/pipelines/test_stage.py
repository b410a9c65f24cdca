"""Stages and pipelines: wiring that is checked when it is defined, and runs that make only what changed."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from components.config import Config
from components.errors import UserError
from pipelines.source import Source
from pipelines.stage import Pipeline, Stage, Task, stage
from pipelines.store import Artifact, Store
from pipelines.workers import Workers

CALLS: list[str] = []  # stages in the order in which they worked


class Times(Config):
    factor: int = 2


class Extra(Config):
    add: int = 1


class NumbersConfig(Config):
    data: str = ""
    numbers: Times = Times(factor=1)
    products: Times = Times()
    sums: Extra | None = None


def _read(artifact: Artifact) -> list[int]:
    return [int(word) for word in Path(artifact.path("out.txt")).read_text().split()]


def _write(task: Task[Any], name: str, values: list[int]) -> None:
    CALLS.append(name)
    (task.draft.folder / "out.txt").write_text(" ".join(map(str, values)))


@stage(version=1)
def numbers(data: Source, task: Task[Times]) -> None:
    _write(task, "numbers", [task.config.factor * int(word) for word in Path(data.url).read_text().split()])


@stage(version=1)
def products(numbers: Artifact, task: Task[Times]) -> None:
    _write(task, "products", [task.config.factor * value for value in _read(numbers)])


@stage(version=1)
def sums(products: Artifact, task: Task[Extra]) -> None:
    _write(task, "sums", [task.config.add + value for value in _read(products)])


@stage(version=1)
def report(products: Artifact, sums: Artifact | None, task: Task[None]) -> None:
    _write(task, "report", _read(sums or products))


PIPELINE = Pipeline("numbers", "for tests", NumbersConfig, [numbers, products, sums, report], {})


class Silent:
    def begins(self, stage: str) -> None: ...
    def reports(self, stage: str, row: Mapping[str, Any]) -> None: ...
    def waits(self, stage: str, owner: str) -> None: ...
    def ends(self, stage: str, artifact: Artifact, made: bool) -> None: ...


@pytest.fixture
def data(tmp_path: Path) -> str:
    (tmp_path / "data.txt").write_text("1 2 3")
    return str(tmp_path / "data.txt")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    CALLS.clear()
    return Store(str(tmp_path / "store"))


def run(store: Store, config: Config, pipeline: Pipeline = PIPELINE, workers: int = 0) -> dict[str, Artifact]:
    return {name: found for name, (found, _) in pipeline.run(config, store, Workers(workers), Silent(), "test").items()}


def test_a_run_makes_each_stage_once_and_a_second_makes_nothing(store: Store, data: str) -> None:
    made = run(store, NumbersConfig(data=data))
    assert CALLS == ["numbers", "products", "report"]
    assert _read(made["report"]) == [2, 4, 6]
    assert run(store, NumbersConfig(data=data)) == made
    assert len(CALLS) == 3


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"products": Times(factor=3)}, ["products", "report"]),
        ({"sums": Extra()}, ["sums", "report"]),
        ({"numbers": Times(factor=5)}, ["numbers", "products", "report"]),
    ],
)
def test_only_what_changed_is_made_again(store: Store, data: str, change: dict, again: list[str]) -> None:
    run(store, NumbersConfig(data=data))
    CALLS.clear()
    run(store, NumbersConfig(data=data, **change))
    assert list(CALLS) == again


def test_a_changed_source_makes_all_again_and_a_moved_one_nothing(store: Store, data: str, tmp_path: Path) -> None:
    first = run(store, NumbersConfig(data=data))
    (tmp_path / "moved").mkdir()
    moved = Path(data).rename(tmp_path / "moved" / "data.txt")
    assert run(store, NumbersConfig(data=str(moved))) == first
    moved.write_text("4 5 6")
    assert _read(run(store, NumbersConfig(data=str(moved)))["report"]) == [8, 10, 12]


def test_a_stage_of_another_code_version_is_made_again(store: Store, data: str) -> None:
    run(store, NumbersConfig(data=data))
    CALLS.clear()
    newer = Stage(products.name, 2, products.make, products.needs, products.section)
    run(store, NumbersConfig(data=data), Pipeline("numbers", "", NumbersConfig, [numbers, newer, sums, report], {}))
    assert CALLS == ["products", "report"]


def test_neither_the_store_nor_the_workers_change_a_fingerprint(store: Store, data: str, tmp_path: Path) -> None:
    here = run(store, NumbersConfig(data=data), workers=0)
    there = run(Store(str(tmp_path / "elsewhere")), NumbersConfig(data=data), workers=3)
    assert {name: a.fingerprint for name, a in here.items()} == {name: a.fingerprint for name, a in there.items()}


def test_lineage_names_every_input_by_fingerprint(store: Store, data: str) -> None:
    made = run(store, NumbersConfig(data=data, sums=Extra()))
    assert made["report"].manifest.inputs == {name: made[name].fingerprint for name in ("products", "sums")}
    assert made["products"].manifest.inputs == {"numbers": made["numbers"].fingerprint}
    assert made["numbers"].manifest.sources == {"data": data}


def test_a_failing_stage_leaves_what_was_finished_and_no_trace_of_itself(store: Store, data: str) -> None:
    def refuse(numbers: Artifact, task: Task[Times]) -> None:
        (task.draft.folder / "half").write_text("half")
        raise UserError("products: no")

    failing = Stage("products", 1, refuse, products.needs, products.section)
    with pytest.raises(UserError, match="products: no"):
        run(store, NumbersConfig(data=data), Pipeline("numbers", "", NumbersConfig, [numbers, failing, sums, report], {}))
    assert [artifact.manifest.stage for artifact in store.artifacts()] == ["numbers"]
    assert not list(Path(store.url).rglob("half"))


def test_a_failed_first_stage_leaves_no_store_behind(store: Store, data: str) -> None:
    Path(data).write_text("one two")
    with pytest.raises(ValueError):
        run(store, NumbersConfig(data=data))
    assert not Path(store.url).exists()


def _run_and_die_in(name: str, url: str, data: str) -> None:
    def die(numbers: Artifact, task: Task[Times]) -> None:
        (task.draft.folder / "half").write_text("half")
        work = Path(task.draft.work) / "checkpoints"
        work.mkdir(parents=True)
        (work / "step").write_text("7")
        os.kill(os.getpid(), signal.SIGKILL)

    def die_publishing(*args: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    store = Store(url)
    pipeline = PIPELINE
    if name == "stage":
        pipeline = Pipeline("numbers", "", NumbersConfig, [numbers, Stage("products", 1, die, products.needs, Times), sums, report], {})
    else:
        os.rename = die_publishing
    run(store, NumbersConfig(data=data), pipeline)


@pytest.mark.parametrize("moment", ["stage", "publication"])
def test_a_killed_run_leaves_no_half_artifact_and_the_next_one_goes_on(store: Store, data: str, moment: str) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_run_and_die_in, args=(moment, store.url, data))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    finished = [artifact.name for artifact in store.artifacts()]
    assert len(finished) == (1 if moment == "stage" else 0)
    assert len(list(Path(store.url, "staging").iterdir())) == 1
    found: list[str] = []

    def go_on(numbers: Artifact, task: Task[Times]) -> None:
        work = Path(task.draft.work) / "checkpoints" / "step"
        found.extend([work.read_text()] if work.exists() else [])
        assert not list(task.draft.folder.iterdir())
        _write(task, "products", [2 * value for value in _read(numbers)])

    going_on = Stage("products", 1, go_on, products.needs, products.section)
    made = run(store, NumbersConfig(data=data), Pipeline("numbers", "", NumbersConfig, [numbers, going_on, sums, report], {}))
    assert _read(made["report"]) == [2, 4, 6]
    assert list(CALLS) == (["products", "report"] if moment == "stage" else ["numbers", "products", "report"])
    assert found == (["7"] if moment == "stage" else [])
    assert list(Path(store.url, "staging").iterdir()) == list(Path(store.url, "runs").glob("*")) == []


def _define(stages: list[Stage], config: type[Config] = NumbersConfig) -> None:
    Pipeline("numbers", "", config, stages, {})


class Misspelt(NumbersConfig):
    product: Times = Times()


class Wrong(NumbersConfig):
    products: Extra = Extra()


def test_wiring_that_cannot_work_is_refused_when_it_is_defined() -> None:
    @stage(version=1)
    def needs_sums(sums: Artifact, task: Task[None]) -> None: ...

    with pytest.raises(TypeError, match="'products' needs 'numbers', which no earlier stage makes"):
        _define([products, numbers])
    with pytest.raises(TypeError, match=r"may leave out; annotate it Artifact \| None"):
        _define([numbers, products, sums, needs_sums])
    with pytest.raises(TypeError, match=r"'product' is neither.*did you mean 'products'"):
        _define([numbers, products, sums, report], Misspelt)
    with pytest.raises(TypeError, match="'products' works with"):
        _define([numbers, products, sums, report], Wrong)
    with pytest.raises(TypeError, match="expected Artifact"):

        @stage(version=1)
        def odd(numbers: str, task: Task[None]) -> None: ...

    with pytest.raises(TypeError, match="the last argument is task"):

        @stage(version=1)
        def alone(numbers: Artifact) -> None: ...


def test_workers_and_address_must_go_together() -> None:
    with pytest.raises(UserError, match=r"--address .* no effect with --workers 0"):
        Workers(0, "127.0.0.1:6379")
    with pytest.raises(UserError, match="--workers -1"):
        Workers(-1)
