"""Pictures to codes and back, and new pictures from a prior over codes: VQGAN and Transformer (Esser et al. 2021, arXiv 2012.09841).

    raymill run tokens --preset quick

A judge, trained apart, looks at the samples. With a perceptual term the tokenizer looks through a second classifier, `features`, so
that the judge is never what it was trained against; a `reconstructor`, if there is one, is the plain VQ-VAE that it starts from.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import safetensors.torch
import torch

from components import storage
from components.data.columns import Column
from components.data.dataset import Dataset
from components.data.loader import evaluation_batches
from components.data.prepare_config import PrepareConfig
from components.data.write import write_dataset
from components.evaluation.pictures import grid, png
from components.evaluation.sampling import to_images
from components.evaluation.two_stage import ScoresConfig, Subjects, score
from components.families.classifier import Classifier
from components.families.contract import Family
from components.families.images import LABEL, pixels
from components.families.model_folder import load_model
from components.families.prior import Prior
from components.families.vqvae import VQVAE
from components.report.findings import Findings, Picture
from pipelines.preparing import prepare_stage
from pipelines.reporting import PAGE, page_of
from pipelines.settings import Training, read_presets
from pipelines.source import Source
from pipelines.stage import Pipeline, Task, stage
from pipelines.store import Artifact
from pipelines.tokens_config import CodesConfig, SamplesConfig, TokensConfig, with_class_names
from pipelines.training import MODEL, train_model

F = TypeVar("F", bound=Family)

SHOWN = 20  # pictures in a row of the report


@stage(version=1)
def images(data: Source, task: Task[PrepareConfig]) -> None:
    """Arrow shards of the pictures, both splits."""
    prepare_stage("images", data, task)


@stage(version=1)
def judge(images: Artifact, task: Task[Training]) -> None:
    """The classifier that looks at samples."""
    train_model(task, images.url)


@stage(version=1)
def features(images: Artifact, task: Task[Training]) -> None:
    """The classifier that the tokenizer's perceptual term looks through."""
    train_model(task, images.url)


@stage(version=1)
def reconstructor(images: Artifact, task: Task[Training]) -> None:
    """A plain VQ-VAE, the tokenizer's warm start and what it is compared with."""
    train_model(task, images.url)


@stage(version=1)
def tokenizer(images: Artifact, features: Artifact | None, reconstructor: Artifact | None, task: Task[Training]) -> None:
    """Pictures to a grid of codes and back."""
    parts = {"classifier": features, "vqvae": reconstructor}
    known = {} if features is None else {"features": _open(features, Classifier).config.to_json()}  # as fitted to the pictures
    train_model(task, images.url, {name: part.path(MODEL) for name, part in parts.items() if part is not None}, known)


@stage(version=1)
def codes(images: Artifact, tokenizer: Artifact, task: Task[CodesConfig]) -> None:
    """Every picture as codes, with its label: what the prior learns from."""
    model = _open(tokenizer, VQVAE)
    known = Dataset.open(images.url)
    columns = {"codes": Column(dtype="int64", shape=model.config.grid), LABEL: Column(dtype="int64")}

    def encoded(split: str) -> Iterator[dict[str, np.ndarray]]:
        pictures = Dataset.open(images.url, split)
        for batch in evaluation_batches(pictures, task.config.batch_size):
            with torch.inference_mode():
                yield {"codes": model.encode(pixels(batch)).numpy(), LABEL: batch[LABEL].numpy()}

    made_by = {"images": images.fingerprint, "tokenizer": tokenizer.fingerprint}
    write_dataset(task.draft.out, {split: encoded(split) for split in known.splits}, columns, known.class_names, made_by)


@stage(version=1)
def prior(codes: Artifact, tokenizer: Artifact, task: Task[Training]) -> None:
    """What grids of codes a class of pictures has."""
    train_model(task, codes.url, {"tokenizer": tokenizer.path(MODEL)})


@stage(version=1)
def samples(codes: Artifact, prior: Artifact, task: Task[SamplesConfig]) -> None:
    """New pictures of every class."""
    model, names = _open(prior, Prior), Dataset.open(codes.url).class_names
    drawn = model.sample(task.config.per_class * len(names), task.config.seed, task.config.sampler)  # classes in turn
    pictures = to_images(model, drawn)
    labels = torch.arange(len(drawn)) % len(names)
    tensors = {"codes": drawn.contiguous(), "images": pictures.contiguous(), "labels": labels}
    storage.write_bytes(str(task.draft.folder / "samples.safetensors"), safetensors.torch.save(tensors))
    rows = [pictures[label :: len(names)][:SHOWN].numpy() for label in range(len(names))]
    storage.write_bytes(str(task.draft.folder / "samples.png"), png(grid(rows, scale=2)))
    caption = f"Drawn from the prior, {len(rows[0])} of each class, not chosen: the first of seed {task.config.seed}."
    Findings(pictures=(Picture(file="samples.png", title="Samples by class", caption=caption, row_names=names),)).write(
        str(task.draft.folder)
    )


@stage(version=1)
def scores(
    images: Artifact,
    judge: Artifact,
    reconstructor: Artifact | None,
    tokenizer: Artifact,
    codes: Artifact,
    prior: Artifact,
    samples: Artifact,
    task: Task[ScoresConfig],
) -> None:
    """How good all this is, beside baselines and reference points."""
    drawn = safetensors.torch.load(storage.read_bytes(samples.path("samples.safetensors")))
    subjects = Subjects(
        images=images.url,
        codes=codes.url,
        judge=_open(judge, Classifier),
        tokenizer=_open(tokenizer, VQVAE),
        reconstructor=_open(reconstructor, VQVAE) if reconstructor is not None else None,
        prior=_open(prior, Prior),
        samples=drawn,
    )
    score(subjects, task.config, task.draft.folder)


@stage(version=1)
def report(
    images: Artifact,
    judge: Artifact,
    features: Artifact | None,
    reconstructor: Artifact | None,
    tokenizer: Artifact,
    codes: Artifact,
    prior: Artifact,
    samples: Artifact,
    scores: Artifact,
    task: Task[None],
) -> None:
    """One page about it all."""
    made = [images, judge, features, reconstructor, tokenizer, codes, prior, samples, scores]
    page = page_of([each for each in made if each is not None], "tokens", TOKENS.about, task.command)
    storage.write_bytes(str(task.draft.folder / PAGE), page)


def _open(artifact: Artifact, kind: type[F]) -> F:
    model = load_model(artifact.path(MODEL))
    assert isinstance(model, kind), f"{artifact.name} holds a {type(model).__name__}, expected {kind.__name__}"
    return model


TOKENS = Pipeline(
    "tokens",
    "Pictures to codes and back (VQGAN), and new pictures from a Transformer prior over the codes.",
    TokensConfig,
    [images, judge, features, reconstructor, tokenizer, codes, prior, samples, scores, report],
    read_presets("tokens"),
    complete=with_class_names,
)
