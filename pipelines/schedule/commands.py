"""The commands `raymill schedule ...`."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import typer

from components import storage
from components.errors import UserError, brief, did_you_mean
from pipelines.catalogue import find_pipeline
from pipelines.options import JsonOption, StoreOption, VerboseOption, table, watched
from pipelines.schedule.clock import SystemClock
from pipelines.schedule.config import ScheduleConfig
from pipelines.schedule.executing import Busy, close_by_hand, execute, run_by_hand
from pipelines.schedule.job_runner import JobRunner
from pipelines.schedule.runner import ProcessRunner, Runner, leave_with_parent
from pipelines.schedule.scheduler import Scheduler
from pipelines.schedule.state import Event, Look, Observer, Outcome, Run, Schedule, names
from pipelines.schedule.triggers import next_due
from pipelines.schedule.watching import Watched, told_to_hub
from pipelines.shell import Answer
from pipelines.store import Store
from pipelines.workers import Workers

schedule = typer.Typer(rich_markup_mode=None, help="Retrains models on a clock, or when there is new data.", no_args_is_help=True)

SHOWN_EVENTS = 20

Name = Annotated[str, typer.Argument(help="Name of a schedule; `raymill schedule list` has them.")]


@schedule.command()
def add(
    file: Annotated[str, typer.Argument(help="YAML file of the schedule.")],
    store: StoreOption = "store",
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> Answer:
    """Adds a schedule to a store, or changes it. A scheduler that is running sees it within seconds; a run that is on ends as it began.

    \b
    raymill schedule add fashion.yaml
    raymill schedule add fashion.yaml --store s3://bucket/store
    """
    require_tracking()
    config = ScheduleConfig.read(file)
    if not storage.is_remote(config.source):
        config = config.model_copy(update={"source": os.path.abspath(os.path.expanduser(config.source))})
    check_settings(config, file)
    now = SystemClock().now()
    new = Schedule(Store(store), config.name).add(config, now)
    due = next_due(config.trigger, now)
    lines = [f"{config.name}: {'added' if new else 'changed'}; {_next(config, due)}", "raymill schedule start runs what is due"]
    return Answer({"name": config.name, "new": new, "next": _stamp(due), "config": config.to_json()}, lines)


@schedule.command()
def remove(name: Name, store: StoreOption = "store", json: JsonOption = False, verbose: VerboseOption = False) -> Answer:
    """Removes a schedule. What it did stays in the store, and its models in the registry; a run that is on is stopped.

    \b
    raymill schedule remove fashion
    """
    chosen = Schedule(Store(store), name)
    chosen.config()
    chosen.remove()
    return Answer({"name": name, "history": chosen.place()}, [f"{name}: removed; its history stays in {chosen.place()}"])


@schedule.command("list")
def list_(store: StoreOption = "store", json: JsonOption = False, verbose: VerboseOption = False) -> Answer:
    """Lists the schedules of a store: when each is due next, and how its last run ended.

    \b
    raymill schedule list
    raymill schedule list --store s3://bucket/store --json
    """
    place = Store(store)
    now, found, rows = SystemClock().now(), {}, []
    for name in names(place):
        each = Schedule(place, name)
        config, runs = each.config(), each.runs()
        due = next_due(config.trigger, now)
        last = f"; last run {_ended(runs[-1])}" if runs else ""
        found[name] = {"next": _stamp(due), "last": runs[-1].to_json() if runs else None}
        rows.append((name, f"{_next(config, due)}{last}"))
    return Answer({"store": place.url, "schedules": found}, [f"schedules in {place.url}", *(table(rows) or ["  none"])])


@schedule.command()
def show(name: Name, store: StoreOption = "store", json: JsonOption = False, verbose: VerboseOption = False) -> Answer:
    """Shows when a schedule is due next, its runs and what they decided, and what happened lately, and why.

    \b
    raymill schedule show fashion
    """
    chosen = Schedule(Store(store), name)
    config, runs, events = chosen.config(), chosen.runs(), chosen.events(SHOWN_EVENTS)
    now = SystemClock().now()
    due, state = next_due(config.trigger, now), chosen.state(now)
    values = {
        "config": config.to_json(),
        "next": _stamp(due),
        "state": state.to_json(),
        "runs": [run.to_json() | {"outcome": _json(chosen.outcome(run.id))} for run in runs],
        "events": [event.to_json() for event in events],
    }
    zone = ZoneInfo(config.trigger.time_zone)
    lines = [f"{name}: {_next(config, due)}"]
    if state.run is not None:
        lines.append(f"on now: run {state.run.id}, attempt {state.run.attempts}, since {_local(state.run.started, zone)}")
    if state.waiting is not None:
        lines.append(f"waiting: due {_local(state.waiting.due, zone)}{f', {state.waiting.why}' if state.waiting.why else ''}")
    lines += ["runs", *(table((run.id, f"{run.cause}; {_ended(run)}") for run in runs[-SHOWN_EVENTS:]) or ["  none"])]
    lines += ["events", *(table((_local(event.at, zone), _told(event)) for event in events) or ["  none"])]
    return Answer(values, lines)


@schedule.command()
def start(
    once: Annotated[bool, typer.Option("--once", help="Run what is due, to its end, and leave.")] = False,
    cluster: Annotated[str | None, typer.Option("--cluster", metavar="URL", help="Run as jobs of this cluster's Jobs API.")] = None,
    store: StoreOption = "store",
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> Answer:
    """Runs the schedules of a store until it is stopped. However many are started on a store, one acts and the others stand by.

    Killed at any point, it goes on where it stopped when it is started again, here or on another machine. Runs are child processes that
    end with it; with --cluster they are jobs, which go on without it and are found again.

    \b
    raymill schedule start
    raymill schedule start --once
    raymill schedule start --cluster http://10.0.0.5:8265 --store s3://bucket/store
    """
    require_tracking()
    place = Store(store)
    happened: dict[str, list[Event]] = {}
    watched = Watched(place, once)

    def tell(line: str) -> None:
        if not json:
            print(line, file=sys.stderr, flush=True)

    def remember(name: str, event: Event) -> None:
        tell(f"{event.at:%Y-%m-%d %H:%M:%S} {name}: {_told(event)}")
        if once:
            happened.setdefault(name, []).append(event)
        if event.kind == "failed" and event.run is not None:
            _tell_the_page(place, name, event.run, event.text, tell)

    def make_runner() -> Runner:
        return ProcessRunner() if cluster is None else JobRunner(cluster, tell)

    def see(look: Look) -> None:
        for name in look.schedules:
            happened.setdefault(name, [])
        watched.look(look)

    with told_to_hub(watched):
        Scheduler(place, make_runner, Observer(tell, remember, see)).serve(once)
    lines = [f"{name}: {_told(events[-1]) if events else 'nothing due'}" for name, events in sorted(happened.items())]
    found = {name: [event.to_json() for event in events] for name, events in sorted(happened.items())}
    return Answer({"schedules": found}, lines or [f"no schedules in {place.url}"])


@schedule.command()
def run(
    name: Name,
    run_id: Annotated[str | None, typer.Option("--run-id", help="Do this run, once, however often it is asked for.")] = None,
    due: Annotated[bool, typer.Option("--due", hidden=True, help="The scheduler asks.")] = False,
    store: StoreOption = "store",
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> Answer:
    """Retrains now, whatever the triggers say. A schedule has one run at a time: while another is on, this waits or is refused.

    \b
    raymill schedule run fashion
    raymill schedule run fashion --run-id 20260329T010000Z
    """
    leave_with_parent()
    require_tracking()
    from pipelines.schedule.retrain import retrain

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if run_id is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}", run_id):
        raise UserError(f"--run-id {run_id} is not valid; give up to 64 letters, digits and dashes")
    chosen, clock = Schedule(Store(store), name), SystemClock()
    mine = run_by_hand(chosen, run_id, clock.now())
    command = f"raymill schedule run {name} --run-id {mine.id}"
    try:
        with watched(json, name) as progress, Workers(mine.config.workers, None, progress) as crew:
            outcome = execute(chosen, mine, retrain, crew, progress, command, say)
    except Busy as busy:
        if not due:
            raise
        outcome = Outcome(status="skipped", why=str(busy))
        chosen.write_outcome(mine.id, outcome)
    except Exception as error:
        why = brief(error)
        if close_by_hand(chosen, mine, "failed", why, clock.now()):
            _tell_the_page(chosen.store, name, mine.id, why, say)
        raise
    close_by_hand(chosen, mine, outcome.status, outcome.why, clock.now())
    return Answer({"name": name, "run": mine.id, **outcome.to_json()}, [f"{name}, run {mine.id}: {outcome.why}"])


@schedule.command()
def page(
    name: Name,
    out: Annotated[str | None, typer.Option("--out", help="Where to write it; default: its place in the store.")] = None,
    store: StoreOption = "store",
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> Answer:
    """Writes the page of a schedule: its champion now, how each candidate did against it, what was decided and why.

    \b
    raymill schedule page fashion
    raymill schedule page fashion --out fashion.html
    """
    require_tracking()
    from pipelines.registry import Registry
    from pipelines.schedule.page import write_schedule_page

    place, added = Store(store), Schedule(Store(store), name).added()
    registry = Registry(added.config.tracking if added is not None else None, place)
    written = write_schedule_page(place, name, out, registry)
    return Answer({"name": name, "page": written}, [f"page: {written}"])


def require_tracking() -> None:
    """Raises UserError where MLflow, an optional extra, is not installed."""
    if importlib.util.find_spec("mlflow") is None:
        raise UserError("schedules keep their champions in MLflow: pip install 'raymill[tracking]'")


def _tell_the_page(store: Store, name: str, run_id: str, problem: str, tell: Callable[[str], None]) -> None:
    """A run that was given up is on the schedule's page too; that it cannot be written there ends nothing."""
    from pipelines.schedule.retrain import record_failure

    known = Schedule(store, name).run(run_id)
    try:
        if known is not None:
            record_failure(known.config, run_id, store, problem)
    except Exception as error:
        tell(f"{name}: the page was not written: {brief(error)}")


