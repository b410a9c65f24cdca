"""The storm: lanes of work that run side by side, each struck again and again at drawn moments until its events are used up."""

from __future__ import annotations

import json
import random
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.chaos.checks import changed, left_behind, restart_after, result
from benchmarks.chaos.events import KILLS, KINDS, Scene
from benchmarks.chaos.works import Client, Work
from benchmarks.chaos.world import Request, World
from pipelines.store import COMMIT

GAP_SECONDS = (0.5, 6.0)  # between what follows the last event and the next
FIRST_SECONDS = (5.0, 20.0)  # from the start of a work to its first event
PROGRESS_SECONDS = 600.0  # without any, the work hangs
ROUND_SECONDS = 2400.0
UNHURT_SECONDS = 15.0  # for which a kind of event waits for something to hurt, before another has its turn
STAGES = {
    "images": "preprocessing",
    "judge": "training",
    "tokenizer": "training",
    "codes": "preprocessing",
    "prior": "training",
    "samples": "sampling",
    "scores": "scoring",
    "report": "scoring",
}
PHASES = {"prepare": "preprocessing", "sample": "sampling", "sweep": "sweeping", "schedule": "scheduling"}


@dataclass
class Record:
    """One event: what it was, when, what followed, and what was wrong afterwards."""

    number: int
    kind: str
    phase: str
    work: str
    detail: str
    at: float  # seconds from the beginning of the storm
    recovery_seconds: float | None = None
    steps_again: int | None = None
    committed_before: int = 0  # objects
    losses: list[str] = field(default_factory=list)


class Log:
    """The events so far, each also a line of a file."""

    def __init__(self, file: Path, tell: Callable[[str], None]) -> None:
        self.records: list[Record] = []
        self.began = time.monotonic()
        self._file, self._tell, self._turn = file, tell, threading.Lock()
        file.write_text("")

    def open(self, kind: str, phase: str, work: str, detail: str, at: float, committed: int) -> Record:
        with self._turn:
            number = len(self.records) + 1
            record = Record(number, kind, phase, work, detail, round(at - self.began, 1), committed_before=committed)
            self.records.append(record)
        return record

    def close(self, records: list[Record]) -> None:
        """Writes down events of which all is known."""
        with self._turn, open(self._file, "a") as file:
            for record in records:
                file.write(json.dumps(asdict(record)) + "\n")

    def say(self, text: str) -> None:
        self._tell(f"{time.monotonic() - self.began:6.0f} s  {text}")


