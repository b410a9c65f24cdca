"""Who decides in a sweep: draws trials, keeps their record, judges them, and publishes each that finishes as `raymill train` would.

The record is one JSON file a trial, written before anything follows from it: after a kill the same command reads it, finds finished
trials in the store, and goes on. What it decides depends on scores and trial numbers alone, never on which trial was quicker.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from components import storage
from components.config import Config
from components.data.columns import DataShape
from components.errors import UserError
from components.report.numbers import duration, number
from components.sweep.halving import Course, Verdict, verdicts
from components.sweep.search import ATTEMPTS, MODEL_ATTEMPTS, Ended, random_values, tpe_values
from components.sweep.space import Values
from components.sweep.trial import HELD_OUT, Outcome, Trial, is_evaluation
from components.training.outlet import Row
from components.training.record import read_metrics
from pipelines.settings import Training
from pipelines.source import Source
from pipelines.store import Artifact, Draft, Recipe, Store
from pipelines.sweep_config import Judge, SweepConfig, check_trial, settings_of, show_values
from pipelines.training import adopt_run, model_recipe, training_job

RECORD = "checkpoints"  # so that the store keeps it after a mistake of the user, as it keeps a run with checkpoints
RETRY_SECONDS = 2.0

State = Literal["waiting", "running", "finished", "stopped", "failed"]


class Record(Config):
    """What is known of a trial, as it lies on storage."""

    number: int
    values: dict[str, Any]
    rows: tuple[dict[str, Any], ...] = ()
    outcome: Outcome | None = None


@dataclass
class Entry:
    """A trial as the sweep sees it."""

    number: int
    values: Values
    settings: Training
    recipe: Recipe
    rows: dict[int, Row] = field(default_factory=dict)  # step -> held-out scores
    outcome: Outcome | None = None
    stopped_at: int | None = None
    settled: bool = False  # its state will not change any more
    artifact: Artifact | None = None
    draft: Draft | None = None  # while it runs, or waits for the verdict
    lock: ExitStack = field(default_factory=ExitStack)
    retry_at: float = 0.0

    @property
    def state(self) -> State:
        if not self.settled:
            return "waiting" if self.draft is None else "running"
        if self.stopped_at is not None:
            return "stopped"
        assert self.outcome is not None
        return self.outcome.state


class _Busy(Exception):
    """Another process is making the same model."""


class Judged:
    """The trials of a sweep, and which of them is best."""

    def __init__(self, judge: Judge) -> None:
        self.entries: list[Entry] = []
        self._judge = judge

    def score(self, entry: Entry) -> float | None:
        """A finished trial's score, of its published model; another's at its last evaluation. None where there is none."""
        if entry.settled and entry.outcome is not None and entry.outcome.state == "finished" and entry.stopped_at is None:
            return _number(entry.outcome.scores.get(self._judge.score))
        curve = self.curve(entry)
        return curve[-1][1] if curve else None

    def curve(self, entry: Entry) -> list[tuple[int, float | None]]:
        """Steps and scores, up to where the trial was stopped."""
        steps = [step for step in sorted(entry.rows) if entry.stopped_at is None or step <= entry.stopped_at]
        return [(step, _number(entry.rows[step].get(HELD_OUT + self._judge.score))) for step in steps]

    def best(self) -> Entry | None:
        """The finished trial with the best score; the first of equals."""
        sign = 1 if self._judge.best == "min" else -1
        scored = [
            (sign * score, entry.number) for entry in self.entries if entry.state == "finished" and (score := self.score(entry)) is not None
        ]
        return self.entries[min(scored)[1]] if scored else None

    def details(self, entry: Entry) -> dict[str, Any]:
        """What `trials.json` says of a trial besides what it says of every one."""
        return {}


class SweepGuide(Judged):
    """The `components.sweep.trial.Guide` of a sweep in a store; a context, which lets go of its trials at the end."""

    def __init__(
        self,
        config: SweepConfig,
        sources: Mapping[str, Source],
        store: Store,
        work: str,
        data: DataShape,
        command: Callable[[Training], str],
        report: Callable[[Mapping[str, Any]], None],
    ) -> None:
        """`config` is resolved; `work` is the sweep's work folder; `command` says how to train one trial alone."""
        assert config.judge is not None
        super().__init__(config.judge)
        self._config, self._data = config, data
        self._sources, self._store, self._command, self._report = sources, store, command, report
        self._folder = storage.join(work, RECORD)
        self._records = self._read_records()
        self._used_up = False

    def __enter__(self) -> SweepGuide:
        return self

    def __exit__(self, *problem: Any) -> None:
        for entry in self.entries:
            with suppress(UserError):
                entry.lock.__exit__(*problem)

    def next(self) -> Trial | None:
        self._draw()
        for entry in self.entries:
            if not entry.settled and entry.draft is None and time.monotonic() >= entry.retry_at:
                trial = self._start(entry)
                if trial is not None:
                    return trial
        return None

    def exhausted(self) -> bool:
        self._draw()
        complete = self._used_up or len(self.entries) == self._config.trials
        return complete and all(entry.settled or entry.draft is not None for entry in self.entries)

    def reports(self, number: int, row: Row) -> bool:
        entry = self.entries[number]
        if not entry.settled:
            entry.rows[row["step"]] = scores_of(row)
            self._keep(entry)
            self._settle()
        return not entry.settled

    def ends(self, number: int, outcome: Outcome) -> None:
        entry = self.entries[number]
        if not entry.settled:
            entry.outcome = outcome
            self._keep(entry)
            self._settle()

    def tidy(self) -> None:
        """Removes the run folders of trials that were stopped or failed."""
        for entry in self.entries:
            if entry.state in ("stopped", "failed"):
                self._store.discard(entry.recipe)

    # What there is to try

    def _draw(self) -> None:
        """Adds trials as far as the search can tell them now."""
        before = len(self.entries)
        while not self._used_up and (place := len(self.entries)) < self._config.trials and self._can_draw(place):
            known = self._records.get(place)
            values = self._propose(place) if known is None else {key: known.values[key] for key in self._config.vary if key in known.values}
            if values is None:
                self._used_up = True
                self._report({"line": f"the space holds no more than {place} different trials that are valid"})
                return
            settings = settings_of(self._config, values)
            entry = Entry(place, values, settings, model_recipe(settings, self._sources))
            if known is not None:
                entry.rows = {row["step"]: row for row in known.rows}
                entry.outcome = known.outcome if known.outcome is not None and known.outcome.state == "failed" else None
            self.entries.append(entry)
        if len(self.entries) > before:
            self._settle()

    def _can_draw(self, place: int) -> bool:
        return self._config.search == "random" or all(entry.settled for entry in self._known_to(place))

    def _known_to(self, place: int) -> list[Entry]:
        return self.entries[: max(0, place - self._config.ahead + 1)]

    def _propose(self, place: int) -> Values | None:
        """Values that no earlier trial has; None when there seem to be none left."""
        c = self._config
        history = [
            Ended(entry.values, score, entry.stopped_at or entry.settings.train.steps, entry.state == "finished")
            for entry in (self._known_to(place) if c.search == "tpe" else ())
            if entry.state != "failed" and (score := self.score(entry)) is not None
        ]
        for attempt in range(ATTEMPTS):
            if c.search == "tpe" and attempt < MODEL_ATTEMPTS:
                values = tpe_values(c.vary, c.seed, place, attempt, history, self._judge.best)
            else:
                values = random_values(c.vary, c.seed, place, attempt)
            if all(values != entry.values for entry in self.entries) and self._valid(values):
                return values
        return None

    def _valid(self, values: Values) -> bool:
        try:
            check_trial(self._config, values, self._data, "trial")
        except UserError:
            return False
        return True

    # Start and end of trials

    def _start(self, entry: Entry) -> Trial | None:
        """Takes the lock of the trial's model and gives its job; None when the model is there already, or another process is at it."""
        found = self._store.find(entry.recipe)
        if found is None:
            lock = ExitStack()
            try:
                draft = lock.enter_context(self._store.drafting(entry.recipe, _raise_busy))
            except _Busy as busy:
                if not entry.retry_at:
                    self._report({"line": f"trial {entry.number}: {busy} is making the same model; waiting for it"})
                entry.retry_at = time.monotonic() + RETRY_SECONDS
                return None
            found = self._store.find(entry.recipe)  # made just now
            if found is None:
                entry.draft, entry.lock = draft, lock
                children = {name: source.url for name, source in self._sources.items() if name != "data"}
                return Trial(entry.number, training_job(entry.settings, self._sources["data"].url, draft.work, children))
            lock.close()
        self._take(entry, found)
        return None

    def _take(self, entry: Entry, found: Artifact) -> None:
        """A model that is in the store already stands for its trial."""
        info = storage.read_json(found.path("run.json"))
        entry.artifact = found
        entry.rows = {row["step"]: scores_of(row) for row in read_metrics(found.url) if is_evaluation(row)}
        entry.outcome = Outcome(state="finished", scores=info["scores"], seconds=info["seconds"])
        self._keep(entry)
        self._settle()

    def _settle(self) -> None:
        """Draws what follows from the scores so far."""
        name = HELD_OUT + self._judge.score
        courses = [
            Course({step: row.get(name, math.nan) for step, row in entry.rows.items()}, entry.outcome is not None) for entry in self.entries
        ]
        found = verdicts(courses, self._config.rungs, self._config.asha.reduction_factor, self._judge.best)
        for entry, verdict in zip(self.entries, found, strict=True):
            if not entry.settled and verdict.certain and (entry.outcome is not None or verdict.stopped_at is not None):
                self._conclude(entry, verdict)
        self._report(self._progress())

    def _conclude(self, entry: Entry, verdict: Verdict) -> None:
        entry.stopped_at, entry.settled = verdict.stopped_at, True
        if entry.state == "finished" and entry.artifact is None:
            assert entry.draft is not None
            assert entry.outcome is not None
            adopt_run(entry.draft)
            places = {name: source.url for name, source in self._sources.items()}
            entry.artifact = self._store.publish(entry.draft, entry.recipe, places, entry.outcome.seconds, self._command(entry.settings))
        entry.lock.close()
        entry.draft = None
        self._report({"line": self._told(entry)})

    # Record and progress

    def _keep(self, entry: Entry) -> None:
        rows = tuple(entry.rows[step] for step in sorted(entry.rows))
        record = Record(number=entry.number, values=entry.values, rows=rows, outcome=entry.outcome)
        storage.write_json(storage.join(self._folder, f"{entry.number:05d}.json"), record.to_json())

    def _read_records(self) -> dict[int, Record]:
        places = [storage.join(self._folder, name) for name in storage.list_names(self._folder) if name.endswith(".json")]
        records = [Record.parse(storage.read_json(place), place) for place in places]
        return {record.number: record for record in records}

    def _progress(self) -> dict[str, Any]:
        states = [entry.state for entry in self.entries]
        running = states.count("running")
        done = sum(entry.settled for entry in self.entries)
        best = self.best()
        facts = [f"{running} running", f"{self._config.trials - done - running} waiting"]
        if best is not None:
            facts.insert(0, f"best {self._judge.score} {number(self.score(best) or 0.0)} (trial {best.number})")
        counts = {state: states.count(state) for state in get_args(State)}
        counts["waiting"] = self._config.trials - done - running
        bests = {} if best is None else {self._judge.score: self.score(best)}
        return {"step": done, "steps": self._config.trials, "facts": facts, "trials": counts, "best": bests}

    def _told(self, entry: Entry) -> str:
        """One line about a trial that came to its end."""
        assert entry.outcome is not None or entry.stopped_at is not None
        score = self.score(entry)
        shown = f"{self._judge.score} {'–' if score is None else number(score)}"
        if entry.stopped_at is not None:
            end = f"stopped at step {entry.stopped_at}, {shown}"
        elif entry.outcome is not None and entry.outcome.state == "failed":
            end = f"failed: {entry.outcome.problem}"
        else:
            end = f"{shown}, {duration(entry.outcome.seconds if entry.outcome else 0.0)}"
        return f"trial {entry.number}: {end} ({show_values(entry.values)})"


def _raise_busy(owner: str) -> None:
    raise _Busy(owner)


def scores_of(row: Row) -> Row:
    """The step and the held-out scores of a metric row."""
    return {name: value for name, value in row.items() if name == "step" or name.startswith(HELD_OUT)}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
