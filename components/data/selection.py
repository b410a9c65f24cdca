"""Which rows go where: a fixed pseudo-random word for each row, so that adding files moves no row from one split to another.

Held out are the rows with small words, `limit` keeps those with the smallest of the rest, and a shard's bounds are set by the words of
the names in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from components.config import Config
from components.data.mixing import words_at
from components.seeds import derive_seed

SPACE = 2**63  # words are in [0, SPACE)


class Keep(Config):
    """Takes the rows whose word is in [low, high)."""

    seed: int
    low: int = Field(0, ge=0, le=SPACE)
    high: int = Field(SPACE, ge=0, le=SPACE)

    @property
    def all(self) -> bool:
        return self.low == 0 and self.high == SPACE

    def mask(self, words: np.ndarray) -> np.ndarray:
        return (words >= np.uint64(self.low)) & (words < np.uint64(self.high))


def words_of(seed: int, path: str, rows: np.ndarray) -> np.ndarray:
    """The words of rows, by their numbers in a file: the same shape, uint64 in [0, 2^63)."""
    return words_at(derive_seed("rows", seed, path), rows.astype(np.uint64)) >> np.uint64(1)


def first_words(seed: int, paths: Sequence[str]) -> np.ndarray:
    """The words of the first rows of many files (N,), as `words_of` gives them one by one."""
    seeds = np.array([derive_seed("rows", seed, path) for path in paths], np.uint64)
    return words_at(seeds, np.zeros(len(paths), np.uint64)) >> np.uint64(1)


def keep_of(words: Sequence[np.ndarray], low: int, high: int, limit: int | None, seed: int) -> Keep:
    """Takes the rows in [low, high), or the `limit` of them with the smallest words where there are more."""
    keep = Keep(seed=seed, low=low, high=high)
    if limit is None:
        return keep
    inside = np.concatenate([part[keep.mask(part)] for part in words]) if words else np.empty(0, np.uint64)
    if len(inside) <= limit:
        return keep
    return Keep(seed=seed, low=low, high=int(np.partition(inside, limit)[limit]))


def cut_names(names: Sequence[str], most: int) -> list[slice]:
    """Cuts a sorted list of distinct names into runs of at most `most`; a name added or removed changes the run it falls in, and no other
    but by rare chance.

    Each run that is too long is parted before the name with the smallest word in its middle half: a property of the names that are near,
    not of the count of those before.
    """
    words = np.array([derive_seed("cut", name) for name in names], np.int64)
    runs, waiting = [], [(0, len(names))] if names else []
    while waiting:
        first, last = waiting.pop()
        if last - first <= most:
            runs.append(slice(first, last))
            continue
        margin = (last - first) // 4
        middle = first + max(margin, 1)
        cut = middle + int(np.argmin(words[middle : max(last - margin, middle + 1)]))
        waiting += [(cut, last), (first, cut)]
    return runs
