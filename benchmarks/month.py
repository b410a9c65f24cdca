"""A month of retraining in minutes: real schedule, real training, real MLflow, real kills; only the time is simulated.

    python -m benchmarks.month
    python -m benchmarks.month --days 16 --seed 1

Every evening a hundred pictures come, and at half past two a schedule in Berlin looks for them; the month has the night in which that time
comes twice. On days of their own the acting scheduler is killed in the middle of a training and another takes over, a run's own process
is killed, a large delivery has shuffled labels and is corrected a day later, nothing comes at all, and a file is copied again as it was.
`benchmarks/month_checks.py` has what must hold at the end; the exit code is 1 where it does not.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
from tabulate import tabulate

from benchmarks.chaos.processes import descendants
from benchmarks.simulated import LIMIT, NOW, STORE, Cost, read_costs, write_time
from components import storage
from components.data.dataset import Dataset
from components.evaluation.scoring import evaluate
from components.families.model_folder import load_model
from pipelines.schedule.config import ScheduleConfig
from pipelines.schedule.decision import Decision, RunFolder
from pipelines.schedule.state import Schedule, id_of_due
from pipelines.store import Artifact, Store, open_artifact
from pipelines.tracking_server import connect
from tests.small_data import shipped_images, write_images

ROOT = Path(__file__).parent.parent
ZONE = "Europe/Berlin"
FIRST = date(2025, 10, 11)
DUE, DELIVERED = time_of_day(2, 30), time_of_day(19, 0)
NAME = "fashion"
FIRST_ROWS, DAILY_ROWS, LARGE_ROWS, OUTSIDE_ROWS = 400, 100, 2500, 2000
STEPS, CHECKPOINT_EVERY = 240, 40
PATIENCE_SECONDS, LOOK_SECONDS = 300.0, 0.02

SCHEDULER_KILLED, RUN_KILLED, NOTHING, COPIED = "scheduler killed", "run killed", "no new data", "a file copied again"
SHUFFLED, CORRECTED = "labels shuffled", "labels corrected"
MONTH = {6: SCHEDULER_KILLED, 10: NOTHING, 14: SHUFFLED, 15: CORRECTED, 21: RUN_KILLED, 26: COPIED}


@dataclass
class Night:
    """What one due time came to."""

    number: int
    due: datetime
    happens: str
    new_rows: int
    decision: Decision | None = None
    outside: float | None = None  # accuracy of the candidate on pictures that no run has seen
    shards: int = 0
    made: int = 0
    starts: int = 1  # of its training
    seen_step: int = 0  # of the last checkpoint before a kill
    resumed_from: int = 0
    costs: list[Cost] = field(default_factory=list)

    @property
    def run_id(self) -> str:
        return id_of_due(self.due)

    def cost(self, of: str) -> tuple[float, float]:
        """Real seconds and CPU seconds of the scheduler or of the run."""
        chosen = [cost for cost in self.costs if cost.of == of]
        return sum(cost.seconds for cost in chosen), sum(cost.cpu_seconds for cost in chosen)


class World:
    """The source, the store and the schedulers of one simulated month, all below `folder`; `close` leaves no process behind."""

    def __init__(self, folder: Path, seed: int = 0, happenings: Mapping[int, str] = MONTH) -> None:
        self.folder, self.happenings = folder, happenings
        self.source, self.store = folder / "source", Store(str(folder / STORE))
        self.schedule = Schedule(self.store, NAME)
        self.nights: list[Night] = []
        self._schedulers: list[subprocess.Popen[bytes]] = []
        self._images, self._labels = shipped_images("train", 16_000)
        self._draw = np.random.default_rng(seed)
        self._rows = self._draw.permutation(len(self._images))
        self._taken = 0
        self._large: tuple[Path, np.ndarray] | None = None
        self._shards: set[int] = set()
        write_images(folder / "outside", train=1, test=OUTSIDE_ROWS)
        self._outside = Dataset.open(str(folder / "outside"), "test")

    def begin(self) -> None:
        """The first pictures, the schedule, and two schedulers of which one stands by."""
        start = self.at(0, DELIVERED) - timedelta(hours=1)
        for file in (NOW, LIMIT):
            write_time(self.folder / file, start)
        self.source.mkdir()
        self._deliver(self.at(0, DELIVERED) - timedelta(days=1), FIRST_ROWS)
        Path(self.store.url).mkdir()
        connect(f"sqlite:///{self.store.place('mlflow.db')}").search_experiments()  # makes the tables
        self.schedule.add(config(self.source), start)
        for _ in range(2):
            self._start_scheduler()

    def live(self, number: int) -> Night:
        """One day, from the delivery to the end of the night's run."""
        happens = self.happenings.get(number, "")
        due = self.at(number, DUE)
        night = Night(number, due, happens, self._evening(self.at(number - 1, DELIVERED), happens))
        before = len(read_costs(self.folder))
        write_time(self.folder / LIMIT, due + timedelta(hours=9))
        if happens == SCHEDULER_KILLED:
            self._kill(night, self._acting)
            self._start_scheduler()
        elif happens == RUN_KILLED:
            self._kill(night, self._running)
        self._until(f"night {number} is over", lambda: self._is_over(due))
        night.costs = read_costs(self.folder)[before:]
        self._look_at(night)
        self.nights.append(night)
        return night

    def at(self, number: int, clock: time_of_day) -> datetime:
        """A time of day in Berlin, the first of two, on day `number`, counted from 1; in UTC."""
        return datetime.combine(FIRST + timedelta(days=number - 1), clock, ZoneInfo(ZONE)).astimezone(UTC)

    def outside_score(self, artifact: Artifact) -> float:
        found = evaluate(load_model(artifact.path("model")), self._outside)["accuracy"]
        assert isinstance(found, float)
        return found

    def close(self) -> None:
        for process in self._schedulers:
            if process.poll() is None:
                process.terminate()
        for process in self._schedulers:
            process.wait(PATIENCE_SECONDS)

    # The source

    def _evening(self, when: datetime, happens: str) -> int:
        """What is delivered before the night; the number of new rows."""
        if happens == NOTHING:
            return 0
        if happens == COPIED:
            newest = max(self.source.iterdir())
            _date(newest, when)
            return 0
        if happens == CORRECTED and self._large is not None:
            file, rows = self._large
            self._write(file, rows, self._labels[rows], when)
        return self._deliver(when, LARGE_ROWS if happens == SHUFFLED else DAILY_ROWS, shuffled=happens == SHUFFLED)

    def _deliver(self, when: datetime, count: int, shuffled: bool = False) -> int:
        rows = self._rows[self._taken : self._taken + count]
        self._taken += count
        file = self.source / f"{when.astimezone(ZoneInfo(ZONE)):%Y-%m-%d}.npz"
        labels = self._labels[rows]
        if shuffled:
            self._large, labels = (file, rows), self._draw.permutation(labels)
        self._write(file, rows, labels, when)
        return len(rows)

    def _write(self, file: Path, rows: np.ndarray, labels: np.ndarray, when: datetime) -> None:
        partial = self.folder / "delivery.npz"
        np.savez(partial, images=self._images[rows, 0], labels=labels)
        _date(partial, when)
        partial.replace(file)

    # Schedulers and their ends

    def _start_scheduler(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with open(self.folder / f"scheduler-{len(self._schedulers)}.txt", "wb") as output:
            command = [sys.executable, "-m", "benchmarks.simulated", str(self.folder)]
            self._schedulers.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output))

    def _acting(self) -> int:
        return int(storage.read_json(self.store.place("schedules", ".scheduler.json"))["pid"])

    def _running(self) -> int:
        children = descendants(self._acting())
        return next(pid for pid, line in children.items() if "schedule run" in line)

    def _kill(self, night: Night, victim: Callable[[], int]) -> None:
        """Kill -9 between two checkpoints."""
        self._until("a checkpoint is there", lambda: self._checkpoint() > 0)
        night.seen_step = self._checkpoint()
        os.kill(victim(), signal.SIGKILL)

    def _checkpoint(self) -> int:
        """The step of the newest complete checkpoint of the training that is under way; 0 without."""
        found = Path(self.store.place("runs")).glob("model-*/checkpoints/step_*/checkpoint.json")
        return max((int(file.parent.name.removeprefix("step_")) for file in found), default=0)

    def _is_over(self, due: datetime) -> bool:
        state = self.schedule.state(due - timedelta(days=1))
        return state.seen >= due and state.waiting is None and state.run is None

    def _until(self, what: str, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not holds():
            if time.monotonic() > deadline:
                said = "\n".join(file.read_text() for file in sorted(self.folder.glob("scheduler-*.txt")))
                raise TimeoutError(f"not so after {PATIENCE_SECONDS:.0f} s: {what}\n{said}")
            time.sleep(LOOK_SECONDS)

    # What a night has left

    def _look_at(self, night: Night) -> None:
        night.decision = RunFolder(self.store, NAME, night.run_id).decision()
        if night.decision is None or night.decision.candidate is None:
            return
        model = open_artifact(self.store.place("artifacts", night.decision.candidate.artifact))
        night.outside = self.outside_score(model)
        record = storage.read_json(model.path("run.json"))
        night.starts, night.resumed_from = record["starts"], record["resumed_from"]
        shards = Path(self.store.place("artifacts", f"images-{model.manifest.inputs['images']}")).rglob("*.arrow")
        files = {file.stat().st_ino for file in shards}  # one that was taken over is the same file
        night.shards, night.made = len(files), len(files - self._shards)
        self._shards = files


def config(source: Path) -> ScheduleConfig:
    """A small classifier, trained from scratch every night."""
    return ScheduleConfig.parse(
        {
            "name": NAME,
            "source": str(source),
            "workers": 0,
            "trigger": {"cron": f"{DUE.minute} {DUE.hour} * * *", "time_zone": ZONE, "new_data": True},
            "gate": {"block_rows": 8},
            "set": {
                "images.holdout": 0.3,
                "model.model.widths": [8, 16],
                "model.model.feature_dim": 32,
                "model.model.dropout": 0.0,
                "model.train.steps": STEPS,
                "model.train.batch_size": 64,
                "model.train.warmup_steps": 20,
                "model.train.ema_decay": None,
                "model.train.optimizer.lr": 0.005,
                "model.train.checkpoint_every": CHECKPOINT_EVERY,
            },
        },
        "benchmark",
    )


def _date(file: Path, when: datetime) -> None:
    os.utime(file, (when.timestamp(), when.timestamp()))


def row(night: Night) -> tuple[str, ...]:
    """One line of the table."""
    decision, (run_seconds, run_cpu), (_, own_cpu) = night.decision, night.cost("run"), night.cost("scheduler")
    parts = {} if decision is None else decision.seconds
    candidate = None if decision is None else decision.candidate
    champion = None if decision is None else decision.champion
    found = None if decision is None else decision.comparison
    return (
        f"{night.number}",
        f"{night.due.astimezone(ZoneInfo(ZONE)):%d %b %H:%M %Z}",
        night.happens,
        f"{night.new_rows}",
        "not run" if decision is None else decision.outcome.replace("_", " "),
        _number(None if candidate is None else candidate.score),
        _number(None if champion is None else champion.score),
        "" if found is None else f"{found.low:+.3f} to {found.high:+.3f}",
        _number(night.outside),
        f"{night.made} of {night.shards}" if night.shards else "",
        *(f"{parts[part]:.2f}" if part in parts else "" for part in ("images", "model", "judging")),
        f"{run_seconds:.1f}",
        f"{run_cpu:.1f}",
        f"{own_cpu:.2f}",
    )


HEADINGS = (
    *("day", "due", "", "new rows", "outcome", "candidate", "champion", "interval", "outside", "shards made"),
    *("prepare s", "train s", "judge s", "run s", "run CPU s", "scheduler CPU s"),
)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def totals(world: World, seconds: float) -> str:
    outcomes = Counter("nothing new" if night.decision is None else night.decision.outcome.replace("_", " ") for night in world.nights)
    kills = sum(night.happens in (SCHEDULER_KILLED, RUN_KILLED) for night in world.nights)
    told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    return f"{len(world.nights)} nights: {told}; {kills} kills survived; {seconds:.0f} s"


def main() -> int:
    from benchmarks.month_checks import check

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", metavar="FOLDER", help="an empty folder to live in, which stays")
    options = parser.parse_args()
    folder = Path(options.keep or tempfile.mkdtemp(prefix="raymill-month-"))
    folder.mkdir(exist_ok=True)
    started = time.perf_counter()
    world = World(folder, options.seed)
    try:
        world.begin()
        for number in range(1, options.days + 1):
            night = world.live(number)
            print(
                f"day {number}: {night.happens or 'new data'}, {'not run' if night.decision is None else night.decision.reason}", flush=True
            )
        seconds = time.perf_counter() - started
        print(f"\n{tabulate([row(night) for night in world.nights], HEADINGS, disable_numparse=True, tablefmt='github')}\n")
        print(f"{totals(world, seconds)}\n")
        checked = check(world)
    finally:
        world.close()
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(
        tabulate(
            [("yes" if each.holds else "NO", each.what, each.found) for each in checked], ("holds", "what", "found"), tablefmt="github"
        )
    )
    return 0 if all(each.holds for each in checked) else 1


if __name__ == "__main__":
    sys.exit(main())
