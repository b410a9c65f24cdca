"""How good a tokenizer and a prior over its codes are, each number beside what it must beat.

Fréchet distances are on the features of a small classifier, the judge, which neither model was trained with: FD-cnn, not FID. They depend
on the number of pictures, so drawn reference points have as many as the samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from components import storage
from components.config import Config
from components.data.dataset import Dataset
from components.data.loader import evaluation_batches
from components.evaluation.baselines import pca_error, unigram_bits
from components.evaluation.frechet import Moments, frechet_distance
from components.evaluation.generation import BATCH, features_of
from components.evaluation.pictures import grid, png
from components.evaluation.reference_points import HELD_OUT, Gathered, drawn_points
from components.evaluation.scoring import evaluate
from components.families.classifier import Classifier
from components.families.images import IMAGE, pixels
from components.families.prior import Prior
from components.families.vqvae import VQVAE
from components.report.findings import Findings, Histogram, Picture, Score
from components.report.numbers import PERCENT

PCA_COMPONENTS = 64
SHOWN = 20


class Targets(Config):
    """What a run is meant to reach; None: nothing in particular."""

    mse: float | None = Field(None, gt=0, description="held-out reconstruction error, at most")
    codes_used: float | None = Field(None, ge=0, le=1, description="share of the codebook in use, at least")
    bits_per_code: float | None = Field(None, gt=0, description="of the prior on held-out pictures, at most")
    label_accuracy: float | None = Field(None, ge=0, le=1, description="share of samples with the asked label, at least")


class ScoresConfig(Config):
    seed: int = Field(0, ge=0, description="of the reference points that are drawn")
    targets: Targets = Targets()


@dataclass(frozen=True)
class Subjects:
    """What is scored: data set URLs, models in evaluation mode, and samples as `images` (N, C, H, W) uint8 and `labels` (N,)."""

    images: str
    codes: str
    judge: Classifier
    tokenizer: VQVAE
    reconstructor: VQVAE | None  # a plain VQ-VAE to compare the tokenizer with
    prior: Prior
    samples: dict[str, Tensor]


@torch.inference_mode()
def score(subjects: Subjects, config: ScoresConfig, folder: Path) -> None:
    """Leaves findings, and a picture of reconstructions, in `folder`. Needs a `test` split of held-out rows."""
    held_out = Dataset.open(subjects.images, "test")
    train = Gathered.of(Dataset.open(subjects.images))
    test = Gathered.of(held_out)
    distances = _Distances(subjects.judge, train, test)
    rebuilt = evaluate(subjects.tokenizer, held_out, batch_size=BATCH)
    scores = [
        _reconstruction(subjects, config, rebuilt, held_out, train, test),
        Score(
            name="Codes in use",
            value=_number(rebuilt["codes_used"]),
            better="higher",
            unit=PERCENT,
            target=config.targets.codes_used,
            note=f"share of {subjects.tokenizer.config.num_codes} codes, held-out pictures; perplexity {rebuilt['code_perplexity']:.0f}",
        ),
        _prior(subjects, config),
        _labels(subjects, config, test),
        _samples_distance(subjects, config, distances, train),
        _reconstruction_distance(subjects, distances),
    ]
    usage = sorted(rebuilt["code_usage"], reverse=True) if isinstance(rebuilt["code_usage"], list) else []
    caption = f"Share of each of {len(usage)} codes on held-out pictures, most used first; the line is an even use."
    picture = _reconstructions(subjects, test, folder)
    Findings(
        scores=tuple(scores), pictures=(picture,), histograms=(Histogram(title="Codebook use", caption=caption, shares=tuple(usage)),)
    ).write(str(folder))


class _Distances:
    """Fréchet distances to the training pictures."""

    def __init__(self, judge: Classifier, train: Gathered, test: Gathered) -> None:
        self._judge = judge
        self._train = self._moments(pixels({IMAGE: part}) for part in train.images.split(BATCH))
        self.held_out = self.of(pixels({IMAGE: part}) for part in test.images.split(BATCH))
        self.test = test

    def of(self, batches: Iterator[Tensor]) -> float:
        return frechet_distance(self._moments(batches), self._train)

    def rebuilt(self, model: VQVAE) -> float:
        """Of the held-out pictures' reconstructions."""
        return self.of(model.reconstruct(pixels({IMAGE: part})) for part in self.test.images.split(BATCH))

    def _moments(self, batches: Iterator[Tensor]) -> Moments:
        parts = [Moments.of(features_of(self._judge, batch)) for batch in batches]
        return sum(parts[1:], parts[0])


