"""The order of rows, computed and never stored: position p of a run is place p % N of the shuffled epoch p // N.

Each epoch is a full permutation of the N rows by a generalised Feistel network on Z_a x Z_b with a * b >= N, walked until it lands
below N (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002, section 4 and 5). Its round functions are tables of
pseudo-random numbers with only about sqrt(N) entries, so `count` rows cost O(count + sqrt(N)) wherever they begin.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from components.data.mixing import GOLDEN, mix, words_at
from components.seeds import derive_seed

ROUNDS = 6
SMALL, ROUNDS_WHEN_SMALL = 1000, 32  # on a few rows each round does little: 6 would leave some orders of 5 rows far too frequent


def rows_at(seed: int, first: int, count: int, num_rows: int) -> np.ndarray:
    """Rows at positions [first, first + count) of the endless sequence of shuffled epochs: (count,) int64 in [0, num_rows)."""
    assert num_rows > 0, "an empty data set has no order"
    assert min(first, count) >= 0, "positions begin at 0"
    positions = np.arange(first, first + count, dtype=np.int64)
    first_epoch, last_epoch = first // num_rows, (first + max(count, 1) - 1) // num_rows
    epochs = positions // num_rows - first_epoch
    places = positions - (epochs + first_epoch) * num_rows
    network = _network(seed, first_epoch, last_epoch - first_epoch + 1, num_rows)
    rows = network.permute(places, epochs)
    while len(outside := np.flatnonzero(rows >= num_rows)):
        rows[outside] = network.permute(rows[outside], epochs[outside])
    return rows


class _Network:
    """The permutations of a few consecutive epochs over the domain [0, a * b), a being the square root of N, rounded up."""

    def __init__(self, seed: int, first_epoch: int, num_epochs: int, num_rows: int) -> None:
        self._a = math.isqrt(num_rows - 1) + 1
        self._b = -(-num_rows // self._a)
        epochs = np.arange(first_epoch, first_epoch + num_epochs, dtype=np.uint64)
        rounds = ROUNDS if num_rows > SMALL else ROUNDS_WHEN_SMALL
        streams = words_at(derive_seed("order", seed), epochs)[:, None]
        with np.errstate(over="ignore"):
            words = mix(streams + GOLDEN * np.arange(1, rounds * self._a + 1, dtype=np.uint64)).reshape(num_epochs, rounds, self._a)
        # even rounds shift the left half modulo a, odd rounds the right half modulo b
        moduli = np.where(np.arange(rounds) % 2 == 0, self._a, self._b).astype(np.uint64)[:, None]
        tables = ((words >> np.uint64(32)) * moduli >> np.uint64(32)).astype(np.int64)
        self._tables = np.ascontiguousarray(tables.transpose(1, 0, 2)).reshape(rounds, -1)  # (round, epoch * a + half)
        self._single = num_epochs == 1

    def permute(self, places: np.ndarray, epochs: np.ndarray) -> np.ndarray:
        """Where each place of its epoch goes in [0, a * b): a bijection for each epoch."""
        left, right = np.divmod(places, self._b)
        base = None if self._single else epochs * self._a
        for number, table in enumerate(self._tables):
            if number % 2 == 0:
                left = _shift(left, table, right, base, self._a)
            else:
                right = _shift(right, table, left, base, self._b)
        return left * self._b + right


@functools.lru_cache(maxsize=4)
def _network(seed: int, first_epoch: int, num_epochs: int, num_rows: int) -> _Network:
    return _Network(seed, first_epoch, num_epochs, num_rows)


def _shift(half: np.ndarray, table: np.ndarray, other: np.ndarray, base: np.ndarray | None, modulus: int) -> np.ndarray:
    half = half + table.take(other if base is None else other + base)
    half -= modulus * (half >= modulus)
    return half
