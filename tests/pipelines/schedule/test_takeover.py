"""Real schedulers and real runs, each a process, and kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from components import storage
from components.lease import held
from pipelines.schedule.config import ScheduleConfig
from pipelines.schedule.state import Schedule
from pipelines.store import Store
from tests.pipelines.schedule import fakes

PATIENCE_SECONDS = 90.0


class Machines:
    """Starts schedulers of one store, and leaves none behind."""

    def __init__(self, folder: Path, store: str) -> None:
        self.folder, self.runs = folder, folder / "runs"
        self.environment = fakes.install(self.runs)
        self.store = Store(store)
        self.schedule = Schedule(self.store, "fashion")
        self.started: list[subprocess.Popen[bytes]] = []

    def add(self, **values: object) -> None:
        source = self.folder / "source"
        source.mkdir()
        (source / "a.txt").write_text("data")
        trigger = {"new_data": True, "settle_seconds": 0, "poll_seconds": 0.1}
        config = ScheduleConfig.parse({"name": "fashion", "source": str(source), "trigger": trigger, "workers": 0, **values}, "test")
        self.schedule.add(config, datetime.now(UTC))

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        with open(self._output(len(self.started)), "wb") as output:
            command = [sys.executable, "-m", "tests.pipelines.schedule.drive", self.store.url, *words]
            process = subprocess.Popen(command, env=self.environment, stdout=output, stderr=output)
        self.started.append(process)
        return process

    def output(self, process: subprocess.Popen[bytes]) -> str:
        return self._output(self.started.index(process)).read_text()

    def _output(self, number: int) -> Path:
        return self.folder / f"scheduler-{number}.txt"

    def log(self, word: str) -> list[list[str]]:
        return [words for words in fakes.log(self.runs) if words[0] == word]

    def beat(self) -> dict[str, Any]:
        found: dict[str, Any] = storage.read_json(self.store.place("schedules", ".scheduler.json"))
        return found

    def go(self) -> None:
        (self.runs / "go").touch()

    def statuses(self) -> list[str]:
        return [run.status for run in self.schedule.runs()]

    def recorded(self, count: int = 1) -> bool:
        """Whether so many runs have come to their end, each of them well."""
        kinds = [event.kind for event in self.schedule.events()]
        return self.statuses() == ["succeeded"] * count and kinds.count("succeeded") == count

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait()
        until("every run has left", lambda: not any(lives(int(words[2])) for words in self.log("begin")))


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    machines = Machines(tmp_path, str(tmp_path / "store"))
    yield machines
    machines.close()


def until(what: str, holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"not so after {PATIENCE_SECONDS} s: {what}"
        time.sleep(0.05)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("moment", ["before", "during", "after"])
def test_a_scheduler_killed_at_any_moment_is_replaced(machines: Machines, moment: str) -> None:
    machines.add()
    if moment == "after":
        machines.go()
    first = machines.start(moment)
    until("the first acts", lambda: "scheduler of" in machines.output(first))
    second = machines.start()
    if moment == "during":
        until("the run is on", lambda: machines.log("begin"))
        until("the second stands by", lambda: "standing by" in machines.output(second))
        (begin,) = machines.log("begin")
        first.kill()
        until("the run leaves with its scheduler", lambda: not lives(int(begin[2])))
    assert first.wait(PATIENCE_SECONDS) == -signal.SIGKILL
    if moment != "after":
        until("the second has taken over", lambda: len(machines.log("begin")) == (2 if moment == "during" else 1))
        machines.go()
    until("the run is recorded", machines.recorded)
    kinds = [event.kind for event in machines.schedule.events()]
    assert kinds == (["started", "succeeded"] if moment == "after" else ["started", "taken over", "succeeded"])
    assert len(machines.log("end")) == 1
    assert len({words[1] for words in machines.log("begin")}) == 1, "the same run id"
    second.send_signal(signal.SIGTERM)
    assert second.wait(PATIENCE_SECONDS) == 130


def test_of_many_schedulers_one_acts(machines: Machines) -> None:
    machines.add()
    machines.go()
    schedulers = [machines.start() for _ in range(3)]
    until("the run is recorded", machines.recorded)
    until("two stand by", lambda: sum("standing by" in machines.output(each) for each in schedulers) == 2)
    acting = [each for each in schedulers if "standing by" not in machines.output(each)]
    assert [each.pid for each in acting] == [machines.beat()["pid"]]
    assert len(machines.log("begin")) == 1
    (machines.folder / "source" / "b.txt").write_text("more")
    until("the next run is recorded", lambda: machines.recorded(2))
    assert len(machines.log("begin")) == len(machines.log("end")) == 2


def test_a_stop_in_order_ends_the_run_and_the_next_scheduler_goes_on(machines: Machines) -> None:
    machines.add()
    first = machines.start()
    until("the run is on", lambda: machines.log("begin"))
    first.send_signal(signal.SIGTERM)
    assert first.wait(PATIENCE_SECONDS) == 130
    assert not lives(int(machines.log("begin")[0][2]))
    machines.go()
    machines.start()
    until("the run is recorded", machines.recorded)
    assert [event.kind for event in machines.schedule.events()] == ["started", "stopped", "taken over", "succeeded"]


def test_a_run_that_fails_and_one_that_hangs(machines: Machines) -> None:
    machines.add(retries=1, backoff_seconds=0.1, timeout_seconds=30)
    (machines.runs / "fail").write_text("out of memory")
    machines.go()
    machines.start()
    until("the run is given up", lambda: machines.statuses() == ["failed"])
    (run,) = machines.schedule.runs()
    assert run.why.startswith("RuntimeError: out of memory; details in ")
    assert run.why.endswith("(2 attempts)")
    assert len(machines.log("begin")) == 2
    (machines.runs / "go").unlink()
    machines.schedule.add(machines.schedule.config().model_copy(update={"timeout_seconds": 3.0, "retries": 0}), datetime.now(UTC))
    changed = datetime.now(UTC)
    until("the change is seen", lambda: datetime.fromisoformat(machines.beat()["at"]) > changed)
    (machines.folder / "source" / "b.txt").write_text("more")
    until("the hanging run is ended", lambda: machines.statuses() == ["failed"] * 2)
    assert machines.schedule.runs()[1].why == "took longer than 3 s (timeout_seconds)"
    assert not any(lives(int(words[2])) for words in machines.log("begin"))


@pytest.mark.parametrize("overlap", ["skip", "after"])
def test_a_run_by_hand_and_one_that_is_due_are_never_on_at_once(machines: Machines, overlap: str) -> None:
    machines.add(overlap=overlap)
    command = [sys.executable, "-m", "pipelines.cli", "schedule", "run", "fashion", "--store", machines.store.url]
    with open(machines.folder / "hand.txt", "wb") as output:
        hand = subprocess.Popen(command, env=machines.environment, stdout=output, stderr=output)
    machines.started.append(hand)
    until("the run by hand is on", lambda: machines.log("begin"))
    second = subprocess.Popen(command, env=machines.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    machines.started.append(second)
    if overlap == "skip":
        said = second.communicate(timeout=PATIENCE_SECONDS)[0].decode()
        assert second.returncode == 2
        assert f"process {hand.pid} on {os.uname().nodename} is at run hand-" in said
    machines.start()
    if overlap == "skip":
        until("the run that is due is skipped", lambda: "skipped" in machines.statuses())
    else:
        until("the run that is due is on", lambda: "started" in [event.kind for event in machines.schedule.events()])
    assert len(machines.log("begin")) == 1
    machines.go()
    assert hand.wait(PATIENCE_SECONDS) == 0
    until("all are done", lambda: "started" not in machines.statuses())
    words = [words[0] for words in fakes.log(machines.runs)]
    assert words == ["begin", "end"] * (len(words) // 2), "one after the other"
    if overlap == "after":
        assert second.communicate(timeout=PATIENCE_SECONDS)
        assert second.returncode == 0
        assert set(machines.statuses()) == {"succeeded"}


def test_a_run_that_is_decided_is_not_run_again(machines: Machines) -> None:
    machines.add()
    machines.go()
    command = [sys.executable, "-m", "pipelines.cli", "schedule", "run", "fashion", "--run-id", "mine", "--json", "--store"]
    for _ in range(2):
        said = subprocess.run([*command, machines.store.url], env=machines.environment, check=True, capture_output=True, text=True).stdout
        assert json.loads(said)["decision"] == {"outcome": "promoted", "reason": "0.91 against 0.90"}
    assert len(machines.log("begin")) == 1
    with held(machines.schedule.place(".lock"), pytest.fail):
        pass


@pytest.fixture
def machines_on_s3(tmp_path: Path, s3: str) -> Iterator[Machines]:
    machines = Machines(tmp_path, f"{s3}/store")
    yield machines
    machines.close()


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_on_s3_a_scheduler_that_is_killed_or_hangs_is_replaced(machines_on_s3: Machines, blow: signal.Signals) -> None:
    """A lease time later. One that only hung finds itself replaced, leaves the store alone and stands by."""
    machines = machines_on_s3
    machines.add()
    first = machines.start()
    until("the run is on", lambda: machines.log("begin"))
    second = machines.start()
    until("the second stands by", lambda: "standing by" in machines.output(second))
    first.send_signal(blow)
    until("the second acts", lambda: "scheduler of" in machines.output(second).splitlines()[-1])
    until("it has taken over", lambda: [event.kind for event in machines.schedule.events()] == ["started", "taken over"])
    machines.go()
    until("the run is recorded", machines.recorded)
    assert len(machines.log("end")) == 1
    if blow == signal.SIGSTOP:
        first.send_signal(signal.SIGCONT)
        until("the first stands by", lambda: "standing by" in machines.output(first))
        assert "was lost" in machines.output(first)
        assert machines.beat()["pid"] == second.pid
        assert machines.recorded()
