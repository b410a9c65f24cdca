"""A schedule whose runs are jobs of a real cluster, store and data on a real S3 server: `raymill schedule start --once --cluster`."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from clusters.raylets import Raylets
from components import storage
from pipelines.registry import Registry
from pipelines.schedule.decision import RunFolder
from pipelines.schedule.state import Schedule
from pipelines.store import Store
from tests.pipelines.schedule.retraining_world import TINY
from tests.s3 import BUCKET, S3Server
from tests.small_data import shipped_images

pytest.importorskip("mlflow")
pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[3]
STORE, SOURCE = f"s3://{BUCKET}/store", f"s3://{BUCKET}/pictures"
CODE = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
PATIENCE_SECONDS = 300.0


@dataclass
class Site:
    """A cluster of two nodes, and the environment of whoever uses it."""

    jobs_url: str
    environment: dict[str, str]
    schedule: Schedule
    database: str

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "pipelines.cli", "schedule", *words, "--store", STORE]

    def once(self) -> tuple[int, dict[str, Any], str]:
        """Exit code, answer and complaints of a scheduler that runs what is due and leaves."""
        command = self.command("start", "--once", "--json", "--cluster", self.jobs_url)
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        return done.returncode, json.loads(done.stdout) if done.returncode == 0 else {}, done.stderr


@pytest.fixture(scope="module")
def site(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("cluster")
    database = f"sqlite:///{folder}/mlflow.db"
    values = {
        "name": "fashion",
        "source": SOURCE,
        "set": {**TINY, "model.train.steps": 60, "model.train.checkpoint_every": 10},
        "workers": 1,
        "trigger": {"new_data": True, "settle_seconds": 0},
        "gate": {"block_rows": 4},
        "tracking": database,
    }
    (folder / "fashion.yaml").write_text(yaml.safe_dump(values))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        with Raylets.start(f"sched-{os.getpid()}", nodes=2, cpus_per_node=2, environment={"OMP_NUM_THREADS": "1"}) as raylets:
            environment = {**os.environ, **raylets.environment, **CODE}
            site = Site(raylets.jobs_url, environment, Schedule(Store(STORE), "fashion"), database)
            deliver("day1.npz", 0, 400)
            subprocess.run(site.command("add", str(folder / "fashion.yaml")), env=environment, check=True, capture_output=True)
            yield site


def deliver(name: str, first: int, count: int) -> None:
    images, labels = shipped_images("train", first + count)
    sink = io.BytesIO()
    np.savez(sink, images=images[first:, 0], labels=labels[first:])
    storage.write_bytes(f"{SOURCE}/{name}", sink.getvalue())


def until(what: str, holds: Any) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := holds()):
        assert time.monotonic() < deadline, f"not so after {PATIENCE_SECONDS} s: {what}"
        time.sleep(0.2)
    return found


def test_what_is_due_runs_as_a_job_and_is_promoted(site: Site) -> None:
    code, answer, said = site.once()
    assert code == 0, said
    assert [event["kind"] for event in answer["schedules"]["fashion"]] == ["started", "succeeded"]
    (run,) = site.schedule.runs()
    decision = RunFolder(site.schedule.store, "fashion", run.id).decision()
    assert decision is not None
    assert decision.outcome == "promoted"
    champion = Registry(site.database, site.schedule.store).champion("fashion")
    assert champion is not None
    assert champion.artifact.startswith(STORE)
    assert decision.reason in storage.read_bytes(site.schedule.place("page.html")).decode()
    code, answer, said = site.once()
    assert (code, answer["schedules"]["fashion"]) == (0, []), "nothing is new"


def test_a_job_outlives_its_scheduler_and_the_next_one_ends_it(site: Site) -> None:
    before = len(site.schedule.runs())
    deliver("day2.npz", 400, 200)
    command = site.command("start", "--cluster", site.jobs_url)
    first = subprocess.Popen(command, env=site.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until("the job is at work", lambda: storage.exists(site.schedule.place("running.json")) and len(site.schedule.runs()) > before)
        run = site.schedule.runs()[-1]
        until("it is at this run", lambda: storage.read_json(site.schedule.place("running.json"))["run"] == run.id)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    code, _, said = site.once()  # waits for the lease of the one that was killed to run out
    assert code == 0, said
    kinds = [event.kind for event in site.schedule.events() if event.run == run.id]
    assert kinds == ["started", "taken over", "succeeded"]
    told = next(event for event in site.schedule.events() if event.run == run.id and event.kind == "taken over")
    assert "the run goes on" in told.text
    versions = Registry(site.database, site.schedule.store).versions("fashion")
    assert [version.tags["run"] for version in versions].count(run.id) == 1