class Lane(threading.Thread):
    """Does its kinds of work in turn, as long as events are planned for them."""

    def __init__(
        self,
        world: World,
        make: dict[str, Callable[[str], Work]],
        planned: dict[str, list[str]],
        references: dict[str, dict[str, str]],
        draw: random.Random,
        log: Log,
    ) -> None:
        super().__init__(name=f"lane {'+'.join(planned)}")
        self._world, self._make, self._planned, self._references = world, make, planned, references
        self._draw, self._log = draw, log
        self.failure: str | None = None

    def run(self) -> None:
        try:
            number = 0
            while any(self._planned.values()):
                for kind, planned in self._planned.items():
                    if planned:
                        self._round(self._make[kind](str(number)), planned)
                number += 1
        except Exception:
            self.failure = traceback.format_exc()
            self._log.say(f"{self.name} broke:\n{self.failure}")

    def _round(self, work: Work, planned: list[str]) -> None:
        client = Client(self._world, work)
        before: dict[str, str] = {}
        records: list[Record] = []
        problems: list[str] = []
        ready_at, waited_since = time.monotonic() + self._draw.uniform(*FIRST_SECONDS), time.monotonic()
        while client.is_running() and not problems:
            time.sleep(0.2)
            if time.monotonic() - client.began > ROUND_SECONDS:
                problems.append(f"not done after {ROUND_SECONDS:.0f} s")
            if not planned or time.monotonic() < ready_at or client.driver() is None:
                continue
            record = self._strike(client, planned[0], before)
            if record is not None:
                planned.pop(0)
                records.append(record)
                problems += record.losses
                ready_at, waited_since = time.monotonic() + self._draw.uniform(*GAP_SECONDS), time.monotonic()
            elif time.monotonic() - waited_since > UNHURT_SECONDS:
                planned.append(planned.pop(0))
                waited_since = time.monotonic()
        self._finish(client, records, problems, before)

    def _strike(self, client: Client, kind: str, before: dict[str, str]) -> Record | None:
        work = client.work
        before |= self._world.committed(work.prefix, work.commit)
        phase, began = self._phase(work), time.monotonic()
        if not client.is_running():
            return None
        detail = KINDS[kind](Scene(self._world, client, self._draw))
        if detail is None:
            return None
        record = self._log.open(kind, phase, f"{work.kind} {work.name}", detail, began, len(before))
        self._await_progress(client, record, began)
        if kind in KILLS and (restart := restart_after(self._world, work, began)) is not None:
            record.steps_again = restart.again
            record.losses += restart.problems()
        told = f", at most {record.steps_again} steps again" if record.steps_again is not None else ""
        self._log.say(
            f"{record.number:3d} {record.work}: {kind} in {phase} ({detail}); went on after {record.recovery_seconds:.0f} s{told}"
            + "".join(f"; LOSS: {loss}" for loss in record.losses)
        )
        return record

    def _await_progress(self, client: Client, record: Record, began: float) -> None:
        """Until the work has written something that it only writes when it has gone on, or has ended."""
        work = client.work
        while client.is_running():
            requests = self._world.proxy.since(began, work.prefix)
            first = next((each.at for each in requests if _shows_progress(each, work, record)), None)
            if first is not None:
                record.recovery_seconds = round(first - began, 1)
                return
            if time.monotonic() - began > PROGRESS_SECONDS:
                record.losses.append(f"no progress after {PROGRESS_SECONDS:.0f} s")
                break
            time.sleep(0.2)
        record.recovery_seconds = round(time.monotonic() - began, 1)

    def _phase(self, work: Work) -> str:
        if work.kind in PHASES:
            return PHASES[work.kind]
        keys = [each.key for each in self._world.proxy.since(0.0, work.prefix) if each.method == "PUT"]
        done = {key.split("/")[3].rpartition("-")[0] for key in keys if key.endswith("/artifact.json")}
        return next((phase for stage, phase in STAGES.items() if stage not in done), "scoring")

    def _finish(self, client: Client, records: list[Record], problems: list[str], before: dict[str, str]) -> None:
        """The checks of a work that has ended; what they find is held against all its events, since each may have caused it."""
        found: list[str] = []
        if problems:
            client.give_up()
        code, attempts, said = client.ended()
        if code:
            found.append(f"exit {code}: {said}")
        else:
            found += result(self._world, client.work, self._references[client.work.kind])[1]
        found += changed(self._world, client.work, before)
        found += left_behind(self._world, client)
        for record in records:
            record.losses += found
        if found and not records:
            lost = self._log.open("none", self._phase(client.work), f"{client.work.kind} {client.work.name}", "", time.monotonic(), 0)
            lost.losses += found
            records = [lost]
        self._log.close(records)
        seconds = time.monotonic() - client.began
        told = f"{len(records)} events, {attempts} attempts, {seconds:.0f} s"
        self._log.say(f"    {client.work.kind} {client.work.name} ended: {told}" + "".join(f"; LOSS: {loss}" for loss in found))


def _shows_progress(request: Request, work: Work, record: Record) -> bool:
    """Whether this request tells that the work went on after the event, and is not of a process that the event did not reach."""
    if record.kind not in KILLS:
        return request.method == "PUT"
    by_driver = request.key.endswith(f"/{COMMIT}") and record.phase in ("training", "sweeping")
    return work.goes_on(request) and not (by_driver and record.kind not in ("driver", "supervisor"))
