"""A stage that trains a model, and models found again: in a model folder, in an artifact, or by an artifact's name."""

from __future__ import annotations

from collections.abc import Mapping

from components import storage
from components.errors import UserError
from components.families.model_folder import COMMIT as MODEL_COMMIT
from components.training.job import TrainingJob
from pipelines.settings import Training
from pipelines.stage import Task
from pipelines.store import COMMIT, Store

MODEL = "model"


def train_model(task: Task[Training], data: str, children: Mapping[str, str] | None = None, kept: tuple[str, ...] = ()) -> None:
    """Trains on the data set at `data` in the task's work folder, from its last checkpoint on; leaves `model/`, `metrics/` and `run.json`.

    `children` maps names to model folders of earlier models; those in `kept` are copied into the new one.
    """
    job = TrainingJob(
        family=task.config.family,
        model=task.config.model.to_json(),
        train=task.config.train,
        data=data,
        run=task.draft.work,
        children=dict(children or {}),
        children_kept=kept,
    )
    task.workers.train(job, task.report)
    for name in (MODEL, "metrics", "run.json"):
        task.draft.adopt(storage.join(task.draft.work, name), name)


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
