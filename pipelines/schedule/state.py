"""What a schedule is and was, as files of the store that outlive any process and any machine.

    store/schedules/<name>/schedule.json            its config; without it the schedule does not exist, though its history stays
    store/schedules/<name>/state.json               where it stands: the due times dealt with, what waits, the run that is on
    store/schedules/<name>/events/00000007.json     what happened and why, one file an event, never changed
    store/schedules/<name>/taken.json               the listing of the data that the last run took
    store/schedules/<name>/runs/<run id>/run.json   why it ran, with which config, how it ended
    store/schedules/<name>/runs/<run id>/outcome.json   written last by the run itself: what it decided

The scheduler alone writes `state.json` and `events/`, and checks its lease before it does. `state.json` is the commit: events numbered
from its count on are those of a step that was cut off, and the step taken anew writes them again. A run by hand writes in its own folder.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import AwareDatetime, Field

from components import storage
from components.config import Config, fingerprint
from components.errors import UserError, did_you_mean
from components.lease import Lease
from pipelines.schedule.config import ScheduleConfig
from pipelines.store import Store

Status = Literal["started", "succeeded", "failed", "skipped"]


class Added(Config):
    """What `schedule.json` holds."""

    config: ScheduleConfig
    since: AwareDatetime  # due times before are none of its own


class Run(Config):
    """One run: an id that its cause determines, so that no cause runs twice, and how far it has come."""

    id: str
    cause: str  # for people: "due at ...", "new data", "by hand"
    config: ScheduleConfig  # as it was when the run began; a change comes into effect with the next
    data: str | None = None  # fingerprint of the source's listing, where new data decides
    status: Status = "started"
    started: AwareDatetime
    ended: AwareDatetime | None = None
    attempts: int = 1
    attempted: AwareDatetime  # when the last attempt began
    retry: AwareDatetime | None = None  # when the next one will; none is under way until then
    scheduler: str = ""  # who began the last attempt
    why: str = ""  # how it ended


class Waiting(Config):
    """A due time that has not become a run yet."""

    due: AwareDatetime
    until: AwareDatetime | None = None  # not looked at before
    why: str = ""


class State(Config):
    """Where a schedule stands."""

    seen: AwareDatetime  # due times up to here are dealt with
    waiting: Waiting | None = None
    run: Run | None = None
    events: int = 0

    def begun(self, since: datetime) -> State:
        """The same, with nothing due before `since`."""
        return self if self.seen >= since else self.model_copy(update={"seen": since, "waiting": None})


class Event(Config):
    """Something that was decided."""

    at: AwareDatetime
    kind: str  # started, retrying, succeeded, failed, missed, overlapped, waits, nothing new, taken over, stopped, ...
    text: str
    run: str | None = None


class Taken(Config):
    """The data that the last run took."""

    data: str
    run: str
    at: AwareDatetime


class Outcome(Config):
    """What a run decided, in its own words; skipped: another run of the schedule was on."""

    status: Literal["succeeded", "failed", "skipped"] = "succeeded"
    why: str
    decision: dict[str, Any] = Field(default_factory=dict)


class Schedule:
    """The folder of one schedule."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name

    def place(self, *parts: str) -> str:
        return self.store.place("schedules", self.name, *parts)

    def added(self) -> Added | None:
        return _read(Added, self.place("schedule.json"))

    def config(self) -> ScheduleConfig:
        """Raises UserError with the nearest name when there is no such schedule."""
        added = self.added()
        if added is None:
            raise UserError(f"no schedule {self.name!r} in store {self.store.url}; {did_you_mean(self.name, names(self.store))}")
        return added.config

    def add(self, config: ScheduleConfig, now: datetime) -> bool:
        """Adds it or changes its config; returns whether it is new. Due times count from now on, and go on where the trigger stays."""
        before = self.added()
        since = before.since if before is not None and before.config.trigger == config.trigger else now
        storage.write_json(self.place("schedule.json"), Added(config=config, since=since).to_json())
        return before is None

    def remove(self) -> None:
        """Ends the schedule; what it did stays readable."""
        storage.remove(self.place("schedule.json"))

    def state(self, since: datetime) -> State:
        """Where it stands; one that was added, or given another trigger, later than that begins at `since`."""
        state = _read(State, self.place("state.json"))
        return State(seen=since) if state is None else state.begun(since)

    def commit(self, state: State, events: list[Event], lease: Lease) -> State:
        """Writes events and then the state that follows from them; returns it. Raises what the lease does when it is lost."""
        lease.check()
        for number, event in enumerate(events, start=state.events):
            storage.write_json(self.place("events", f"{number:08d}.json"), event.to_json())
        state = state.model_copy(update={"events": state.events + len(events)})
        storage.write_json(self.place("state.json"), state.to_json())
        return state

    def events(self, last: int | None = None) -> list[Event]:
        """What happened, oldest first; with `last` only the newest so many."""
        state = _read(State, self.place("state.json"))
        count = state.events if state is not None else 0
        numbers = range(0 if last is None else max(0, count - last), count)
        return [Event.parse(storage.read_json(self.place("events", f"{n:08d}.json")), self.place("events")) for n in numbers]

    def run(self, run_id: str) -> Run | None:
        return _read(Run, self.place("runs", run_id, "run.json"))

    def write_run(self, run: Run) -> None:
        storage.write_json(self.place("runs", run.id, "run.json"), run.to_json())

    def runs(self) -> list[Run]:
        """Every run, oldest first."""
        found = [self.run(run_id) for run_id in storage.list_names(self.place("runs"))]
        return sorted((run for run in found if run is not None), key=lambda run: run.started)

    def outcome(self, run_id: str) -> Outcome | None:
        return _read(Outcome, self.place("runs", run_id, "outcome.json"))

    def write_outcome(self, run_id: str, outcome: Outcome) -> None:
        storage.write_json(self.place("runs", run_id, "outcome.json"), outcome.to_json())

    def taken(self) -> Taken | None:
        return _read(Taken, self.place("taken.json"))

    def take(self, run: Run) -> None:
        """Remembers the data of a run that succeeded, unless a later one has taken other data."""
        before = self.taken()
        if run.data is not None and (before is None or before.at <= run.started):
            storage.write_json(self.place("taken.json"), Taken(data=run.data, run=run.id, at=run.started).to_json())


def names(store: Store) -> list[str]:
    """The schedules in a store."""
    found = [name for name in storage.list_names(store.place("schedules")) if not name.startswith(".")]
    return [name for name in found if storage.exists(store.place("schedules", name, "schedule.json"))]


def id_of_due(due: datetime) -> str:
    """`20260329T010000Z`"""
    return f"{due:%Y%m%dT%H%M%SZ}"


def id_of_data(data: str, taken: Taken | None) -> str:
    """Of this data after that run: data that comes back after other data is a new cause."""
    return f"data-{fingerprint({'data': data, 'after': taken.run if taken is not None else None})}"


def this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


@dataclass(frozen=True)
class Look:
    """What a scheduler sees to: each schedule's config and where it stands. Empty once it acts no more."""

    at: datetime  # of its last heartbeat
    schedules: Mapping[str, tuple[ScheduleConfig, State]]


@dataclass(frozen=True)
class Observer:
    """Who is told what a scheduler does. Nothing depends on it."""

    tell: Callable[[str], None] = lambda line: None  # lines for people, of the scheduler itself
    on_event: Callable[[str, Event], None] = lambda name, event: None
    on_look: Callable[[Look], None] = lambda look: None  # after each round over all schedules


def _read(kind: type[Any], place: str) -> Any:
    return kind.parse(storage.read_json(place), place) if storage.exists(place) else None
