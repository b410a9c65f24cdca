"""A world for schedules: a clock that the test drives, runs that last as long as the test says, and a source on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipelines.schedule.config import ScheduleConfig
from pipelines.schedule.runner import Progressed
from pipelines.schedule.scheduler import Pace, Scheduler
from pipelines.schedule.state import Event, Observer, Outcome, Schedule
from pipelines.store import Store

PACE = Pace(heartbeat=timedelta(days=1), watch=timedelta(minutes=5))


class Over(Exception):
    """The simulated time is over."""


class Clock:
    """Sleeps take no time. `at` has what happens at an instant, in order; at `end` the scheduler is interrupted."""

    def __init__(self, start: datetime) -> None:
        self.time, self.end = start, start
        self.at: list[tuple[datetime, Callable[[], None]]] = []

    def now(self) -> datetime:
        return self.time

    def sleep_until(self, when: datetime) -> None:
        assert when >= self.time
        while self.at and self.at[0][0] <= when:
            self.time, act = self.at.pop(0)
            act()
        self.time = max(when, self.time + timedelta(milliseconds=1))
        if self.time >= self.end:
            raise Over


@dataclass
class Attempt:
    id: str
    began: datetime
    ends: datetime
    result: Progressed
    run: str


@dataclass
class Runs:
    """A runner whose attempts last `lasts` by the clock. `results` has how the next attempts end; after them all end well."""

    clock: Clock
    store: Store
    lasts: timedelta = timedelta(minutes=30)
    results: list[Progressed] = field(default_factory=list)
    begun: list[Attempt] = field(default_factory=list)
    on: dict[str, Attempt] = field(default_factory=dict)
    outlives: bool = False  # a job: goes on without its scheduler

    def start(self, command: list[str], attempt: str) -> None:
        assert command[:2] == ["schedule", "run"]
        assert command[3] == "--run-id"
        result = self.results.pop(0) if self.results else Progressed("ended", 0)
        begun = Attempt(attempt, self.clock.time, self.clock.time + self.lasts, result, f"{command[2]}/{command[4]}")
        self.begun.append(begun)
        self.on[attempt] = begun

    def poll(self, attempt: str) -> Progressed:
        found = self.on.get(attempt)
        if found is None:
            return Progressed("gone")
        if self.clock.time < found.ends:
            return Progressed("running")
        if not self.outlives:
            del self.on[attempt]
        if found.result.exit_code == 0:
            name, _, run_id = found.run.partition("/")
            Schedule(self.store, name).write_outcome(run_id, Outcome(why="promoted: better by far"))
        return found.result

    def stop(self, attempt: str) -> None:
        found = self.on.get(attempt)
        if found is not None:
            found.ends, found.result = self.clock.time, Progressed("ended", 130, "stopped")

    def close(self) -> None:
        if not self.outlives:
            self.on.clear()


class World:
    """A store with schedules, and as many schedulers after each other as the test asks for."""

    def __init__(self, folder: Path, start: datetime) -> None:
        self.folder, self.clock = folder, Clock(start)
        self.store = Store(str(folder / "store"))
        self.runs = Runs(self.clock, self.store)
        self.source = folder / "source"
        self.source.mkdir(exist_ok=True)
        self.lines: list[str] = []

    def add(self, name: str = "fashion", **values: Any) -> Schedule:
        config = ScheduleConfig.parse({"name": name, "source": str(self.source), **values}, "test")
        schedule = Schedule(self.store, name)
        schedule.add(config, self.clock.time)
        return schedule

    def bring(self, text: str, changed: datetime | None = None, file: str = "a.txt") -> None:
        """New data in the source, dated by the world's clock."""
        place = self.source / file
        place.write_text(text)
        stamp = (changed or self.clock.time).timestamp()
        os.utime(place, (stamp, stamp))

    def scheduler(self) -> Scheduler:
        return Scheduler(self.store, lambda: self.runs, Observer(tell=self.lines.append), self.clock, PACE)

    def serve(self, until: datetime) -> None:
        """A scheduler from now to then, stopped in order."""
        self.clock.end = until
        try:
            self.scheduler().serve()
        except Over:
            return

    def told(self, schedule: Schedule, *kinds: str) -> list[Event]:
        return [event for event in schedule.events() if event.kind in kinds]


def utc(text: str) -> datetime:
    """`2026-03-29 01:00`"""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)
