"""Who decides in a sampler sweep: draws settings, keeps what each came to, and says which is best.

The record is one JSON file a setting, written whole once it has ended: after a kill the same command reads it and goes on with the others.
What is drawn depends on numbers and scores alone, never on which setting was quicker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from components import storage
from components.config import Config
from components.errors import UserError
from components.families.contract import Family
from components.report.numbers import duration, number
from components.sweep.front import pareto_front
from components.sweep.sampling import SamplerTrial, SamplingOutcome
from components.sweep.search import ATTEMPTS, MODEL_ATTEMPTS, Ended, grid_values, random_values, tpe_values
from components.sweep.space import Values
from pipelines.sampler_sweep_config import SamplerSweepConfig, check_setting, sampler_of
from pipelines.sweep_config import show_values

RECORD = "checkpoints"  # so that the store keeps it after a mistake of the user, as it keeps a run with checkpoints


class Record(Config):
    """What is known of a setting that has ended, as it lies on storage."""

    number: int
    values: dict[str, Any]
    outcome: SamplingOutcome


@dataclass
class Setting:
    """A setting as the sweep sees it; without an outcome it is still to try, or being tried."""

    number: int
    values: Values
    sampler: Config
    outcome: SamplingOutcome | None = None
    begun: bool = False

    def score(self, name: str) -> float | None:
        """None before it has ended, and where it failed."""
        return None if self.outcome is None else self.outcome.scores.get(name)


class SamplerSweepGuide:
    """The `components.sweep.sampling.SamplerGuide` of a sweep in a store."""

    def __init__(self, config: SamplerSweepConfig, model: Family, work: str, report: Callable[[Mapping[str, Any]], None]) -> None:
        """`work` is the sweep's work folder."""
        self.settings: list[Setting] = []
        self._config, self._model, self._report = config, model, report
        self._folder = storage.join(work, RECORD)
        self._records = self._read_records()
        self._grid = grid_values(config.vary) if config.search == "grid" else []
        self._used_up = False

    def next(self) -> SamplerTrial | None:
        self._draw()
        setting = next((each for each in self.settings if each.outcome is None and not each.begun), None)
        if setting is None:
            return None
        setting.begun = True
        return SamplerTrial(setting.number, setting.sampler.to_json())

    def ends(self, number: int, outcome: SamplingOutcome) -> None:
        setting = self.settings[number]
        setting.outcome = outcome
        record = Record(number=number, values=setting.values, outcome=outcome)
        storage.write_json(storage.join(self._folder, f"{number:05d}.json"), record.to_json())
        self._report({"line": self._told(setting)})
        self._report(self._progress())

    def ranked(self) -> list[Setting]:
        """Those with scores, best first; of equals the first."""
        name = self._config.judge.score
        scored = [(score, each.number) for each in self.settings if (score := each.score(name)) is not None]
        return [self.settings[place] for _, place in sorted(scored)]

    def front(self) -> list[Setting]:
        """Those that no other is better than both in quality and in evaluations a sample, by evaluations."""
        ranked = self.ranked()
        points = [(each.score("evaluations") or 0.0, each.score(self._config.judge.score) or 0.0) for each in ranked]
        return [ranked[place] for place in pareto_front(points)]

    def _draw(self) -> None:
        """Adds settings as far as the search can tell them now."""
        c = self._config
        while not self._used_up and (place := len(self.settings)) < c.num_trials:
            if c.search == "tpe" and any(each.outcome is None for each in self._known_to(place)):
                return
            known = self._records.get(place)
            values = self._propose(place) if known is None else {key: known.values[key] for key in c.vary if key in known.values}
            if values is None:
                self._used_up = True
                self._report({"line": f"the space holds no more than {place} different settings that are valid"})
                return
            self.settings.append(Setting(place, values, sampler_of(c, values), None if known is None else known.outcome))

    def _known_to(self, place: int) -> list[Setting]:
        return self.settings[: max(0, place - self._config.ahead + 1)]

    def _propose(self, place: int) -> Values | None:
        """Values that no earlier setting has; None when there seem to be none left."""
        c = self._config
        if c.search == "grid":
            return self._grid[place]
        scored = [(each.values, each.score(c.judge.score)) for each in self._known_to(place)] if c.search == "tpe" else []
        history = [Ended(values, score, 1, complete=True) for values, score in scored if score is not None]
        for attempt in range(ATTEMPTS):
            if c.search == "tpe" and attempt < MODEL_ATTEMPTS:
                values = tpe_values(c.vary, c.seed, place, attempt, history, "min")
            else:
                values = random_values(c.vary, c.seed, place, attempt)
            if all(values != each.values for each in self.settings) and self._valid(values):
                return values
        return None

    def _valid(self, values: Values) -> bool:
        try:
            check_setting(self._config, values, self._model, "trial")
        except UserError:
            return False
        return True

    def _read_records(self) -> dict[int, Record]:
        places = [storage.join(self._folder, name) for name in storage.list_names(self._folder) if name.endswith(".json")]
        records = [Record.parse(storage.read_json(place), place) for place in places]
        return {record.number: record for record in records}

    def _progress(self) -> dict[str, Any]:
        done = sum(each.outcome is not None for each in self.settings)
        best, name = self.ranked()[:1], self._config.judge.score
        facts = [f"best {name} {number(each.score(name) or 0.0)} (trial {each.number})" for each in best]
        return {"step": done, "steps": self._config.num_trials, "facts": facts, "best": {name: best[0].score(name)} if best else {}}

    def _told(self, setting: Setting) -> str:
        """One line about a setting that has ended."""
        outcome = setting.outcome
        assert outcome is not None
        if outcome.state == "failed":
            return f"trial {setting.number}: failed: {outcome.problem} ({show_values(setting.values)})"
        name = self._config.judge.score
        cost = f"{number(outcome.scores['evaluations'])} evaluations a sample, {duration(outcome.seconds)}"
        return f"trial {setting.number}: {name} {number(outcome.scores[name])}, {cost} ({show_values(setting.values)})"
