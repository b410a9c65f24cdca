"""Pseudo-random 64-bit words, computed from counters: the finaliser and generator of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""

from __future__ import annotations

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio: the increment of the generator's counter


def mix(words: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit words that leaves no visible pattern; any shape, uint64."""
    with np.errstate(over="ignore"):
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return words ^ (words >> np.uint64(31))


def words_at(seed: int | np.ndarray, places: np.ndarray) -> np.ndarray:
    """The words at `places` (uint64, any shape) of the endless sequence that `seed` (0 to 2^63) begins, or each one's own seed."""
    with np.errstate(over="ignore"):
        return mix(np.uint64(seed) + GOLDEN * (places + np.uint64(1)))
