"""`raymill schedule ...`: what it says, what it refuses, and how little a look costs that finds nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from components import storage
from components.config import Config
from pipelines import catalogue
from pipelines.cli import main
from pipelines.schedule.state import Outcome, Run, Schedule
from pipelines.source import Source
from pipelines.stage import Pipeline, Task, stage
from pipelines.store import Store
from tests.pipelines.schedule import fakes

POLLED = {"new_data": True, "settle_seconds": 0}

Say = Callable[..., tuple[int, Any, str]]


class ModelConfig(Config):
    steps: int = 1


class WordsConfig(Config):
    data: str = ""
    model: ModelConfig = ModelConfig()


@stage(version=1)
def model(data: Source, task: Task[ModelConfig]) -> None:
    raise AssertionError("no run gets here")


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """Runs `raymill schedule ...` on a store of the test's own: exit code, JSON answer, stderr."""
    words = Pipeline("words", "Words.", WordsConfig, [model], {"quick": {}, "base": {}})
    monkeypatch.setitem(catalogue.PIPELINES, "words", lambda: words)
    monkeypatch.setitem(sys.modules, "pipelines.schedule.retrain", fakes.module())
    monkeypatch.chdir(tmp_path)
    runs = fakes.install(tmp_path / "runs")
    for name in ("PYTHONPATH", fakes.FOLDER):
        monkeypatch.setenv(name, runs[name])
    (tmp_path / "runs" / "go").touch()
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.txt").write_text("data")

    def run(*words: str) -> tuple[int, Any, str]:
        code = main(["schedule", *words, "--store", str(tmp_path / "store"), "--json"])
        output = capsys.readouterr()
        return code, json.loads(output.out), output.err

    return run


def write(tmp_path: Path, **values: Any) -> str:
    given = {"name": "fashion", "pipeline": "words", "source": "source", "workers": 0, "trigger": {"cron": "30 2 * * *"}, **values}
    (tmp_path / "fashion.yaml").write_text(json.dumps(given))
    return str(tmp_path / "fashion.yaml")


def test_add_list_show_and_remove(say: Say, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, answer, _ = say("add", write(tmp_path, trigger={"cron": "30 2 * * *", "time_zone": "Europe/Berlin"}))
    assert (code, answer["new"], answer["config"]["source"]) == (0, True, str(tmp_path / "source"))
    due = datetime.fromisoformat(answer["next"])
    assert timedelta(0) < due - datetime.now(UTC) <= timedelta(days=1, hours=1)
    assert say("add", write(tmp_path, retries=5))[1]["new"] is False
    assert list(say("list")[1]["schedules"]) == ["fashion"]
    schedule = Schedule(Store(str(tmp_path / "store")), "fashion")
    now = datetime.now(UTC)
    run = Run(
        id="20260329T010000Z",
        cause="due then",
        config=schedule.config(),
        started=now,
        attempted=now,
        status="succeeded",
        why="kept: no better",
    )
    schedule.write_run(run)
    schedule.write_outcome(run.id, Outcome(why="kept: no better", decision={"outcome": "kept"}))
    found = say("show", "fashion")[1]
    assert found["config"]["retries"] == 5
    assert found["runs"][0]["outcome"]["decision"] == {"outcome": "kept"}
    main(["schedule", "show", "fashion", "--store", str(tmp_path / "store")])
    assert "20260329T010000Z  due then; succeeded: kept: no better" in capsys.readouterr().out
    assert say("remove", "fashion")[0] == 0
    assert say("list")[1]["schedules"] == {}
    assert schedule.run(run.id) == run, "its history stays"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"set": {"model.stps": 3}}, "set: unknown key 'model.stps'; did you mean 'steps'"),
        ({"set": {"model.steps": "many"}}, "set: model.steps='many' is not valid"),
        ({"preset": "full"}, "preset=full is none of pipeline words; "),
        ({"trigger": {}}, "nothing triggers a run"),
    ],
)
def test_mistakes_are_found_before_a_night_is_lost(say: Say, tmp_path: Path, values: dict[str, Any], expected: str) -> None:
    code, answer, _ = say("add", write(tmp_path, **values))
    assert code == 2
    assert expected in answer["error"]
    assert "fashion.yaml" in answer["error"]
    assert not (tmp_path / "store").exists()


def test_a_schedule_that_is_not_there(say: Say, tmp_path: Path) -> None:
    say("add", write(tmp_path))
    for words in (["show", "fashio"], ["remove", "fashio"], ["run", "fashio"]):
        code, answer, _ = say(*words)
        assert code == 2
        assert "no schedule 'fashio'" in answer["error"]
        assert "did you mean 'fashion'?" in answer["error"]


def test_mlflow_is_asked_for_by_name(say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path)
    say("add", path)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "mlflow" else find(name, *rest))
    for words in (["add", path], ["start", "--once"], ["run", "fashion"]):
        code, answer, _ = say(*words)
        assert code == 2
        assert answer["error"] == "schedules keep their champions in MLflow: pip install 'raymill[tracking]'"
    assert say("list")[0] == 0


def test_a_look_that_finds_nothing_new_is_cheap(say: Say, tmp_path: Path) -> None:
    say("add", write(tmp_path, pipeline="tokens", trigger=POLLED))
    code, answer, _ = say("start", "--once")
    assert code == 0
    assert [event["kind"] for event in answer["schedules"]["fashion"]] == ["started", "succeeded"]
    began = time.process_time()
    code, answer, _ = say("start", "--once")
    assert (code, answer["schedules"]) == (0, {"fashion": []})
    assert time.process_time() - began < 2
    assert len(fakes.log(tmp_path / "runs")) == 2


def test_a_run_by_hand_that_fails_is_on_the_page(say: Say, tmp_path: Path) -> None:
    say("add", write(tmp_path))
    (tmp_path / "runs" / "fail").write_text("out of memory")
    code, _, _ = say("run", "fashion", "--run-id", "mine")
    assert code == 1
    schedule = Schedule(Store(str(tmp_path / "store")), "fashion")
    run = schedule.run("mine")
    assert run is not None
    assert (run.status, run.why) == ("failed", "RuntimeError: out of memory")
    assert fakes.log(tmp_path / "runs")[-1] == ["gave", "up", "mine:", "RuntimeError:", "out", "of", "memory"]
    (tmp_path / "runs" / "fail").unlink()
    assert say("run", "fashion", "--run-id", "mine")[1]["why"] == "promoted: 0.91 against 0.90"
    assert schedule.runs()[0].status == "succeeded"
    assert say("run", "fashion", "--run-id", "../mine")[0] == 2


def test_everything_works_on_s3(s3: str, tmp_path: Path, say: Say, capsys: pytest.CaptureFixture[str]) -> None:
    storage.write_bytes(f"{s3}/source/a.txt", b"data")
    path = write(tmp_path, pipeline="tokens", source=f"{s3}/source", trigger=POLLED)
    for words in (["add", path], ["start", "--once"], ["start", "--once"], ["show", "fashion"]):
        assert main(["schedule", *words, "--store", f"{s3}/store", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(run["status"], run["why"]) for run in found["runs"]] == [("succeeded", "promoted: 0.91 against 0.90")]
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in json.dumps(
        [storage.read_bytes(f"{s3}/store/{f}").decode() for f in storage.list_files(f"{s3}/store")]
    )