def check_settings(config: ScheduleConfig, origin: str) -> None:
    """Raises UserError for a preset or an override that the pipeline does not know, before a night is lost to it."""
    from pipelines.settings import configure
    from pipelines.sweep_config import assignments_of

    pipeline = find_pipeline(config.pipeline)
    preset = config.preset or pipeline.default_preset
    if preset not in pipeline.presets:
        raise UserError(f"{origin}: preset={preset} is none of pipeline {pipeline.name}; {did_you_mean(preset, pipeline.presets)}")
    try:
        configure(pipeline.config(), pipeline.presets[preset], preset, None, assignments_of({**config.set, "data": config.source}))
    except UserError as error:
        raise UserError(f"{origin}, set: {str(error).removeprefix('command line: ')}") from None


def _next(config: ScheduleConfig, due: datetime | None) -> str:
    if due is None:
        return f"looks for new data every {config.trigger.poll_seconds:g} s"
    tail = " if there is new data" if config.trigger.new_data else ""
    return f"next {_local(due, ZoneInfo(config.trigger.time_zone))}{tail}"


def _local(when: datetime, zone: ZoneInfo) -> str:
    return f"{when.astimezone(zone):%Y-%m-%d %H:%M:%S %Z}"


def _stamp(when: datetime | None) -> str | None:
    return None if when is None else when.isoformat()


def _ended(run: Run) -> str:
    return f"{run.status}{f': {run.why}' if run.why else ''}"


def _told(event: Event) -> str:
    return f"{event.kind}{f' {event.run}' if event.run else ''}: {event.text}"


def _json(outcome: Outcome | None) -> dict[str, Any] | None:
    return None if outcome is None else outcome.to_json()
