"""What a run of a schedule decided, and why: a value on disk, `store/schedules/<name>/runs/<run id>/decision.json`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field

from components import storage
from components.config import Config
from pipelines.store import Store

DECISION, ARTIFACTS, VERDICT = "decision.json", "artifacts.json", "verdict.json"
START = "start"  # config field and input of what can begin with an earlier model's weights

Outcome = Literal["promoted", "kept", "nothing_new", "failed"]


class Contender(Config):
    """One of the two models: its artifact, its version in the registry once it has one, and its score on the rows judged."""

    artifact: str
    version: int | None = None
    score: float | None = None


class Comparison(Config):
    """Candidate and champion on the same held-out rows. Differences are candidate minus champion, whatever is better."""

    difference: float
    low: float = Field(description="lower end of the paired bootstrap interval of the difference")
    high: float
    confidence: float
    blocks: int = Field(description="blocks of rows that were drawn from")


class Decision(Config):
    """One run's decision. `champion` is who held the title before it."""

    schedule: str
    run_id: str
    outcome: Outcome
    reason: str = Field(description="a sentence, with numbers")
    decided_at: str
    basis: str | None = Field(None, description="fingerprint of the data and the settings; equal ones need no second run")
    candidate: Contender | None = None
    champion: Contender | None = None
    score: str | None = None
    better: Literal["min", "max"] | None = None
    margin: float | None = None
    comparison: Comparison | None = None
    earlier: Comparison | None = Field(None, description="the same on the rows that were held out of the champion's own data")
    split: str | None = None
    rows: int | None = Field(None, description="held-out rows judged")
    new_rows: int | None = Field(None, description="rows more than in the data that the champion learnt from")
    report: str | None = Field(None, description="artifact with the page of the run")
    seconds: dict[str, float] = Field(default_factory=dict, description="by part: the stages that were made, judging, the registry")
    warnings: tuple[str, ...] = ()


class RunArtifacts(Config):
    """Artifacts by name: all that a run used, found or made, and those that it made itself, with the time in their manifests.

    The time tells them from artifacts of the same name that somebody else made again later.
    """

    used: tuple[str, ...] = ()
    made: dict[str, str] = Field(default_factory=dict)


class RunFolder:
    """What a run leaves in the store, each file written in one atomic step."""

    def __init__(self, store: Store, schedule: str, run_id: str) -> None:
        self.run_id, self.url = run_id, store.place("schedules", schedule, "runs", run_id)

    def decision(self) -> Decision | None:
        """What was decided; None before the end."""
        return self._read_decision(DECISION)

    def decide(self, decision: Decision) -> Decision:
        """Writes the decision: the end of the run."""
        self._write(DECISION, decision.to_json())
        return decision

    def verdict(self) -> Decision | None:
        """The decision as it stood before the registry heard of it; None before the judging."""
        return self._read_decision(VERDICT)

    def conclude(self, verdict: Decision) -> Decision:
        """Writes the verdict, so that a run killed later judges no second time."""
        self._write(VERDICT, verdict.to_json())
        return verdict

    def artifacts(self) -> RunArtifacts:
        """What the run is known to have used and made so far."""
        place = storage.join(self.url, ARTIFACTS)
        return RunArtifacts.parse(storage.read_json(place), place) if storage.exists(place) else RunArtifacts()

    def note_artifacts(self, used: Iterable[str], made: Mapping[str, str]) -> None:
        """Adds to what the run is known to have used and made."""
        known = self.artifacts()
        names = tuple(sorted({*known.used, *used, *made}))
        self._write(ARTIFACTS, RunArtifacts(used=names, made={**known.made, **made}).to_json())

    def _read_decision(self, file: str) -> Decision | None:
        place = storage.join(self.url, file)
        return Decision.parse(storage.read_json(place), place) if storage.exists(place) else None

    def _write(self, file: str, value: Any) -> None:
        storage.write_json(storage.join(self.url, file), value)


def run_folders(store: Store, schedule: str) -> list[RunFolder]:
    """Those of all runs of a schedule, in the order of their ids."""
    return [RunFolder(store, schedule, run_id) for run_id in storage.list_names(store.place("schedules", schedule, "runs"))]


def read_decisions(store: Store, schedule: str) -> list[Decision]:
    """Every decision of a schedule, oldest first."""
    found = [decision for folder in run_folders(store, schedule) if (decision := folder.decision()) is not None]
    return sorted(found, key=lambda decision: (decision.decided_at, decision.run_id))


def schedule_names(store: Store) -> list[str]:
    """Every schedule that ever ran in the store, those that were removed since too."""
    return [name for name in storage.list_names(store.place("schedules")) if not name.startswith(".")]
