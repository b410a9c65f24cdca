"""What a run's metrics come to: from the rows of real commands, through the progress that the console shows."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from clusters.monitoring.states import RunState
from pipelines import watching
from pipelines.cli import main
from pipelines.console import Console
from pipelines.watching import Watched
from pipelines.workers import Workers
from tests.pipelines.world import LOCAL, TINY
from tests.prometheus import free_port, get


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    """Every run that commands watch, as it is in the end."""
    found: list[Watched] = []
    first = Watched.__init__

    def keep(self: Watched, shown: Console, name: str) -> None:
        first(self, shown, name)
        found.append(self)

    monkeypatch.setattr(Watched, "__init__", keep)
    return found


def state_after(argv: tuple[str, ...], root: Path, seen: list[Watched], code: int = 0) -> RunState:
    assert main([word.replace("{data}", str(root / "data")) for word in (*argv, "--json")]) == code
    return seen[-1].state()


TRAIN = ("train", "classifier", "{data}", *TINY["classifier"], "train.batch_size=16", "train.log_every=1", *LOCAL)


def test_a_training_tells_its_losses_speed_and_checkpoints(root: Path, seen: list[Watched]) -> None:
    started = time.time()
    state = state_after((*TRAIN, "train.steps=4", "train.checkpoint_every=2"), root, seen)
    assert state.name.startswith("classifier-")
    assert state.status == "finished"
    (stage,) = state.stages.values()
    assert (stage.status, stage.family, stage.restarts) == ("done", "classifier", 0)
    assert started < stage.started_at <= stage.progressed_at < time.time()
    numbers = stage.numbers
    assert (numbers["step"], numbers["steps"], numbers["workers"]) == (4, 4, 1)
    assert {"loss.classifier", "accuracy", "samples_per_second", "step_seconds", "peak_memory_bytes", "lr.classifier"} <= numbers.keys()
    assert numbers["checkpoint.step"] in (2, 4)  # the last one is complete at about the time of the last row
    assert started < numbers["checkpoint.time"] < time.time()
    assert stage.data_wait_seconds > 0
    assert "data_wait_seconds" not in numbers


def test_the_record_of_a_run_keeps_what_was_measured_alone(root: Path, seen: list[Watched]) -> None:
    state_after((*TRAIN, "train.steps=3"), root, seen)
    (file,) = (root / "store" / "artifacts").glob("classifier-*/metrics/00000003.jsonl")
    assert not {"family", "workers", "checkpoint", "steps", "restarts"} & json.loads(file.read_text().splitlines()[-1]).keys()


def test_a_run_that_fails_says_so(root: Path, seen: list[Watched]) -> None:
    state = state_after((*TRAIN, "train.steps=30", "train.optimizer.lr=1e30", "train.clip_norm=null"), root, seen, code=2)
    assert state.status == "failed"


def test_a_preparation_tells_its_shards(root: Path, seen: list[Watched]) -> None:
    state = state_after(("prepare", str(root / "idx"), str(root / "prepared"), "rows_per_shard=16", *LOCAL), root, seen)
    numbers = state.stages["prepare"].numbers
    assert numbers["shards.done"] == numbers["shards.total"] == 4
    assert numbers["shards.rows"] == 64


SWEEP = ("sweep", "classifier", "{data}", *TINY["classifier"], "train.steps=9", "train.batch_size=16", *LOCAL)
RATE = ("--vary", "train.optimizer.lr=log: [1e-4, 1e-1]", "--trials", "4")


@pytest.mark.parametrize("scheduler", ["none", "asha", "pbt"])
def test_a_sweep_tells_its_trials_by_state(root: Path, seen: list[Watched], scheduler: str, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("pbt.interval_steps=3",) if scheduler == "pbt" else ()
    state = state_after((*SWEEP, *RATE, "--scheduler", scheduler, *more), root, seen)
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    told = {name.removeprefix("trials."): value for name, value in state.stages["sweep"].numbers.items() if name.startswith("trials.")}
    states = [trial["state"] for trial in found["trials"]]
    assert {name: count for name, count in told.items() if count} == {name: states.count(name) for name in set(states)}
    assert state.stages["sweep"].numbers["best.accuracy"] == pytest.approx(found["best"]["score"])


def test_a_command_serves_its_metrics_only_when_asked(root: Path, seen: list[Watched], monkeypatch: pytest.MonkeyPatch) -> None:
    port, pages = free_port(), []
    finish = Watched.closes

    def look(self: Watched, failed: bool) -> None:
        time.sleep(1.5)  # longer than the time between two states
        pages.append(get(f"http://127.0.0.1:{port}/metrics"))
        finish(self, failed)

    monkeypatch.setattr(Watched, "closes", look)
    monkeypatch.setenv("RAYMILL_METRICS_PORT", str(port))
    state = state_after((*TRAIN, "train.steps=2"), root, seen)
    line = f'raymill_stage_steps_done{{run="{state.name}",stage="classifier"}} 2.0'
    assert line in pages[0]


@pytest.mark.parametrize(("port", "message"), [("x", "RAYMILL_METRICS_PORT='x' is no port"), ("1", "cannot be served at 127.0.0.1:1")])
def test_a_bad_port_is_the_users_mistake(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], port: str, message: str
) -> None:
    monkeypatch.setenv("RAYMILL_METRICS_PORT", port)
    monkeypatch.setenv("RAYMILL_METRICS_HOST", "192.0.2.1" if port == "1" else "127.0.0.1")
    message = message.replace("127.0.0.1", "192.0.2.1")
    assert main([word.replace("{data}", str(root / "data")) for word in (*TRAIN, "train.steps=2")]) == 2
    assert message in capsys.readouterr().err


def test_a_run_in_a_ray_job_is_called_as_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(watching.JOB, raising=False)
    names = {watching.run_name("tokens") for _ in range(2)}
    assert len(names) == 2
    assert all(name.startswith("tokens-") for name in names)
    monkeypatch.setenv(watching.JOB, json.dumps({"metadata": {"job_submission_id": "nightly"}, "runtime_env": {}}))
    assert watching.run_name("tokens") == "nightly"


def test_rows_that_are_odd_do_no_harm() -> None:
    watched = Watched(Console(quiet=True), "odd")
    watched.reports("a", {"line": "text", "flag": True, "none": None, "bad": float("nan"), "worse": float("inf"), "deep": {"x": 1}})
    assert watched.state().stages["a"].numbers == {"deep.x": 1}


@pytest.mark.parametrize("place", ["address", "job"])
def test_a_run_on_a_shared_cluster_tells_the_clusters_hub_and_serves_nothing_itself(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    told: list[str] = []
    monkeypatch.setenv("RAYMILL_METRICS_PORT", str(port := free_port()))
    monkeypatch.setattr("clusters.session.ray_cluster", lambda address, cpus: nullcontext())
    monkeypatch.setattr("clusters.metrics.ClusterHub.run_json", lambda self, text: told.append(text))
    if place == "job":
        monkeypatch.setenv(watching.JOB, json.dumps({"metadata": {"job_submission_id": "nightly"}}))
    with Workers(1, "127.0.0.1:1" if place == "address" else None, Watched(Console(quiet=True), "tokens")) as workers:
        with pytest.raises(OSError):
            get(f"http://127.0.0.1:{port}/metrics")
        workers.connect()
    assert RunState.model_validate_json(told[-1]).status == "finished"
