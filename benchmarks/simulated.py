"""A real scheduler with real runs in a simulated time that another process drives.

    python -m benchmarks.simulated FOLDER

`FOLDER` holds the store, and the clock as two files: `now`, which the acting scheduler moves, and `limit`, up to which it may. Without a
run a sleep is over at once; beside a run it lasts a moment, so that a run of seconds takes an hour or two of its day. What the scheduler
and each run cost in real time is appended to `costs.jsonl`.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from components.config import Config
from pipelines.schedule.runner import ProcessRunner, Progressed
from pipelines.schedule.scheduler import Pace, Scheduler
from pipelines.schedule.state import Observer
from pipelines.store import Store

STORE, NOW, LIMIT, COSTS = "store", "now", "limit", "costs.jsonl"
PACE = Pace(heartbeat=timedelta(hours=6), watch=timedelta(minutes=1))
MOMENT = 0.1  # seconds that a minute beside a run lasts
LOOK = 0.02  # seconds between looks at the limit


class Cost(Config):
    """What a step of the scheduler, or an attempt at a run, took in real time."""

    at: datetime  # simulated
    of: Literal["scheduler", "run"]
    seconds: float
    cpu_seconds: float


def read_time(file: Path) -> datetime:
    return datetime.fromisoformat(file.read_text())


def write_time(file: Path, when: datetime) -> None:
    """In one step, for readers in other processes."""
    partial = file.with_suffix(f".{os.getpid()}")
    partial.write_text(when.isoformat())
    partial.replace(file)


def read_costs(folder: Path) -> list[Cost]:
    file = folder / COSTS
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [Cost.parse(json.loads(line), COSTS) for line in lines if line.endswith("\n")]  # the last one may be under way


class Simulation:
    """The clock of schedulers in `folder`, and the runner of the one that acts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runner: MeasuredRunner | None = None
        self._woke = (time.perf_counter(), time.process_time())

    def now(self) -> datetime:
        return read_time(self._folder / NOW)

    def sleep_until(self, when: datetime) -> None:
        self.note("scheduler", time.perf_counter() - self._woke[0], time.process_time() - self._woke[1])
        if self._runner is not None and self._runner.is_busy:
            time.sleep(MOMENT)
        else:
            while read_time(self._folder / LIMIT) < when:
                time.sleep(LOOK)
        write_time(self._folder / NOW, max(when, self.now()))
        self._woke = (time.perf_counter(), time.process_time())

    def make_runner(self) -> ProcessRunner:
        self._runner = MeasuredRunner(self)
        return self._runner

    def note(self, of: Literal["scheduler", "run"], seconds: float, cpu_seconds: float) -> None:
        cost = Cost(at=self.now(), of=of, seconds=seconds, cpu_seconds=cpu_seconds)
        with open(self._folder / COSTS, "a", encoding="utf-8") as file:
            file.write(f"{json.dumps(cost.to_json())}\n")


class MeasuredRunner(ProcessRunner):
    """Notes what each attempt took."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__()
        self._simulation = simulation
        self._started = 0.0

    @property
    def is_busy(self) -> bool:
        return bool(self._children)

    def start(self, command: list[str], attempt: str) -> None:
        self._started = time.perf_counter()
        super().start(command, attempt)

    def poll(self, attempt: str) -> Progressed:
        before = _children_seconds()
        found = super().poll(attempt)
        if found.state == "ended":
            self._simulation.note("run", time.perf_counter() - self._started, _children_seconds() - before)
        return found


def _children_seconds() -> float:
    """CPU time of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(folder: Path) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    simulation = Simulation(folder)
    observer = Observer(
        tell=lambda line: print(line, flush=True),
        on_event=lambda name, event: print(f"{event.at:%Y-%m-%d %H:%M} {name} {event.kind} {event.run or ''}: {event.text}", flush=True),
    )
    try:
        Scheduler(Store(str(folder / STORE)), simulation.make_runner, observer, simulation, PACE).serve()
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
