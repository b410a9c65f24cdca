"""One run of a schedule: prepare what is new, train, judge candidate and champion on the same held-out rows, promote the better one.

What was decided lies in the run's folder (`pipelines/schedule/decision.py`). A run may be killed anywhere and called again under its id:
stages go on from their checkpoints, a verdict is reached once, and the registry knows the candidate by the run's key, so that the outcome
and the one entry in the registry are the same as if nothing had happened.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from importlib import metadata

from components import storage
from components.config import fingerprint
from components.errors import UserError
from pipelines.registry import Registered, Registry
from pipelines.reporting import PAGE
from pipelines.schedule.config import ScheduleConfig
from pipelines.schedule.decision import Decision, RunFolder, read_decisions
from pipelines.schedule.keeping import clear_away, registry_key
from pipelines.schedule.page import write_schedule_page
from pipelines.schedule.watch import Watch
from pipelines.source import SourceReader
from pipelines.stage import Progress
from pipelines.store import COMMIT, Artifact, Store, open_artifact
from pipelines.workers import Workers

logger = logging.getLogger(__name__)


def retrain(config: ScheduleConfig, run_id: str, store: Store, workers: Workers, progress: Progress, command: str) -> Decision:
    """The decision of the run `run_id`, reached now unless it is already there.

    Raises UserError for what the user can mend, and passes on whatever a stage raises; called again with the same id it goes on.
    """
    folder = RunFolder(store, config.name, run_id)
    decision = folder.decision()
    if decision is None or decision.outcome == "failed":
        verdict = folder.verdict() or folder.conclude(_verdict(config, run_id, store, workers, Watch(progress, folder), command))
        decision = folder.decide(_settle(config, run_id, store, verdict))
    _afterwards(config, store, decision)
    return decision


def record_failure(config: ScheduleConfig, run_id: str, store: Store, problem: str) -> Decision:
    """Writes down, for the page, that a run was given up; called again with its id, `retrain` may still decide."""
    folder = RunFolder(store, config.name, run_id)
    decision = folder.decision() or folder.decide(_decision(config, run_id, outcome="failed", reason=problem.rstrip(".")))
    _afterwards(config, store, decision)
    return decision


def registry_of(config: ScheduleConfig, store: Store) -> Registry:
    """The registry that the schedule asks for, else the store's. Raises UserError when it cannot be reached, or MLflow is missing."""
    return Registry(config.tracking, store)


def _verdict(config: ScheduleConfig, run_id: str, store: Store, workers: Workers, watch: Watch, command: str) -> Decision:
    """The decision as far as it can be known before the registry hears of it."""
    with watch.part("reading the source"):
        basis = _basis(config, store)
    found = _nothing_new(config, run_id, store, basis, watch)
    return found or _judged(config, run_id, store, workers, watch, command).model_copy(update={"basis": basis})


def _basis(config: ScheduleConfig, store: Store) -> str:
    """Fingerprint of the data, the settings and the program: while it stays, another run would make the same again.

    Neither PyTorch nor MLflow is imported for that: most runs of a clock may have nothing to do.
    """
    reader = SourceReader(store)
    source = reader.read(config.source, f"schedule {config.name}, source")
    reader.remember()
    settings = config.model_dump(mode="json", include={"pipeline", "preset", "set", "start", "gate"})
    return fingerprint([source.fingerprint, settings, metadata.version("raymill")])


def _nothing_new(config: ScheduleConfig, run_id: str, store: Store, basis: str, watch: Watch) -> Decision | None:
    """The decision when data and settings are those of the last run that judged a candidate; None when there is something to do."""
    judged = [decision for decision in read_decisions(store, config.name) if decision.candidate is not None]
    if not judged or judged[-1].basis != basis:
        return None
    last = judged[-1]
    reason = f"data and settings are those of run {last.run_id}, whose candidate was {last.outcome}"
    return _decision(config, run_id, outcome="nothing_new", reason=reason, basis=basis, seconds=watch.seconds)


