"""One run, from its lock to its outcome: what the scheduler's child, a person and a cluster's cron job all do."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from components import storage
from components.errors import UserError
from components.lease import held
from pipelines.schedule.config import ScheduleConfig
from pipelines.schedule.state import Outcome, Run, Schedule, this_process
from pipelines.schedule.triggers import look
from pipelines.stage import Progress
from pipelines.store import Store
from pipelines.workers import Workers

LOCK, RUNNING = ".lock", "running.json"


class Busy(UserError):
    """Another run of the schedule is on, and the schedule says `overlap: skip`."""


class Decided(Protocol):
    """What of a decision a schedule looks at."""

    @property
    def outcome(self) -> str: ...
    @property
    def reason(self) -> str: ...
    def to_json(self) -> dict[str, object]: ...


Retrain = Callable[[ScheduleConfig, str, Store, Workers, Progress, str], Decided]


def run_by_hand(schedule: Schedule, run_id: str | None, now: datetime) -> Run:
    """A run that no trigger asked for; with the id of one that is known, that run again. Raises UserError without such a schedule."""
    config = schedule.config()
    known = schedule.run(run_id) if run_id is not None else None
    if known is not None:
        return known
    data = look(config.source).fingerprint if config.trigger.new_data else None
    return Run(id=run_id or f"hand-{now:%Y%m%dT%H%M%S%fZ}", cause="by hand", config=config, data=data, started=now, attempted=now)


def execute(
    schedule: Schedule, run: Run, retrain: Retrain, crew: Workers, progress: Progress, command: str, tell: Callable[[str], None]
) -> Outcome:
    """Runs it, alone in its schedule; a run that was decided already is not run again.

    While another run is on: raises Busy, or waits (`overlap: after`); an attempt at the same run, one that is about to leave, is waited
    for. Raises what `retrain` raises.
    """

    def waiting(owner: str) -> None:
        place = schedule.place(RUNNING)
        other = storage.read_json(place)["run"] if storage.exists(place) else "another"
        if other != run.id and run.config.overlap == "skip":
            raise Busy(f"{owner} is at run {other} of schedule {schedule.name} (overlap: skip); run it once that is done")
        tell(f"{owner} is at run {other} of schedule {schedule.name}; waiting")

    with held(schedule.place(LOCK), waiting, certain=run.config.overlap == "skip") as lease:
        found = schedule.outcome(run.id)
        if found is not None:
            return found
        storage.write_json(schedule.place(RUNNING), {"run": run.id, "by": this_process()})
        if schedule.run(run.id) is None:
            schedule.write_run(run)
        decision = retrain(run.config, run.id, schedule.store, crew, progress, command)
        lease.check()
        return _record(schedule, run, decision)


def _record(schedule: Schedule, run: Run, decision: Decided) -> Outcome:
    outcome = Outcome(
        status="failed" if decision.outcome == "failed" else "succeeded",
        why=f"{decision.outcome.replace('_', ' ')}: {decision.reason}",
        decision=decision.to_json(),
    )
    schedule.write_outcome(run.id, outcome)
    if outcome.status == "succeeded":
        schedule.take(run)
    return outcome


def close_by_hand(schedule: Schedule, run: Run, status: str, why: str, now: datetime) -> bool:
    """Writes down how a run ended, unless a scheduler attends to it; returns whether it did."""
    attended = schedule.state(now).run
    if attended is not None and attended.id == run.id:
        return False
    schedule.write_run(run.model_copy(update={"status": status, "ended": now, "why": why}))
    return True
