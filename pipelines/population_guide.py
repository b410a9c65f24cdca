"""Who decides in population based training: generations of members, each a training job that begins with a checkpoint of the one before.

A generation is one JSON file, written before its first job starts and again as each member ends. After a kill the same command reads
them and repeats no member that ended. Nothing but scores and numbers decides who copies whom (`components/sweep/population.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from components import storage
from components.config import Config
from components.data.columns import DataShape
from components.errors import UserError
from components.report.numbers import number as shown
from components.sweep.population import changed_values, copied_members
from components.sweep.search import random_values
from components.sweep.space import Values
from components.sweep.trial import HELD_OUT, Outcome, Trial
from components.training.checkpoint import checkpoint_name
from components.training.continuation import CHECKPOINTS
from components.training.job import TrainingJob
from components.training.outlet import Row
from pipelines.population_config import generations
from pipelines.source import Source
from pipelines.store import Draft
from pipelines.sweep_config import SweepConfig, check_trial, settings_of
from pipelines.sweep_guide import RECORD, Entry, Judged, scores_of
from pipelines.training import MODEL, model_recipe, training_job

RUNS = "members"


class Member(Config):
    """One member in one generation: its values, and the member whose weights it begins with where they are not its own."""

    values: dict[str, Any]
    copied: int | None = None
    rows: tuple[dict[str, Any], ...] = ()
    outcome: Outcome | None = None


class Generation(Config):
    """All members over the same steps, as it lies on storage."""

    members: tuple[Member, ...]


class PopulationGuide(Judged):
    """The `components.sweep.trial.Guide` of a population, whose trials are its members."""

    def __init__(
        self,
        config: SweepConfig,
        sources: Mapping[str, Source],
        work: str,
        data: DataShape,
        report: Callable[[Mapping[str, Any]], None],
    ) -> None:
        """`config` is resolved; `work` is the sweep's work folder. Raises UserError when a generation there has lost all members."""
        assert config.judge is not None
        super().__init__(config.judge)
        self._config, self._sources, self._work, self._data, self._report = config, sources, work, data, report
        self._spans = generations(config)
        self._generations = self._read_generations()
        self._given: set[int] = set()
        self._rows: dict[int, dict[int, Row]] = {}
        if not self._generations:
            self._begin([Member(values=random_values(config.vary, config.seed, number)) for number in range(config.trials)])
        self._go_on()

    def next(self) -> Trial | None:
        for number, member in enumerate(self._members):
            if member.outcome is None and number not in self._given:
                self._given.add(number)
                self._rows[number] = {}
                return Trial(number, self._job(number))
        return None

    def exhausted(self) -> bool:
        last = len(self._generations) == len(self._spans)
        return last and all(member.outcome is not None or number in self._given for number, member in enumerate(self._members))

    def reports(self, number: int, row: Row) -> bool:
        self._rows[number][row["step"]] = scores_of(row)
        return True

    def ends(self, number: int, outcome: Outcome) -> None:
        rows = tuple(row for _, row in sorted(self._rows[number].items()))
        members = list(self._members)
        members[number] = members[number].model_copy(update={"rows": rows, "outcome": outcome})
        self._generations[-1] = Generation(members=tuple(members))
        self._keep()
        self._report(self._progress())
        if outcome.state == "failed":
            self._report({"line": f"member {number} failed: {outcome.problem}"})
        self._go_on()

    def details(self, entry: Entry) -> dict[str, Any]:
        """What the member did in each generation, and whose weights its own come from, generation by generation."""
        ancestors = self._ancestors(entry.number)
        courses = []
        for place, span in enumerate(self._spans):
            member = self._generations[place].members[entry.number]
            score = self._scores(place)[entry.number]
            courses.append(
                {
                    "steps": [span.start, span.stop],
                    "values": member.values,
                    "copied": member.copied,
                    "score": score if math.isfinite(score) else None,
                    "problem": member.outcome.problem if member.outcome is not None else "",
                }
            )
        return {"generations": courses, "ancestors": ancestors}

    def adopt(self, draft: Draft, best: Entry) -> None:
        """Copies the best member's model into the draft, its last record, and the metrics of all that its weights went through."""
        last = len(self._spans) - 1
        for name in (MODEL, "run.json"):
            draft.adopt(storage.join(self._run(last, best.number), name), name)
        for place, number in enumerate(self._ancestors(best.number)):
            draft.adopt(storage.join(self._run(place, number), "metrics"), "metrics")  # files are named by their steps

    # From one generation to the next

    @property
    def _members(self) -> tuple[Member, ...]:
        return self._generations[-1].members

    def _go_on(self) -> None:
        """Begins the next generation if this one has ended; after the last there are entries."""
        while all(member.outcome is not None for member in self._members):
            self._forget_checkpoints()
            if len(self._generations) == len(self._spans):
                self.entries = [self._entry(number) for number in range(len(self._members))]
                return
            self._begin(self._successors())

    def _begin(self, members: list[Member]) -> None:
        self._generations.append(Generation(members=tuple(members)))
        self._keep()
        self._given, self._rows = set(), {}

    def _successors(self) -> list[Member]:
        """The members of the next generation, as the scores of this one decide; raises UserError when there are none."""
        c, place = self._config, len(self._generations)
        scores = self._scores(place - 1)
        try:
            copied = copied_members(scores, self._judge.best, c.pbt.quantile, c.seed, place)
        except ValueError:
            problem = next((m.outcome.problem for m in self._members if m.outcome is not None and m.outcome.problem), "no scores")
            raise UserError(f"none of {c.trials} members came to a score in generation {place}; {problem}") from None
        found = []
        for number, source in enumerate(copied):
            values = self._members[number if source is None else source].values
            if source is not None:
                values = changed_values(c.vary, values, c.pbt.factors, c.pbt.resample, (c.seed, place, number), self._valid)
            found.append(Member(values=values, copied=source))
        self._tell(scores, copied)
        return found

    def _job(self, number: int) -> TrainingJob:
        """The member's training over the steps of this generation."""
        place, member = len(self._generations) - 1, self._members[number]
        span, children = self._spans[place], {name: source.url for name, source in self._sources.items() if name != "data"}
        settings = settings_of(self._config, member.values)
        job = training_job(settings, self._sources["data"].url, self._run(place, number), children)
        more: dict[str, Any] = {"until": span.stop} if span.stop < self._config.train.steps else {}
        if place:
            origin = self._run(place - 1, number if member.copied is None else member.copied)
            more["resume_from"] = storage.join(origin, CHECKPOINTS, checkpoint_name(span.start))
        return TrainingJob.parse(job.to_json() | more, "pbt")

    def _scores(self, place: int) -> list[float]:
        """The members' scores at the end of a generation; nan where there is none."""
        name, end = HELD_OUT + self._judge.score, self._spans[place].stop
        found = []
        for member in self._generations[place].members:
            score = {row["step"]: row.get(name) for row in member.rows}.get(end)
            finished = member.outcome is not None and member.outcome.state == "finished"
            found.append(float(score) if finished and score is not None else math.nan)
        return found

    def _ancestors(self, number: int) -> list[int]:
        """The member of each generation whose weights member `number` of the newest has in the end."""
        found = [number]
        for generation in reversed(self._generations[1:]):
            source = generation.members[found[0]].copied
            found.insert(0, found[0] if source is None else source)
        return found

    def _entry(self, number: int) -> Entry:
        member = self._members[number]
        settings = settings_of(self._config, member.values)
        rows = {row["step"]: row for generation in self._generations for row in generation.members[number].rows}
        values = {key: member.values[key] for key in self._config.vary}
        return Entry(number, values, settings, model_recipe(settings, self._sources), rows, member.outcome, settled=True)

    def _valid(self, values: Values) -> bool:
        try:
            check_trial(self._config, values, self._data, "member")
        except UserError:
            return False
        return True

    # Storage and progress

    def _run(self, place: int, number: int) -> str:
        return storage.join(self._work, RUNS, f"generation_{place:05d}", f"member_{number:05d}")

    def _forget_checkpoints(self) -> None:
        """Of the generation before, which nobody begins with any more."""
        place = len(self._generations) - 2
        for number in range(len(self._members) if place >= 0 else 0):
            storage.remove(storage.join(self._run(place, number), CHECKPOINTS))

    def _keep(self) -> None:
        place = storage.join(self._work, RECORD, f"generation_{len(self._generations) - 1:05d}.json")
        storage.write_json(place, self._generations[-1].to_json())

    def _read_generations(self) -> list[Generation]:
        folder = storage.join(self._work, RECORD)
        places = [storage.join(folder, name) for name in storage.list_names(folder) if name.startswith("generation_")]
        return [Generation.parse(storage.read_json(place), place) for place in places]

    def _progress(self) -> dict[str, Any]:
        members, place = len(self._members), len(self._generations) - 1
        done = place * members + sum(member.outcome is not None for member in self._members)
        ended = [member.outcome.state for member in self._members if member.outcome is not None]
        trials = {state: ended.count(state) for state in ("finished", "failed")} | {
            "running": sum(self._members[number].outcome is None for number in self._given)
        }
        scores = [score for score in self._scores(place) if math.isfinite(score)]
        best = {self._judge.score: min(scores) if self._judge.best == "min" else max(scores)} if scores else {}
        return {
            "step": done,
            "steps": len(self._spans) * members,
            "facts": [f"generation {place + 1} of {len(self._spans)}"],
            "trials": trials | {"waiting": members - sum(trials.values())},
            "best": best,
        }

    def _tell(self, scores: list[float], copied: list[int | None]) -> None:
        """One line about a generation that came to its end."""
        sign = 1 if self._judge.best == "min" else -1
        best = min((sign * score, number) for number, score in enumerate(scores) if math.isfinite(score))[1]
        place = len(self._generations)
        copies = ", ".join(f"{number} copies {source}" for number, source in enumerate(copied) if source is not None)
        self._report(
            {
                "line": f"generation {place} of {len(self._spans)}, step {self._spans[place - 1].stop}: "
                f"best {self._judge.score} {shown(scores[best])} (member {best}); {copies}"
            }
        )