def _judged(config: ScheduleConfig, run_id: str, store: Store, workers: Workers, watch: Watch, command: str) -> Decision:
    """Makes the candidate and judges it."""
    from pipelines.schedule.judging import judge
    from pipelines.schedule.work import data_of, plan_work

    plan_work(config, store)  # before MLflow is asked: what cannot work is refused at once
    with watch.part("registry"):
        registry = registry_of(config, store)
        registry.require_place()
        held = registry.champion(config.registered_name)
    champion = None if held is None else _artifact_of(held)
    work = plan_work(config, store, start=champion.url if config.start == "warm" and champion is not None else None)
    data_stage = work.data.stage.name
    before = None if champion is None else data_of(champion, data_stage, store)
    watch.compare_with(data_stage, before)
    watch.folder.note_artifacts([step.recipe.name for step in work.steps], {})  # before they are looked for: nobody clears them away now
    done = work.pipeline.run(work.config, store, workers, watch, command)
    candidate, data = done[work.gate.stage.name][0], done[data_stage][0]
    with watch.part("judging"):
        judged = judge(config.gate, candidate, champion, data, before)
    if held is not None:
        judged["champion"] = judged["champion"].model_copy(update={"version": held.version})
    judged["warnings"] = (*watch.warnings, *judged.get("warnings", ()))
    report = next((made.name for made, _ in reversed(done.values()) if PAGE in made.manifest.files), None)
    facts = {"report": report, "new_rows": watch.new_rows, "seconds": watch.seconds}
    return _decision(config, run_id, **judged, **facts)


def _settle(config: ScheduleConfig, run_id: str, store: Store, verdict: Decision) -> Decision:
    """Registers the candidate, and promotes it if that is the verdict."""
    if verdict.candidate is None:
        return verdict
    registry, name, key = registry_of(config, store), config.registered_name, registry_key(config, run_id)
    artifact = open_artifact(store.place("artifacts", verdict.candidate.artifact))
    version = registry.register(name, artifact, key=key, tags=_tags(config, run_id, verdict)).version
    verdict = verdict.model_copy(update={"candidate": verdict.candidate.model_copy(update={"version": version})})
    if verdict.outcome != "promoted" or any(each.version == version and each.by == key for each in registry.history(name)):
        return verdict  # promoted before this run was killed: whatever was done by hand since stays
    now = registry.champion(name)
    if now is not None and now.version not in (version, None if verdict.champion is None else verdict.champion.version):
        reason = f"version {now.version} became champion while this run judged, so the candidate was not compared with it; before: "
        return verdict.model_copy(update={"outcome": "kept", "reason": reason + verdict.reason})
    registry.promote(name, version, reason=verdict.reason, by=key)
    return verdict


def _afterwards(config: ScheduleConfig, store: Store, decision: Decision) -> None:
    """Clears away and writes the page. What was decided stands, whatever happens here."""
    try:
        if decision.candidate is not None:
            clear_away(config, store, registry_of(config, store))
        write_schedule_page(store, config.name)
    except UserError as error:
        logger.warning("schedule %s, run %s: %s", config.name, decision.run_id, error)


def _artifact_of(registered: Registered) -> Artifact:
    if not storage.exists(storage.join(registered.artifact, COMMIT)):
        raise UserError(
            f"{registered.artifact}, the champion of {registered.name} (version {registered.version}), is gone; promote another version"
        )
    return open_artifact(registered.artifact)


def _tags(config: ScheduleConfig, run_id: str, verdict: Decision) -> dict[str, str]:
    """What the registry shows of a candidate."""
    assert verdict.candidate is not None
    champion = "" if verdict.champion is None else str(verdict.champion.version)
    tags = {"schedule": config.name, "run": run_id, "verdict": verdict.outcome, "reason": verdict.reason, "champion_then": champion}
    return tags | {f"score.{verdict.score}": f"{verdict.candidate.score:.6g}" if verdict.candidate.score is not None else "not finite"}


def _decision(config: ScheduleConfig, run_id: str, **facts: object) -> Decision:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return Decision.model_validate({"schedule": config.name, "run_id": run_id, "decided_at": now} | facts)
