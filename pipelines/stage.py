"""Stages and pipelines. A stage is a function named after the artifact it makes; its arguments name what it needs.

    @stage(version=1)
    def codes(images: Artifact, tokenizer: Artifact, task: Task[CodesConfig]) -> None: ...

Arguments annotated `Artifact` are made by the stage of that name, `Source` is data from outside, given by the pipeline's config field of
that name (`Artifact | None`, `Source | None`: what a config may leave out), and `Task` is the work itself: the stage's own section of the
config, the draft to fill, progress. Raise `version` when a change of code changes what a stage makes.
"""

from __future__ import annotations

import time
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, Protocol, TypeVar

from components.config import Config
from components.errors import did_you_mean
from pipelines.source import Source, SourceReader
from pipelines.store import Artifact, Draft, Recipe, Store
from pipelines.workers import Workers

C = TypeVar("C")


class Progress(Protocol):
    """Who is told how a run goes on."""

    def begins(self, stage: str) -> None: ...
    def reports(self, stage: str, row: Mapping[str, Any]) -> None: ...
    def waits(self, stage: str, owner: str) -> None: ...
    def ends(self, stage: str, artifact: Artifact, made: bool) -> None: ...


class PassedOn:
    """A `Progress` that passes everything on to another; what looks over its shoulder adds to that."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def begins(self, stage: str) -> None:
        self._progress.begins(stage)

    def reports(self, stage: str, row: Mapping[str, Any]) -> None:
        self._progress.reports(stage, row)

    def waits(self, stage: str, owner: str) -> None:
        self._progress.waits(stage, owner)

    def ends(self, stage: str, artifact: Artifact, made: bool) -> None:
        self._progress.ends(stage, artifact, made)


@dataclass(frozen=True)
class Task(Generic[C]):
    """What a stage works with, besides its inputs."""

    config: C  # the stage's own section of the pipeline's config
    draft: Draft
    workers: Workers
    report: Callable[[Mapping[str, Any]], None]  # progress: {"step": 20, "steps": 100, "loss": 0.1}
    command: str  # what makes this run again
    store: Store  # for stages that make artifacts of their own: the trials of a sweep


@dataclass(frozen=True)
class Need:
    """One argument of a stage."""

    name: str
    kind: type  # Artifact or Source
    optional: bool = False


@dataclass(frozen=True)
class Stage:
    """A stage function and what its signature says."""

    name: str
    version: int
    make: Callable[..., None]
    needs: tuple[Need, ...]
    section: Any  # annotation of the section that its Task carries


def stage(version: int) -> Callable[[Callable[..., None]], Stage]:
    """Makes a stage of a function. Raises TypeError for a signature that is not one."""

    def decorate(make: Callable[..., None]) -> Stage:
        hints = typing.get_type_hints(make)
        hints.pop("return", None)
        task = hints.pop("task", None)
        if typing.get_origin(task) is not Task:
            raise TypeError(f"stage {make.__name__}: the last argument is task: Task[<config section>]")
        needs = tuple(_need(make.__name__, name, hint) for name, hint in hints.items())
        return Stage(make.__name__, version, make, needs, typing.get_args(task)[0])

    return decorate


def _need(stage_name: str, name: str, hint: Any) -> Need:
    kinds = [kind for kind in (typing.get_args(hint) or (hint,)) if kind is not type(None)]
    if len(kinds) != 1 or kinds[0] not in (Artifact, Source):
        raise TypeError(f"stage {stage_name}: argument {name} is annotated {hint}, expected Artifact, Artifact | None or Source")
    return Need(name, kinds[0], optional=kinds[0] is not hint)


@dataclass(frozen=True)
class Step:
    """One stage of a planned run: what it would make, from what."""

    stage: Stage
    section: Any
    recipe: Recipe
    sources: Mapping[str, Source | None]
    needs: dict[str, Step | None]


class Pipeline:
    """Stages in order, the config that has a section for each, and presets of that config.

    Raises TypeError when a stage needs what no earlier stage makes, when a section is not what its stage expects, or is read by none.
    """

    def __init__(
        self,
        name: str,
        about: str,
        config: type[Config],
        stages: Sequence[Stage],
        presets: Mapping[str, dict[str, Any]],
        complete: Callable[[Any], Any] = lambda config: config,
    ) -> None:
        """`complete` fills in what a config leaves open and only its sources can tell."""
        self.name, self.about, self.config, self.stages, self.presets = name, about, config, tuple(stages), dict(presets)
        self._complete = complete
        self.default_preset = next(iter(presets), "")
        made: dict[str, bool] = {}  # stage -> whether a config may leave it out
        read = set()
        for each in self.stages:
            for need in each.needs:
                self._check_need(each, need, made)
                read |= {need.name} if need.kind is Source else set()
            made[each.name] = self._check_section(each)
        for field in config.model_fields:
            if field not in made and field not in read:
                self._refuse(f"config field {field!r} is neither a stage's section nor a source; {did_you_mean(field, made)}")

    def _check_need(self, each: Stage, need: Need, made: Mapping[str, bool]) -> None:
        if need.kind is Source:
            field = self.config.model_fields.get(need.name)
            if field is None:
                self._refuse(f"source {need.name!r} of stage {each.name!r} has no config field")
            if type(None) in typing.get_args(field.annotation) and not need.optional:
                self._refuse(f"stage {each.name!r} needs {need.name!r}, which a config may leave out; annotate it Source | None")
        elif need.name not in made:
            self._refuse(f"stage {each.name!r} needs {need.name!r}, which no earlier stage makes; {did_you_mean(need.name, made)}")
        elif made[need.name] and not need.optional:
            self._refuse(f"stage {each.name!r} needs {need.name!r}, which a config may leave out; annotate it Artifact | None")

    def _check_section(self, each: Stage) -> bool:
        field = self.config.model_fields.get(each.name)
        annotation = type(None) if field is None else field.annotation
        kinds = typing.get_args(annotation) if type(None) in typing.get_args(annotation) else (annotation,)
        if each.section not in kinds:
            self._refuse(f"stage {each.name!r} works with {each.section}, but its config section is {annotation}")
        return field is not None and len(kinds) > 1

    def _refuse(self, problem: str) -> NoReturn:
        raise TypeError(f"pipeline {self.name!r}: {problem}")

    def plan(self, config: Config, sources: SourceReader) -> list[Step]:
        """What a run would make, in order, without making it. A stage whose section is None is left out."""
        config = self._complete(config)
        steps: dict[str, Step] = {}
        known: dict[str, Source] = {}
        for each in self.stages:
            section = getattr(config, each.name, None)
            if section is None and each.section is not type(None):
                continue
            for need in each.needs:
                place = getattr(config, need.name) if need.kind is Source and need.name not in known else None
                if place is not None:
                    known[need.name] = sources.read(place, f"{need.name}={place}")
            mine = {need.name: known.get(need.name) for need in each.needs if need.kind is Source}
            needs = {need.name: steps.get(need.name) for need in each.needs if need.kind is Artifact}
            inputs = {name: source.fingerprint for name, source in mine.items() if source is not None}
            inputs |= {name: step.recipe.fingerprint for name, step in needs.items() if step is not None}
            values = section.to_json() if section is not None else {}
            recipe = Recipe(stage=each.name, version=each.version, config=values, inputs=inputs)
            steps[each.name] = Step(each, section, recipe, mine, needs)
        return list(steps.values())

    def run(self, config: Config, store: Store, workers: Workers, progress: Progress, command: str) -> dict[str, tuple[Artifact, bool]]:
        """Makes what is missing, in order. Returns stage -> (its artifact, whether this run made it)."""
        sources = SourceReader(store)
        steps = self.plan(config, sources)
        done: dict[str, tuple[Artifact, bool]] = {}
        try:
            if any(store.find(step.recipe) is None for step in steps):
                store.sweep()
            for step in steps:
                inputs = {name: done[name][0] if need is not None else None for name, need in step.needs.items()}
                done[step.stage.name] = found, made = make(step, inputs, store, workers, progress, command)
                sources.remember()  # not only at the end: training takes long, and may be killed
                progress.ends(step.stage.name, found, made)
        except BaseException:
            store.tidy()
            raise
        return done


def make(
    step: Step, inputs: Mapping[str, Artifact | None], store: Store, workers: Workers, progress: Progress, command: str
) -> tuple[Artifact, bool]:
    """The artifact of one step, and whether it had to be made. A killed stage finds its work folder again; a failed one leaves no trace."""
    name = step.stage.name
    found = store.find(step.recipe)
    if found is not None:
        return found, False
    with store.drafting(step.recipe, lambda owner: progress.waits(name, owner)) as draft:
        found = store.find(step.recipe)  # made by the process that we waited for
        if found is not None:
            return found, False
        progress.begins(name)
        started = time.perf_counter()

        def report(row: Mapping[str, Any]) -> None:
            if draft.lease.lost:
                draft.lease.check()  # raises, naming who has it
            progress.reports(name, row)

        task = Task(step.section, draft, workers, report, command, store)
        step.stage.make(**step.sources, **inputs, task=task)
        places = {source_name: source.url for source_name, source in step.sources.items() if source is not None}
        return store.publish(draft, step.recipe, places, time.perf_counter() - started, command), True
