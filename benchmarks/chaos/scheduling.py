"""The lane of scheduled retraining: one scheduler acts, one stands by, new pictures come, and both schedulers and runs get killed.

Whoever runs schedulers starts another when one dies, as the replica count of a deployment does; nothing else is done by hand.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import dataclass

import numpy as np
import yaml
from PIL import Image

from benchmarks.chaos.checks import LEAVING_SECONDS, changed, restart_after
from benchmarks.chaos.events import KINDS, Scene
from benchmarks.chaos.processes import Seen, commands
from benchmarks.chaos.storm import GAP_SECONDS, PROGRESS_SECONDS, ROUND_SECONDS, Log, Record
from benchmarks.chaos.works import EVERY, ROOT, Work, of_store
from benchmarks.chaos.world import World, patiently
from components import storage
from components.evaluation.pictures import png
from pipelines.store import COMMIT

NAME = "nightly"
CLASSES, NEW_PICTURES = 4, 80
SETTINGS = {
    "images.holdout": 0.3,
    "model.model.widths": [8],
    "model.model.feature_dim": 16,
    "model.model.dropout": 0.0,
    "model.train.steps": 100,
    "model.train.batch_size": 64,
    "model.train.checkpoint_every": EVERY,
}
RAYMILL = (sys.executable, "-m", "pipelines.cli")


@dataclass
class Retraining:
    """A schedule in a store of its own, and its two schedulers; the part of a client that events look at."""

    world: World
    work: Work
    source: str
    awaited: bool = True  # a run

    def is_running(self) -> bool:
        return self.awaited

    def workers(self) -> list[Seen]:
        return []

    def driver(self) -> Seen | None:
        """The process of the run that is on."""
        return next((each for each in commands(self.store) if "run" in each.words and "schedule" in each.words), None)

    def supervisor(self) -> Seen | None:
        return None

    @property
    def store(self) -> str:
        return self.world.url("schedule", "store")

    def scheduler(self) -> int | None:
        """Pid of the scheduler that acts."""
        place = storage.join(self.store, "schedules", ".scheduler.json")
        known = patiently(lambda: storage.read_json(place)["pid"] if storage.exists(place) else None)
        return known if any(each.pid == known for each in self.schedulers()) else None

    def schedulers(self) -> list[Seen]:
        return [each for each in commands(self.store) if "start" in each.words]

    def read(self, *parts: str) -> dict[str, object] | None:
        place = storage.join(self.store, "schedules", NAME, *parts)
        return patiently(lambda: storage.read_json(place) if storage.exists(place) else None)


class ScheduleLane(threading.Thread):
    """New pictures, a run, its checks; again, as long as events are planned."""

    def __init__(self, world: World, planned: list[str], draw: random.Random, log: Log) -> None:
        super().__init__(name="lane schedule")
        work = Work("schedule", "store", (), of_store, COMMIT, (), ("/run.json", "/outcome.json"))
        self._world, self._planned, self._draw, self._log = world, planned, draw, log
        self._client = Retraining(world, work, world.url("source", "pictures"))
        self._children: list[subprocess.Popen[bytes]] = []
        self._environment = {**world.environment, "MLFLOW_TRACKING_URI": f"sqlite:///{world.scratch}/mlflow.db"}
        self._pictures = _shipped()
        self.failure: str | None = None

    def run(self) -> None:
        try:
            self._add_schedule()
            for _ in range(2):
                self._start_scheduler()
            number = 0
            while self._planned:
                self._round(number)
                number += 1
            self._leave(number)
        except Exception:
            self.failure = traceback.format_exc()
            self._log.say(f"{self.name} broke:\n{self.failure}")
        finally:
            for child in self._children:
                child.kill()

    def _add_schedule(self) -> None:
        config = {
            "name": NAME,
            "source": self._client.source,
            "set": SETTINGS,
            "workers": 0,
            "keep": 50,
            "retries": 20,
            "backoff_seconds": 1,
            "trigger": {"new_data": True, "poll_seconds": 3, "settle_seconds": 4},
            "gate": {"block_rows": 4},
        }
        file = self._world.scratch / "schedule.yaml"
        file.write_text(yaml.safe_dump(config))
        subprocess.run([*RAYMILL, "schedule", "add", str(file), "--store", self._client.store], env=self._environment, cwd=ROOT, check=True)

    def _start_scheduler(self) -> None:
        with open(self._world.scratch / f"scheduler-{len(self._children)}.log", "wb") as log:
            command = [*RAYMILL, "schedule", "start", "--store", self._client.store]
            self._children.append(subprocess.Popen(command, env=self._environment, cwd=ROOT, stdout=log, stderr=log))

    def _round(self, number: int) -> None:
        before: dict[str, str] = {}
        records: list[Record] = []
        began = time.monotonic()
        self._add_pictures(number)
        self._client.awaited = True
        ready_at = 0.0
        problem = ""
        while not (run := self._ended(number)) and not problem:
            time.sleep(0.3)
            if time.monotonic() - began > ROUND_SECONDS:
                problem = f"run {number} has not ended after {ROUND_SECONDS:.0f} s"
            if self._planned and time.monotonic() > ready_at and self._client.driver() is not None:
                before |= self._world.committed(self._client.work.prefix, COMMIT)
                record = self._strike(number, len(before))
                if record is not None:
                    records.append(record)
                    ready_at = time.monotonic() + self._draw.uniform(*GAP_SECONDS)
        self._client.awaited = False
        found = [problem] if problem else self._check(number, run) + changed(self._world, self._client.work, before)
        for record in records:
            record.losses += found
        self._log.close(records)
        self._log.say(
            f"    schedule {number} ended: {len(records)} events, {time.monotonic() - began:.0f} s"
            + "".join(f"; LOSS: {loss}" for loss in found)
        )
        if problem:
            raise TimeoutError(problem)

    def _strike(self, number: int, committed: int) -> Record | None:
        kind, began = self._planned[0], time.monotonic()
        detail = self._hurt(kind)
        if detail is None:
            return None
        self._planned.pop(0)
        record = self._log.open(kind, "scheduling", f"schedule {number}", detail, began, committed)
        signs = {"scheduler": (".scheduler.json",), "run": ("/run.json", "/outcome.json")}.get(kind, ("",))
        while not any(each.method == "PUT" and each.key.endswith(signs) for each in self._world.proxy.since(began, "schedule/")):
            if time.monotonic() - began > PROGRESS_SECONDS:
                record.losses.append(f"no progress after {PROGRESS_SECONDS:.0f} s")
                break
            time.sleep(0.2)
        record.recovery_seconds = round(time.monotonic() - began, 1)
        if kind == "run" and (restart := restart_after(self._world, self._client.work, began)) is not None:
            record.steps_again = restart.again
            record.losses += restart.problems()
        self._log.say(
            f"{record.number:3d} {record.work}: {kind} ({detail}); went on after {record.recovery_seconds:.0f} s"
            + "".join(f"; LOSS: {loss}" for loss in record.losses)
        )
        return record

    def _hurt(self, kind: str) -> str | None:
        if kind == "scheduler":
            if (pid := self._client.scheduler()) is None:
                return None
            run = self._client.driver()
            os.kill(pid, signal.SIGKILL)
            self._start_scheduler()
            return f"scheduler {pid}, its run {'on' if run else 'not on'}"
        if kind == "run":
            if (driver := self._client.driver()) is None:
                return None
            os.kill(driver.pid, signal.SIGKILL)
            return f"run {driver.pid}"
        return KINDS[kind](Scene(self._world, self._client, self._draw))

    def _runs(self) -> list[dict[str, object]]:
        place = storage.join(self._client.store, "schedules", NAME, "runs")
        names = patiently(lambda: storage.list_names(place))
        return [run for name in names if (run := self._client.read("runs", name, "run.json")) is not None]

    def _ended(self, number: int) -> list[dict[str, object]]:
        """All runs, once the one of this round has ended."""
        runs = self._runs()
        return runs if len(runs) > number and all(run["status"] != "started" for run in runs) else []

    def _check(self, number: int, runs: list[dict[str, object]]) -> list[str]:
        """One run a round, each ended well; the last one's model has the bits of the same pipeline run by itself."""
        found = [f"run {run['id']} {run['status']}: {run['why']}" for run in runs if run["status"] != "succeeded"]
        if len(runs) != number + 1:
            found.append(f"{len(runs)} runs for {number + 1} times new pictures")
        alone = self._world.url("schedule-alone", str(number))
        assignments = [f"{name}={json.dumps(value)}" for name, value in SETTINGS.items()]
        command = [*RAYMILL, "run", "model", *assignments, f"data={self._client.source}", "--workers", "0", "--store", alone, "--json"]
        done = subprocess.run(command, env=self._environment, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            return [*found, f"the pipeline by itself failed: {done.stderr.strip().splitlines()[-1:]}"]
        mine, its = patiently(lambda: of_store(self._client.store)), patiently(lambda: of_store(alone))
        differing = sorted(name for name, digest in its.items() if mine.get(name) != digest)
        return found + ([f"not bit-identical: {', '.join(differing[:3])} ({len(differing)} in all)"] if differing else [])

    def _leave(self, rounds: int) -> None:
        """Both schedulers are asked to leave; then nothing of theirs is there, and the registry knows each candidate once."""
        for child in self._children:
            child.terminate()
        for child in self._children:
            child.wait(LEAVING_SECONDS)
        deadline, left = time.monotonic() + LEAVING_SECONDS, [""]
        while left and time.monotonic() < deadline:
            time.sleep(1.0)
            left = [f"process {each.pid} {each.title[:80]}" for each in commands(self._client.store)] + self._world.locks("schedule/")
        versions = self._versions()
        if left:
            self.failure = f"the schedulers left behind: {', '.join(left)}"
        if versions != rounds:
            self.failure = f"{versions} versions of the model are registered, {rounds} were made"

    def _versions(self) -> int:
        import sqlite3

        with sqlite3.connect(self._world.scratch / "mlflow.db") as database:
            return int(database.execute("select count(*) from model_versions where name = ?", (NAME,)).fetchone()[0])

    def _add_pictures(self, number: int) -> None:
        images, labels = self._pictures
        first = number * NEW_PICTURES
        with self._world.storage_turn:  # all at once, or they would be two times new data
            for row in range(first, first + NEW_PICTURES):
                place = storage.join(self._client.source, f"class{labels[row]}", f"{row:05d}.png")
                storage.write_bytes(place, png(Image.fromarray(images[row, 0])))


def _shipped() -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N, 1, H, W) uint8 and labels (N,) of a few classes of the data that comes along."""
    from tests.small_data import shipped_images

    images, labels = shipped_images("train", 6000)
    of_classes = np.flatnonzero(labels < CLASSES)
    return images[of_classes], labels[of_classes]
