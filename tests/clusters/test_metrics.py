"""One hub for a whole cluster: real drivers share it, a real Prometheus asks it, and its death costs nothing but time."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.chaos.processes import descendants
from clusters.scrape import DASHBOARD, RULES, scrape_config
from clusters.session import ray_cluster
from tests.prometheus import Prometheus, free_port, needs_prometheus, prometheus

pytestmark = [pytest.mark.ray, needs_prometheus]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # what workers import is this copy, wherever another is installed
        with ray_cluster(None, cpus=2):
            import ray

            yield ray.get_runtime_context().gcs_address


@pytest.fixture(scope="module")
def server(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "prometheus.yml").write_text(yaml.safe_dump(scrape_config([f"127.0.0.1:{port}"], str(folder / "none.json"), interval="1s")))
    with prometheus(folder / "prometheus.yml", folder) as server:
        yield server


@pytest.fixture
def drivers() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that tests start; those that are left at the end are killed."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for driver in started:
        driver.kill()
        driver.communicate()


LIGHT = """
import sys
from pipelines.console import Console
from pipelines.watching import Watched
from pipelines.workers import Workers

watched = Watched(Console(quiet=True), "light")
with Workers(1, sys.argv[1], watched) as crew:
    crew.connect()
    watched.begins("images")
    watched.reports("images", {"step": 1, "steps": 4, "shards": {"done": 1, "total": 4, "rows": 25}})
    sys.stdin.read()
"""


def start(words: list[str], folder: Path, port: int) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAYMILL_METRICS_PORT": str(port)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *words], env=environment, cwd=folder, text=True, **pipes)


def training(data: Path, address: str) -> list[str]:
    """The command of a training that goes on and on."""
    settings = {"train.steps": 100_000, "train.batch_size": 32, "train.log_every": 5, "train.checkpoint_every": 10}
    words = [f"{key}={value}" for key, value in (settings | {"model.widths": "[4]", "model.feature_dim": 4}).items()]
    return [
        "-m",
        "pipelines.cli",
        "train",
        "classifier",
        str(data),
        *words,
        "--address",
        address,
        "--workers",
        "1",
        "--store",
        "store",
        "--json",
    ]


def hub_process() -> int:
    """The process of the hub's actor."""
    (pid,) = [pid for pid, line in descendants(os.getpid()).items() if line.startswith("ray::HubActor")]
    return pid


def runs(server: Prometheus, state: str) -> set[str]:
    return {found["run"] for found in server.query(f'raymill_run_state{{state="{state}"}} == 1')}


def test_two_drivers_share_a_hub_that_prometheus_asks_and_that_may_die(
    address: str, port: int, server: Prometheus, drivers: list[subprocess.Popen[str]], small_data_folders: dict[str, Path], tmp_path: Path
) -> None:
    drivers.append(start(training(small_data_folders["images"], address), tmp_path, port))
    server.wait_for("raymill_training_last_checkpoint_step >= 10")
    drivers.append(start(["-c", LIGHT, address], tmp_path, port))
    server.wait_for("raymill_preprocess_shards_done == 1 and raymill_preprocess_rows_done == 25")
    names = runs(server, "running")
    assert sorted(name.rpartition("-")[0] for name in names) == ["classifier", "light"]
    for metric in ("loss", "samples_per_second", "step_duration_seconds", "peak_memory_bytes", "workers", "data_wait_seconds_total"):
        (found,) = server.query(f'raymill_training_{metric}{{family="classifier"}}')
        assert (found["run"] in names, found["stage"], found["job"]) == (True, "classifier", "raymill")
    (age,) = server.query("time() - raymill_training_last_checkpoint_timestamp_seconds")
    assert 0 <= age["value"] < 300
    assert [one["value"] for one in server.query("raymill_stage_restarts_total")] == [0]
    for expression in every_expression():
        server.query(expression)

    os.kill(hub_process(), signal.SIGKILL)
    server.wait_for('up{job="raymill"} == 0')
    server.wait_for('up{job="raymill"} == 1 and on () count(raymill_run_state{state="running"} == 1) == 2')
    assert runs(server, "running") == names
    assert [driver.poll() for driver in drivers] == [None, None]

    drivers[1].communicate("", timeout=120)
    assert drivers[1].returncode == 0
    server.wait_for('raymill_runs_total{outcome="finished"} == 1')
    assert {name.rpartition("-")[0] for name in runs(server, "finished")} == {"light"}


def every_expression() -> list[str]:
    """What the rules and the dashboard ask, with its variables filled in."""
    rules = [rule["expr"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    shown = [target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel.get("targets", ())]
    return [re.sub(r"\$(run|family)\b", ".*", text).replace("$__range", "1h") for text in rules + shown]
