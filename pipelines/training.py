"""A stage that trains a model, and models found again: in a model folder, in an artifact, or by an artifact's name."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components import storage
from components.errors import UserError
from components.families.model_folder import COMMIT as MODEL_COMMIT
from components.families.model_folder import family_class
from components.report.findings import Findings
from components.training.job import TrainingJob
from components.training.record import read_metrics
from pipelines.settings import Training
from pipelines.source import Source, SourceReader
from pipelines.stage import Progress, Stage, Step, Task, make
from pipelines.store import COMMIT, Artifact, Draft, Recipe, Store
from pipelines.workers import Workers

MODEL = "model"


def train_model(task: Task[Training], data: str, children: Mapping[str, str] | None = None, known: Mapping[str, Any] | None = None) -> None:
    """Trains on the data set at `data` in the task's work folder, from its last checkpoint on; leaves `model/`, `metrics/` and `run.json`.

    `children` maps names to the model folders of earlier models that it builds on; `known` are model options that follow from those.
    """
    task.workers.train(training_job(task.config, data, task.draft.work, children or {}, known), task.report)
    adopt_run(task.draft)


def training_job(
    settings: Training, data: str, run: str, children: Mapping[str, str], known: Mapping[str, Any] | None = None
) -> TrainingJob:
    """The job that trains `settings` in the run folder `run`; arguments as for `train_model`."""
    return TrainingJob(
        family=settings.family,
        model=settings.model.to_json() | dict(known or {}),
        train=settings.train,
        data=data,
        run=run,
        children=dict(children),
        children_kept=tuple(name for name in family_class(settings.family).kept if name in children),
    )


def adopt_run(draft: Draft) -> None:
    """Copies what a finished run leaves from the work folder into the draft, with what the report draws of its scores and its record."""
    for name in (MODEL, "metrics", "run.json"):
        draft.adopt(storage.join(draft.work, name), name)
    run = storage.read_json(storage.join(draft.work, "run.json"))
    cls = family_class(run["job"]["family"])
    charts = (*cls.charts_over_steps(read_metrics(draft.work)), *cls.charts(run["scores"]))
    if charts:
        Findings(charts=charts).write(str(draft.folder))


def find_model(reference: str, store: Store) -> str:
    """The model folder that `reference` means: the folder itself, an artifact that holds one, or such an artifact's name in the store."""
    if storage.exists(storage.join(reference, MODEL_COMMIT)):
        return reference
    url = reference if storage.exists(storage.join(reference, COMMIT)) else None
    if url is None and storage.exists(reference):
        raise UserError(f"{reference} is no model folder: it has no {MODEL_COMMIT}; give a folder made by raymill train or raymill run")
    artifact = store.resolve(reference)
    if not any(file.startswith(f"{MODEL}/") for file in artifact.manifest.files):
        raise UserError(
            f"artifact {artifact.name} holds no model; give one that raymill train made, or the tokenizer or prior of a pipeline"
        )
    return artifact.path(MODEL)


def find_data(reference: str, store: Store) -> str:
    """The data set that `reference` means: a folder or URL, or the name of an artifact in the store."""
    return reference if storage.exists(reference) else store.resolve(reference).url


def make_model(
    settings: Training, data: str, children: list[str], store: Store, workers: Workers, progress: Progress, command: str
) -> tuple[Artifact, bool]:
    """One model outside any pipeline: an artifact named after its family, and whether it had to be made.

    `children` are NAME=MODEL texts. Raises UserError for what cannot be found or does not go together.
    """

    def build(task: Task[Training], data: Source, **models: Source) -> None:
        train_model(task, data.url, {name: model.url for name, model in models.items()})

    reader = SourceReader(store)
    sources = read_sources(reader, data, children, store)
    recipe = model_recipe(settings, sources)
    step = Step(Stage(settings.family, 1, build, (), Training), settings, recipe, sources, {})
    try:
        found, made = make(step, {}, store, workers, progress, command)
        reader.remember()
    finally:
        store.tidy()
    progress.ends(settings.family, found, made)
    return found, made


def read_sources(reader: SourceReader, data: str, children: list[str], store: Store) -> dict[str, Source]:
    """The data and the models that a training outside any pipeline builds on, by name; `children` are NAME=MODEL texts."""
    sources = {"data": reader.read(find_data(data, store), "DATA")}
    for text in children:
        name, separator, reference = text.partition("=")
        if not separator or not name.isidentifier() or name == "data":
            raise UserError(f"--with {text!r} is not NAME=MODEL, for example tokenizer=store/artifacts/tokenizer-0123456789abcdef")
        sources[name] = reader.read(find_model(reference, store), f"--with {name}")
    return sources


def model_recipe(settings: Training, sources: Mapping[str, Source]) -> Recipe:
    """What `raymill train` makes of the settings and sources."""
    inputs = {name: source.fingerprint for name, source in sources.items()}
    return Recipe(stage=settings.family, version=1, config=settings.to_json(), inputs=inputs)


def require_empty(url: str) -> None:
    """Raises UserError when a file or a folder with something in it is there."""
    if storage.size(url) is not None or storage.list_names(url):
        raise UserError(f"{url} is not empty; give a new folder")


@contextmanager
def empty_folder(url: str) -> Iterator[Path]:
    """A local folder whose files are copied to `url` at the end; raises UserError when something is there already."""
    require_empty(url)
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch)
        for file in storage.list_files(scratch):
            storage.upload(storage.join(scratch, file), storage.join(url, file))
