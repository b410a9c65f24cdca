"""What Prometheus sees of schedules: on a clock that the test drives, and from a real scheduler's endpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from clusters.monitoring.hub import MetricsHub
from clusters.monitoring.states import ScheduleState, ScheduleStates
from components.lease import Lease, LeaseLost
from pipelines.schedule.runner import Progressed
from pipelines.schedule.scheduler import Pace, Scheduler
from pipelines.schedule.state import Look, Observer, Outcome, Run, Schedule
from pipelines.schedule.watching import Teller, Watched, told_to_hub
from pipelines.store import Store
from tests.pipelines.schedule.test_takeover import PATIENCE_SECONDS, Machines, machines, until
from tests.pipelines.schedule.world import Over, Runs, World, utc
from tests.prometheus import free_port, get

__all__ = ["machines"]  # a fixture

NOON = {"cron": "0 12 * * *"}
PACE = Pace(heartbeat=timedelta(minutes=10), watch=timedelta(minutes=5))


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@dataclass
class Decides(Runs):
    """Runs that end well decide what `decisions` says, one after the other."""

    decisions: list[str] = field(default_factory=list)

    def poll(self, attempt: str) -> Progressed:
        begun = self.on.get(attempt)
        found = super().poll(attempt)
        if begun is not None and found.state == "ended" and found.exit_code == 0:
            name, _, run_id = begun.run.partition("/")
            Schedule(self.store, name).write_outcome(run_id, Outcome(why="so it is", decision={"outcome": self.decisions.pop(0)}))
        return found


class Watching:
    """A scheduler of the world, and the endpoint that shows it."""

    def __init__(self, world: World, once: bool = False) -> None:
        self.world, self.watched, self.hub = world, Watched(world.store, once), MetricsHub()
        self._teller = Teller(self.hub)
        self._registry = CollectorRegistry()
        self._registry.register(self.hub)
        self.lines: list[str] = []

    def scheduler(self, tell: Callable[[str], None] = lambda line: None) -> Scheduler:
        return Scheduler(self.world.store, lambda: self.world.runs, Observer(tell, on_look=self.watched.look), self.world.clock, PACE)

    def serve(self, until: str) -> None:
        self.world.clock.end = utc(until)
        with pytest.raises(Over):
            self.scheduler().serve()

    def look(self) -> None:
        """What the thread of a real scheduler does."""
        self._teller.tell(self.watched.states().model_dump_json())

    def value(self, name: str, **labels: str) -> float | None:
        self.look()
        return self._registry.get_sample_value(f"raymill_{name}", {"schedule": "fashion"} | labels)

    def counts(self) -> dict[str, float]:
        """Runs and decisions by outcome."""
        self.look()
        found = [metric for metric in self._registry.collect() if metric.name in ("raymill_schedule_runs", "raymill_promotion_decisions")]
        return {sample.labels["outcome"]: sample.value for metric in found for sample in metric.samples}

    def status(self) -> str | None:
        states = ("waiting", "running")
        return next((state for state in states if self.value("schedule_state", state=state) == 1), None)

    def at(self, moment: str, look: Callable[[], None]) -> None:
        self.world.clock.at.append((utc(moment), look))


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path, utc("2026-03-01 00:00"))
    world.runs = Decides(world.clock, world.store)
    world.runs.decisions = ["promoted", "kept"]
    return world


def stamp(moment: str) -> float:
    return utc(moment).timestamp()


def test_the_series_of_a_schedule_follow_its_runs(world: World) -> None:
    world.add(trigger=NOON, retries=0)
    world.runs.results = [Progressed("ended", 0), Progressed("ended", 0), Progressed("ended", 1, "out of memory")]
    watching = Watching(world)
    seen: list[str] = []

    def before() -> None:
        assert watching.status() == "waiting"
        assert watching.counts() == {"succeeded": 0, "failed": 0, "skipped": 0, "promoted": 0, "kept": 0}
        assert watching.value("schedule_last_success_timestamp_seconds") is None
        assert watching.value("schedule_next_fire_timestamp_seconds") == stamp("2026-03-01 12:00")
        seen.append("before")

    def during(heartbeat: str) -> None:
        assert watching.status() == "running"
        assert watching.counts()["succeeded"] == 0
        assert 0 <= stamp(heartbeat) - (watching.value("schedule_heartbeat_timestamp_seconds") or 0) <= 600
        seen.append("during")

    def after() -> None:
        assert watching.status() == "waiting"
        assert watching.counts() == {"succeeded": 1, "failed": 0, "skipped": 0, "promoted": 1, "kept": 0}
        assert watching.value("schedule_last_success_timestamp_seconds") == pytest.approx(stamp("2026-03-01 12:30"), abs=1)
        assert watching.value("schedule_next_fire_timestamp_seconds") == stamp("2026-03-02 12:00")
        seen.append("after")

    def failed() -> None:
        assert watching.counts() == {"succeeded": 2, "failed": 1, "skipped": 0, "promoted": 1, "kept": 1}
        assert watching.value("schedule_last_success_timestamp_seconds") == pytest.approx(stamp("2026-03-02 12:30"), abs=1)
        seen.append("failed")

    watching.at("2026-03-01 11:00", before)
    watching.at("2026-03-01 12:07", lambda: during("2026-03-01 12:07"))
    watching.at("2026-03-01 12:23", lambda: during("2026-03-01 12:23"))  # a heartbeat later
    watching.at("2026-03-01 13:00", after)
    watching.at("2026-03-03 13:00", failed)
    watching.serve("2026-03-03 18:00")
    assert seen == ["before", "during", "during", "after", "failed"]
    assert watching.status() is None, "it acts no more"
    later, found = Watching(world), list[dict[str, float]]()
    later.at("2026-03-03 20:00", lambda: found.append(later.counts()))
    later.serve("2026-03-04 06:00")
    assert found == [{"succeeded": 2, "failed": 1, "skipped": 0, "promoted": 1, "kept": 1}], "counts outlive a scheduler"


def test_a_schedule_that_is_removed_is_shown_no_more(world: World) -> None:
    fashion, _ = world.add(trigger=NOON), world.add("digits", trigger=NOON)
    watching = Watching(world)
    found: list[str | None] = []

    def look() -> None:
        found.extend([watching.status(), str(watching.value("schedule_state", schedule="digits", state="waiting"))])

    watching.at("2026-03-01 08:00", look)
    watching.at("2026-03-01 08:01", fashion.remove)
    watching.at("2026-03-01 09:00", look)
    watching.serve("2026-03-01 10:00")
    assert found == ["waiting", "1.0", None, "1.0"]


def test_a_run_by_hand_counts_at_the_next_heartbeat(world: World) -> None:
    schedule = world.add(trigger=NOON)
    watching = Watching(world)
    found: list[float] = []

    def by_hand() -> None:
        now = world.clock.now()
        run = Run(id="mine", cause="by hand", config=schedule.config(), started=now, attempted=now)
        schedule.write_run(run)
        schedule.write_outcome("mine", Outcome(why="kept: no better", decision={"outcome": "kept"}))
        world.clock.at.insert(0, (now + timedelta(minutes=30), lambda: end(run)))

    def end(run: Run) -> None:
        found.append(watching.counts()["kept"])
        schedule.write_run(run.model_copy(update={"status": "succeeded", "ended": world.clock.now()}))

    watching.at("2026-03-01 08:00", by_hand)
    watching.at("2026-03-01 09:00", lambda: found.append(watching.counts()["kept"]))
    watching.serve("2026-03-01 10:00")
    assert found == [0, 1]


def test_what_is_due_and_does_not_begin_is_overdue(world: World) -> None:
    """The source is away: the time that the alert looks at stays behind."""
    world.add(trigger=NOON | {"new_data": True})
    watching = Watching(world)
    found: list[object] = []
    watching.at("2026-03-01 14:00", lambda: found.extend([watching.status(), watching.value("schedule_next_fire_timestamp_seconds")]))
    watching.serve("2026-03-01 15:00")
    assert found == ["waiting", stamp("2026-03-01 12:00")]


def test_the_series_of_a_scheduler_that_was_replaced_go_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add(trigger=NOON)
    world.runs.outlives = True  # jobs
    world.runs.lasts = timedelta(hours=2)
    first, second = Watching(world), Watching(world)
    check, lost, seen = Lease.check, list[bool](), list[object]()

    def checked(lease: Lease) -> None:
        if lost:
            lost.clear()
            raise LeaseLost("the lease was lost")
        check(lease)

    def stand_by(line: str) -> None:
        if line == "the lease was lost":  # here another machine takes over
            seen.append(first.status())
            second.serve("2026-03-01 18:00")
            raise Over

    monkeypatch.setattr(Lease, "check", checked)
    first.at("2026-03-01 12:31", lambda: seen.append(first.status()))
    first.at("2026-03-01 12:32", lambda: lost.append(True))
    first.at("2026-03-01 13:00", lambda: seen.append(second.status()))
    first.at("2026-03-01 15:00", lambda: seen.append(second.counts()["promoted"]))
    world.clock.end = utc("2026-03-01 18:00")
    with pytest.raises(Over):
        first.scheduler(stand_by).serve()
    assert seen == ["running", None, "running", 1]


def test_nobody_misses_one_that_was_not_to_stay(world: World) -> None:
    world.add(trigger=NOON)
    watching = Watching(world, once=True)
    found: list[object] = []
    watching.at("2026-03-01 08:00", lambda: found.extend([watching.status(), watching.value("schedule_heartbeat_timestamp_seconds")]))
    watching.serve("2026-03-01 09:00")
    assert found == ["waiting", None]


def test_a_hub_that_fails_is_told_again() -> None:
    told: list[tuple[str, object]] = []

    class Failing:
        def schedule(self, name: str, state: ScheduleState | None) -> None:
            told.append((name, state))
            if len(told) == 2:
                raise ConnectionError("dead")

    teller, state = Teller(Failing()), ScheduleState(status="waiting", heartbeat_at=1)
    teller.tell(ScheduleStates(schedules={"fashion": state}).model_dump_json())
    with pytest.raises(ConnectionError):
        teller.tell(ScheduleStates().model_dump_json())
    for _ in range(3):
        teller.tell(ScheduleStates().model_dump_json())
    assert told == [("fashion", state), ("fashion", None), ("fashion", None)], "once it is taken, another scheduler may tell of it"


@pytest.mark.parametrize("port", ["0", "1234"])
def test_a_scheduler_that_is_a_job_tells_the_clusters_hub(world: World, monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    told: list[tuple[str, Any]] = []
    asked: list[str | None] = []
    monkeypatch.setenv("RAYMILL_METRICS_PORT", port)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr("clusters.metrics.TELL_SECONDS", 0.01)
    monkeypatch.setattr("clusters.session.ray_cluster", lambda address, cpus: nullcontext(asked.append(address)))
    monkeypatch.setattr("clusters.metrics.ClusterHub.schedule", lambda self, name, state: told.append((name, state)))
    schedule = world.add(trigger=NOON)
    now, watched = world.clock.now(), Watched(world.store)
    with told_to_hub(watched):
        watched.look(Look(now, {"fashion": (schedule.config(), schedule.state(now))}))
        if port != "0":
            until("the hub is told", lambda: told)
            with pytest.raises(urllib.error.URLError):
                get(f"http://127.0.0.1:{port}/metrics")
        watched.look(Look(now, {}))
    assert [(name, state is None) for name, state in told] == ([] if port == "0" else [("fashion", False), ("fashion", True)])
    assert asked == ([] if port == "0" else [None])


def test_a_real_scheduler_is_scraped(machines: Machines) -> None:
    machines.add()
    port, began = free_port(), time.time()
    command = [sys.executable, "-m", "pipelines.cli", "schedule", "start", "--store", machines.store.url]
    process = subprocess.Popen(command, env=machines.environment | {"RAYMILL_METRICS_PORT": str(port)}, stderr=subprocess.DEVNULL)
    machines.started.append(process)

    def lines() -> list[str]:
        try:
            return get(f"http://127.0.0.1:{port}/metrics").splitlines()
        except OSError:  # not yet
            return []

    until("the run is on", lambda: 'raymill_schedule_state{schedule="fashion",state="running"} 1.0' in lines())
    assert 'raymill_schedule_runs_total{outcome="succeeded",schedule="fashion"} 0.0' in lines()
    machines.go()
    until("the run is counted", lambda: 'raymill_schedule_runs_total{outcome="succeeded",schedule="fashion"} 1.0' in lines())
    assert 'raymill_promotion_decisions_total{outcome="promoted",schedule="fashion"} 1.0' in lines()
    (heartbeat,) = [line for line in lines() if line.startswith("raymill_schedule_heartbeat_timestamp_seconds{")]
    assert began < float(heartbeat.split()[-1]) < time.time()
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_SECONDS) == 130
    assert not lines()


def test_what_a_scheduler_imports(tmp_path: Path) -> None:
    """Never PyTorch or Ray; nothing for metrics unless they are asked for."""
    code = (
        "import sys; from pipelines.cli import main; main(['schedule', 'start', '--once', '--store', sys.argv[1]]);"
        "print([name for name in ('torch', 'ray', 'prometheus_client') if name in sys.modules])"
    )
    quiet = {name: value for name, value in os.environ.items() if name != "RAYMILL_METRICS_PORT"}
    for environment, expected in ((quiet, []), (quiet | {"RAYMILL_METRICS_PORT": str(free_port())}, ["prometheus_client"])):
        command = [sys.executable, "-c", code, Store(str(tmp_path)).url]
        said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        assert said.splitlines()[-1] == str(expected)
