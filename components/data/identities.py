"""Splits a data set of identities (faces, characters) for verification: who is tested is unknown to training.

Each of the folds holds out other identities, so that over all folds everybody is tested once.
Smallest use: `split_identities("data/orl", "data/orl-fold-0", IdentityFold(fold=0, folds=5))`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from pydantic import Field, model_validator

from components import storage
from components.config import Config
from components.data.arrow import LABEL, Rows
from components.data.dataset import Dataset
from components.data.index import INDEX, DatasetIndex, read_index
from components.data.write import write_dataset
from components.errors import UserError
from components.seeds import derive_seed

LEAST_IDENTITIES, LEAST_ROWS = 2, 2  # of a split: impostor pairs need two people; of a person: genuine pairs need two pictures
ROWS_PER_BLOCK = 1024


class IdentityFold(Config):
    """Which identities a fold's data set trains on, chooses thresholds with, and is tested on."""

    fold: int = Field(0, ge=0, description="number of the fold, from 0")
    folds: int = Field(5, ge=2, description="parts that the identities are cut into; one is held out as split test")
    development: int = Field(0, ge=0, description="identities taken from the training ones as split validation, for choosing thresholds")
    seed: int = Field(0, ge=0, description="decides who is in which fold")

    @model_validator(mode="after")
    def _check(self) -> IdentityFold:
        if self.fold >= self.folds:
            raise ValueError(f"fold={self.fold} is not one of folds={self.folds}, which are numbered from 0")
        if 0 < self.development < LEAST_IDENTITIES:
            raise ValueError(
                f"development={self.development} makes no pairs of different identities; give 0 or at least {LEAST_IDENTITIES}"
            )
        return self


def identity_folds(rows_by_class: Sequence[int], folds: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Labels that each fold holds out, ascending: every identity in exactly one fold, and folds whose sizes differ by at most one.

    A class without rows is no identity. Raises UserError when an identity has a single picture, or there are too few for pairs of
    different identities in every fold.
    """
    identities = [label for label, rows in enumerate(rows_by_class) if rows > 0]
    lonely = next((label for label in identities if rows_by_class[label] < LEAST_ROWS), None)
    if lonely is not None:
        raise UserError(f"identity {lonely} has a single picture, which makes no genuine pair; give it another one or take it out")
    if len(identities) < LEAST_IDENTITIES * folds:
        raise UserError(
            f"{len(identities)} identities are too few for folds={folds}: each fold needs {LEAST_IDENTITIES} for pairs of different ones; "
            f"add identities" + (f" or give folds={len(identities) // LEAST_IDENTITIES} or fewer" if len(identities) >= 4 else "")
        )
    shuffled = _shuffled(identities, "identity fold", seed)
    return tuple(tuple(sorted(shuffled[fold::folds])) for fold in range(folds))


def split_identities(url: str, out: str, config: IdentityFold) -> DatasetIndex:
    """Writes one fold of the data set `url`, all splits of which are pooled, as the data set `out`.

    Labels 0..C-1 are the training identities, in their old order; then come those of split `validation`, if any, and those of `test`.
    Raises UserError as `identity_folds` does, and when `development` leaves too few to train on.
    """
    index = read_index(url)
    rows_by_class = [sum(rows) for rows in zip(*index.shape.rows_by_class.values(), strict=True)]
    if sum(rows_by_class) != sum(map(index.num_rows, index.splits)):
        raise UserError(f"{url} does not say for every row which identity it shows; prepare it from folders, one for each identity")
    if storage.exists(storage.join(out, INDEX)):
        raise UserError(f"{out} is a data set already; choose another place for fold {config.fold} of {url}, or remove it")
    try:
        people = _people_by_split(rows_by_class, config)
    except UserError as error:
        raise UserError(f"{url}: {error}") from None
    order = [label for labels in people.values() for label in labels]
    new_label = np.full(len(rows_by_class), -1, np.int64)
    new_label[order] = np.arange(len(order))
    pool = [Dataset.open(url, split) for split in sorted(index.splits)]
    splits = {split: _rows_of(pool, new_label, new_label[labels]) for split, labels in people.items()}
    names = tuple(index.class_names[label] for label in order)
    made_by = {"split_identities": config.to_json(), "data": index.fingerprint}
    return write_dataset(out, splits, index.columns, names, made_by)


def _people_by_split(rows_by_class: Sequence[int], config: IdentityFold) -> dict[str, list[int]]:
    """Old labels of each split's identities, ascending; splits in the order of their new labels."""
    held_out = identity_folds(rows_by_class, config.folds, config.seed)
    others = sorted(label for fold, labels in enumerate(held_out) if fold != config.fold for label in labels)
    if len(others) - config.development < LEAST_IDENTITIES:
        raise UserError(
            f"development={config.development} of {len(others)} training identities leaves fewer than {LEAST_IDENTITIES} to train on; "
            f"give {len(others) - LEAST_IDENTITIES} or fewer"
        )
    development = set(_shuffled(others, "development", config.seed)[: config.development])
    people = {"train": [label for label in others if label not in development]}
    if development:
        people["validation"] = sorted(development)
    return {**people, "test": list(held_out[config.fold])}


def _rows_of(pool: list[Dataset], new_label: np.ndarray, wanted: np.ndarray) -> Iterator[Rows]:
    """The rows of the pool whose new label is `wanted`, by label and then in the order of the pool, in blocks."""
    firsts = np.cumsum([0, *(dataset.num_rows for dataset in pool)])
    labels = np.concatenate([new_label[_labels(dataset)] for dataset in pool])
    rows = np.flatnonzero(np.isin(labels, wanted))
    rows = rows[np.argsort(labels[rows], kind="stable")]
    for first in range(0, len(rows), ROWS_PER_BLOCK):
        block = rows[first : first + ROWS_PER_BLOCK]
        columns = _take(pool, firsts, block)
        yield {**columns, LABEL: labels[block]}


def _take(pool: list[Dataset], firsts: np.ndarray, rows: np.ndarray) -> Rows:
    """Rows by their number in the whole pool, in this order."""
    owners = np.searchsorted(firsts, rows, side="right") - 1
    taken = pool[0].room(len(rows))
    for number, dataset in enumerate(pool):
        places = np.flatnonzero(owners == number)
        for name, values in dataset.take(rows[places] - firsts[number]).items():
            taken[name][places] = values
    return taken


def _labels(dataset: Dataset) -> np.ndarray:
    rows = np.arange(dataset.num_rows)
    grouped, places = dataset.gather(rows, {LABEL: np.empty(len(rows), np.int64)})
    return grouped[LABEL][places]


def _shuffled(labels: Sequence[int], purpose: str, seed: int) -> list[int]:
    """The same labels in an order drawn from `seed`, each by a number of its own."""
    return sorted(labels, key=lambda label: (derive_seed(purpose, seed, label), label))
