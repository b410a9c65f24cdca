"""What a run of a schedule would make: its pipeline, completely configured, and the two stages that the gate is about."""

from __future__ import annotations

from dataclasses import dataclass

from components import storage
from components.config import Config
from components.data.index import INDEX
from components.errors import UserError, did_you_mean
from components.families.model_folder import family_class
from pipelines.catalogue import find_pipeline
from pipelines.schedule.config import ScheduleConfig
from pipelines.schedule.decision import START
from pipelines.settings import Training, configure
from pipelines.source import SourceReader
from pipelines.stage import Pipeline, Step
from pipelines.store import COMMIT, Artifact, Store, open_artifact
from pipelines.sweep_config import assignments_of


@dataclass(frozen=True)
class Work:
    """A planned run."""

    pipeline: Pipeline
    config: Config
    steps: list[Step]
    gate: Step  # trains the model that is judged
    data: Step  # makes the data set that it learns from, whose held-out rows judge


def plan_work(config: ScheduleConfig, store: Store, start: str | None = None) -> Work:
    """Reads the source and plans the run; `start` is the champion's artifact when the training begins with its weights.

    Raises UserError for settings that the pipeline does not know, and for a stage that the gate cannot judge.
    """
    pipeline = find_pipeline(config.pipeline)
    if config.start == "warm" and START not in pipeline.config.model_fields:
        raise UserError(
            f"schedule {config.name}: start=warm has no effect on pipeline {config.pipeline}; leave it out, or use pipeline model"
        )
    preset = config.preset or pipeline.default_preset
    given = {**config.set, "data": config.source} | ({START: start} if start is not None else {})
    try:
        settings = configure(pipeline.config(), pipeline.presets[preset], preset, None, assignments_of(given))
    except UserError as error:
        raise UserError(f"schedule {config.name}, set: {str(error).removeprefix('command line: ')}") from None
    steps = pipeline.plan(settings, SourceReader(store))
    gate = _gate(config, steps)
    return Work(pipeline, settings, steps, gate, _data(config, gate))


def data_of(model: Artifact, stage: str, store: Store) -> Artifact | None:
    """The data set of `stage` that the model was made from; None when it is no longer in the store."""
    url = store.place("artifacts", f"{stage}-{model.manifest.inputs.get(stage, '')}")
    return open_artifact(url) if storage.exists(storage.join(url, COMMIT)) and storage.exists(storage.join(url, INDEX)) else None


def _gate(config: ScheduleConfig, steps: list[Step]) -> Step:
    trained = {step.stage.name: step for step in steps if isinstance(step.section, Training)}
    name = config.gate.stage
    if name not in trained:
        raise UserError(
            f"schedule {config.name}: gate.stage={name} trains no model in pipeline {config.pipeline}; {did_you_mean(name, trained)}"
        )
    family = trained[name].section.family
    if family_class(family).proof.data == "identities":
        raise UserError(
            f"schedule {config.name}: {family} is scored over all pairs of pictures, which gives no interval by rows; "
            f"choose another family, or judge by hand with raymill evaluate"
        )
    return trained[name]


def _data(config: ScheduleConfig, gate: Step) -> Step:
    """The step that makes the gate's data from the source alone: of such data it is known that added files move no row to another split."""
    for need in gate.needs.values():
        if need is not None and need.sources and not need.needs:
            return need
    raise UserError(
        f"schedule {config.name}: gate.stage={gate.stage.name} learns from what other models made, which differs from run to run: no rows "
        f"are the same for candidate and champion; choose a stage that learns from the pictures"
    )
