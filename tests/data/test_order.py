"""The order of rows: every epoch a fresh full permutation, a pure function of (seed, position), with no visible pattern."""

from __future__ import annotations

import itertools
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import scipy.stats

from components.data.order import rows_at


@pytest.mark.parametrize("num_rows", [1, 2, 3, 5, 16, 97, 1000, 1001, 4096, 60_000])
def test_every_epoch_is_a_permutation(num_rows: int) -> None:
    epochs = rows_at(7, 0, 3 * num_rows, num_rows).reshape(3, num_rows)
    assert (np.sort(epochs) == np.arange(num_rows)).all()
    if num_rows > 10:
        assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3


@pytest.mark.parametrize("num_rows", [1, 5, 97, 2000])
def test_any_cut_of_the_sequence_gives_the_same_rows(num_rows: int) -> None:
    whole = rows_at(3, 0, 5 * num_rows + 20, num_rows)
    for first, count in [(0, 1), (num_rows - 1, 2), (num_rows // 2, 3 * num_rows), (4 * num_rows + 1, 15), (3, 0)]:
        assert (rows_at(3, first, count, num_rows) == whole[first : first + count]).all()


def test_seeds_give_other_orders_and_equal_seeds_the_same() -> None:
    orders = [tuple(rows_at(seed, 0, 50, 50).tolist()) for seed in (0, 1, 2, 0)]
    assert orders[0] == orders[3]
    assert len(set(orders)) == 3


def test_all_orders_of_a_few_rows_are_equally_frequent() -> None:
    epochs = rows_at(1, 0, 5 * 24_000, 5).reshape(-1, 5)
    counts = Counter(map(tuple, epochs.tolist()))
    frequencies = [counts[order] for order in itertools.permutations(range(5))]
    assert scipy.stats.chisquare(frequencies).pvalue > 1e-4


def test_places_are_uniform_and_neighbours_are_independent() -> None:
    num_rows, epochs = 3000, 200
    orders = rows_at(11, 0, epochs * num_rows, num_rows).reshape(epochs, num_rows)
    first_rows = np.histogram(orders[:, :30], bins=30, range=(0, num_rows))[0]  # which rows come early
    assert scipy.stats.chisquare(first_rows).pvalue > 1e-4
    correlations = [np.corrcoef(order[:-1], order[1:])[0, 1] for order in orders]
    assert abs(np.mean(correlations)) < 5 / np.sqrt(num_rows * epochs)
    steps = np.abs(np.diff(orders, axis=1))
    assert abs(steps.mean() / (num_rows / 3) - 1) < 0.01  # the mean distance of two uniform rows is a third
    epoch_to_epoch = [scipy.stats.spearmanr(np.argsort(a), np.argsort(b)).statistic for a, b in itertools.pairwise(orders[:40])]
    assert abs(np.mean(epoch_to_epoch)) < 5 / np.sqrt(num_rows * 39)


def test_positions_in_a_huge_data_set_need_no_memory_for_its_rows() -> None:
    num_rows = 10**9
    tracemalloc.start()
    rows = rows_at(0, 123_456_789_012_345, 1000, num_rows)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 20 * 2**20, "an order held whole takes 8 GB here"
    assert len(set(rows.tolist())) == 1000
    assert rows.min() >= 0
    assert rows.max() < num_rows


def test_the_order_stays_what_it_was() -> None:
    """Runs that resume under a later version continue the same order."""
    assert rows_at(0, 0, 12, 100).tolist() == GOLDEN_100
    assert rows_at(5, 250_000, 6, 60_000).tolist() == GOLDEN_60000


GOLDEN_100 = [45, 64, 31, 46, 18, 7, 99, 97, 75, 3, 38, 34]
GOLDEN_60000 = [29831, 57084, 52252, 25422, 52092, 53523]
