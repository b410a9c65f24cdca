"""Pictures to one trained model of any family that learns from pictures: the shortest pipeline, and what schedules retrain.

raymill run model data=pictures model.family=vqvae
raymill run model data=pictures start=store/artifacts/model-0123456789abcdef     begin with the weights of an earlier model
"""

from __future__ import annotations

import math
from typing import Self

from pydantic import Field, model_validator

from components import storage
from components.data.dataset import Dataset
from components.evaluation.showing import show_completions, show_samples
from components.families.model_folder import family_class, load_model
from components.report.findings import Findings, Picture, Score
from pipelines.reporting import PAGE, page_of
from pipelines.settings import Training, read_presets
from pipelines.source import Source
from pipelines.stage import Pipeline, Task, stage
from pipelines.store import Artifact
from pipelines.tokens import images
from pipelines.tokens_config import PicturesConfig, with_class_names
from pipelines.training import MODEL, find_model, train_model


class ModelConfig(PicturesConfig):
    """One section a stage."""

    start: str | None = Field(None, description="model of the same family to begin with: its folder, or its artifact's; none: from scratch")
    model: Training = Training(family="classifier")

    @model_validator(mode="after")
    def _learns_from_pictures_alone(self) -> Self:
        family, perceptual = self.model.family, getattr(self.model.model, "perceptual_weight", 0.0)
        if family_class(family).proof.data == "codes":
            raise ValueError(f"model.family={family} learns from codes, not from pictures; the pipeline tokens makes them")
        if perceptual:
            raise ValueError(
                f"model.model.perceptual_weight={perceptual} needs a trained classifier, which this pipeline does not make; "
                f"set it to 0 and model.model.features to null, or run the pipeline tokens"
            )
        return self


@stage(version=2)
def model(images: Artifact, start: Source | None, task: Task[Training]) -> None:
    """The model, trained from scratch or from the weights of an earlier one, its headline score on the held-out pictures, and samples."""
    children = {} if start is None else {"start": find_model(start.url, task.store)}
    train_model(task, images.url, children)
    folder, (name, best) = str(task.draft.folder), family_class(task.config.family).headline
    value = storage.read_json(storage.join(folder, "run.json"))["scores"].get(name)
    found: dict[str, object] = {"pictures": _pictures(folder, Dataset.open(images.url), task.config.train.held_out)}
    if isinstance(value, float) and math.isfinite(value):
        note = "on the held-out pictures"
        found["scores"] = (Score(name=name, value=value, better="lower" if best == "min" else "higher", note=note),)
    Findings.read(folder).model_copy(update=found).write(folder)


def _pictures(folder: str, data: Dataset, held_out: str) -> tuple[Picture, ...]:
    """What the trained model in `folder` draws and, where it can, completes."""
    trained = load_model(storage.join(folder, MODEL))
    samples = show_samples(trained, folder)
    return (*samples, *show_completions(trained, Dataset.open(data.url, held_out), folder)) if held_out in data.splits else samples


@stage(version=1)
def report(images: Artifact, model: Artifact, task: Task[None]) -> None:
    """One page about it all."""
    page = page_of([images, model], "model", PIPELINE.about, task.command)
    storage.write_bytes(str(task.draft.folder / PAGE), page)


PIPELINE = Pipeline(
    "model",
    "Pictures to one trained model of any family that learns from pictures.",
    ModelConfig,
    [images, model, report],
    read_presets("model"),
    complete=with_class_names,
)
