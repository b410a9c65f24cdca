"""The page of a schedule, `store/schedules/<name>/page.html`: written after every run, and on request."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

import yaml

from components import storage
from components.errors import UserError, did_you_mean
from components.report.schedule import ChampionCard, JudgedRun, RunRow, SchedulePage, render_schedule
from pipelines.options import counted
from pipelines.registry import Registry
from pipelines.reporting import PAGE
from pipelines.schedule.config import ScheduleConfig
from pipelines.schedule.decision import Contender, Decision, read_decisions, schedule_names
from pipelines.schedule.state import Run, Schedule
from pipelines.store import COMMIT, Store

UP = "../../artifacts"  # from the page's own place in the store


@dataclass(frozen=True)
class _Times:
    """When runs began: by the scheduler's clock, or when they were decided where none attended to them; told in `zone`."""

    runs: dict[str, Run]
    zone: ZoneInfo

    def of(self, decision: Decision) -> datetime:
        run = self.runs.get(decision.run_id)
        return datetime.fromisoformat(decision.decided_at) if run is None else run.started

    def told(self, decision: Decision, form: str = "%Y-%m-%d %H:%M:%S %Z") -> str:
        return self.of(decision).astimezone(self.zone).strftime(form)


def write_schedule_page(store: Store, name: str, out: str | None = None, registry: Registry | None = None) -> str:
    """Writes the page to `out`, or to its own place in the store, and returns where it is.

    With `registry` the champion is who it is now; without, who it was after the last run, which costs no look into MLflow. Raises UserError
    when no such schedule ever ran.
    """
    decisions, schedule = read_decisions(store, name), Schedule(store, name)
    if not decisions:
        raise UserError(f"schedule {name!r} has not run yet in store {store.url}; {did_you_mean(name, schedule_names(store))}")
    judged = [decision for decision in decisions if decision.candidate is not None]
    added = schedule.added()
    config = None if added is None else added.config
    times = _Times({run.id: run for run in schedule.runs()}, ZoneInfo("UTC" if config is None else config.trigger.time_zone))
    decisions.sort(key=times.of)
    page = SchedulePage(
        name=name,
        summary=f"{counted(len(decisions), 'run')} so far, the last at {times.told(decisions[-1])}.",
        champion=_champion(judged, registry, config.registered_name if config is not None else name, times),
        score=judged[-1].score or "" if judged else "",
        better=judged[-1].better or "max" if judged else "max",
        judged=[_point(decision, times) for decision in judged if decision.candidate is not None and decision.candidate.score is not None],
        runs=[_row(store, decision, times, out is None) for decision in reversed(decisions)],
        rule=_rule(config),
        back=f"raymill rollback {config.registered_name if config is not None else name}",
        config="it was removed" if config is None else yaml.safe_dump(config.to_json(), sort_keys=False, allow_unicode=True, width=100),
        place=store.place("schedules", name, "runs"),
    )
    place = out or store.place("schedules", name, PAGE)
    storage.write_bytes(place, render_schedule(page).encode())
    return place


def champion_after(decision: Decision) -> Contender | None:
    """Who holds the title once a run that judged has decided."""
    return decision.candidate if decision.outcome == "promoted" else decision.champion


def _champion(judged: Sequence[Decision], registry: Registry | None, registered_name: str, times: _Times) -> ChampionCard | None:
    if registry is None:
        held = champion_after(judged[-1]) if judged else None
        version, artifact = (None, "") if held is None else (held.version, held.artifact)
    else:
        now = registry.champion(registered_name)
        version, artifact = (None, "") if now is None else (now.version, now.artifact.rstrip("/").rsplit("/", 1)[-1])
    if not artifact:
        return None
    made = next((run for run in judged if run.candidate is not None and run.candidate.artifact == artifact), None)
    score = None if made is None or made.candidate is None else made.candidate.score
    origin = "made by hand" if made is None else f"made by run {made.run_id}, {times.told(made)}; the score is that run's"
    return ChampionCard(title=f"{registered_name}, version {version}", artifact=artifact, score=score, since=origin)


def _point(decision: Decision, times: _Times) -> JudgedRun:
    assert decision.candidate is not None
    assert decision.candidate.score is not None
    champion, found = decision.champion.score if decision.champion is not None else None, decision.comparison
    low, high = (None, None) if champion is None or found is None else (champion + found.low, champion + found.high)
    return JudgedRun(
        times.told(decision, "%d %b %H:%M"), decision.candidate.score, champion, low, high, promoted=decision.outcome == "promoted"
    )


def _row(store: Store, decision: Decision, times: _Times, beside: bool) -> RunRow:
    """`beside`: the page lies in its own place in the store, so that links work wherever the whole store goes."""
    link = None
    if decision.report is not None and storage.exists(store.place("artifacts", decision.report, COMMIT)):
        link = os.path.join(UP, decision.report, PAGE) if beside else store.place("artifacts", decision.report, PAGE)
    candidate, run = decision.candidate, times.runs.get(decision.run_id)
    return RunRow(
        id=decision.run_id,
        when=times.told(decision),
        cause="" if run is None else run.cause,
        outcome=decision.outcome,
        reason=decision.reason,
        warnings=decision.warnings,
        new_rows=decision.new_rows,
        seconds=sum(decision.seconds.values()),
        candidate="–" if candidate is None else f"version {candidate.version}" if candidate.version is not None else candidate.artifact,
        link=link,
    )


def _rule(config: ScheduleConfig | None) -> str:
    if config is None:
        return "The schedule was removed."
    gate = config.gate
    return (
        f"its {gate.score or 'headline score'} is better than the champion's by more than {gate.margin:g}, on the same rows of split "
        f"{gate.split}: the whole {100 * gate.confidence:g} % interval of the difference, by the paired bootstrap, lies above it. "
        f"And it is not worse on the rows that were held out before the new data came."
    )