def _reconstruction(subjects: Subjects, config: ScoresConfig, rebuilt: dict, held_out: Dataset, train: Gathered, test: Gathered) -> Score:
    beside = {}
    linear = train.linear()
    if linear is not None:
        known, unseen = pixels({IMAGE: linear.images}), pixels({IMAGE: test.images})
        beside[f"PCA, {PCA_COMPONENTS} components"] = pca_error(known, unseen, PCA_COMPONENTS)
    if subjects.reconstructor is not None:
        beside["VQ-VAE"] = _number(evaluate(subjects.reconstructor, held_out, batch_size=BATCH)["mse"])
    return Score(
        name="Reconstruction error (MSE)",
        value=_number(rebuilt["mse"]),
        better="lower",
        target=config.targets.mse,
        beside=beside,
        note="pixels in [0, 1], held-out pictures",
    )


def _prior(subjects: Subjects, config: ScoresConfig) -> Score:
    held_out = Dataset.open(subjects.codes, "test")
    num_codes = subjects.prior.config.code_count
    known, unseen = (_codes(Dataset.open(subjects.codes)), _codes(held_out))
    return Score(
        name="Prior, bits per code",
        value=_number(evaluate(subjects.prior, held_out, batch_size=BATCH)["bits_per_code"]),
        better="lower",
        target=config.targets.bits_per_code,
        beside={"each position by itself": unigram_bits(known, unseen, num_codes), "uniform": math.log2(num_codes)},
        note="held-out pictures, class given",
    )


def _labels(subjects: Subjects, config: ScoresConfig, test: Gathered) -> Score:
    def share(images: Tensor, labels: Tensor) -> float:
        guesses = torch.cat([subjects.judge.logits(pixels({IMAGE: part})).argmax(1) for part in images.split(BATCH)])
        return (guesses == labels).double().mean().item()

    drawn = subjects.samples
    return Score(
        name="Samples with the asked label",
        value=share(drawn["images"], drawn["labels"]),
        better="higher",
        unit=PERCENT,
        target=config.targets.label_accuracy,
        beside={HELD_OUT: share(test.images, test.labels), "chance": 1 / subjects.judge.config.num_classes},
        note=f"{len(drawn['labels']):,} samples, labelled by a classifier that was trained separately",
    )


def _samples_distance(subjects: Subjects, config: ScoresConfig, distances: _Distances, train: Gathered) -> Score:
    drawn = subjects.samples["images"]
    beside = {HELD_OUT: distances.held_out, "reconstructions": distances.rebuilt(subjects.tokenizer)}
    beside |= {name: distances.of(iter(images.split(BATCH))) for name, images in drawn_points(train, len(drawn), config.seed)}
    return Score(
        name="Samples, Fréchet distance (FD-cnn)",
        value=distances.of(pixels({IMAGE: part}) for part in drawn.split(BATCH)),
        better="lower",
        beside=beside,
        note=f"{len(drawn):,} samples against {len(train.images):,} training pictures, on the judge's features; not FID",
    )


def _reconstruction_distance(subjects: Subjects, distances: _Distances) -> Score:
    compared = {"VQ-VAE": distances.rebuilt(subjects.reconstructor)} if subjects.reconstructor is not None else {}
    return Score(
        name="Reconstructions, Fréchet distance (FD-cnn)",
        value=distances.rebuilt(subjects.tokenizer),
        better="lower",
        beside=compared | {HELD_OUT: distances.held_out},
        note=f"{len(distances.test.images):,} held-out pictures",
    )


def _reconstructions(subjects: Subjects, test: Gathered, folder: Path) -> Picture:
    models = {"VQ-VAE": subjects.reconstructor, type(subjects.tokenizer).__name__: subjects.tokenizer}
    originals = test.images[:SHOWN]
    rows = {"original": originals}
    rows |= {name: _bytes(model.reconstruct(pixels({IMAGE: originals}))) for name, model in models.items() if model is not None}
    storage.write_bytes(str(folder / "reconstructions.png"), png(grid([row.numpy() for row in rows.values()], scale=2)))
    places = math.prod(subjects.tokenizer.config.grid)
    caption = f"The first held-out pictures, and what comes back from {places} codes each."
    return Picture(file="reconstructions.png", title="Reconstructions", caption=caption, row_names=tuple(rows))


def _bytes(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8)


def _codes(dataset: Dataset) -> Tensor:
    return torch.cat([batch["codes"] for batch in evaluation_batches(dataset, 4 * BATCH)]).flatten(1).long()


def _number(value: float | list[float]) -> float:
    assert isinstance(value, float)
    return value
