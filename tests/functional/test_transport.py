"""Transport beside POT and SciPy's own distance, plans beside potentials, and closed forms."""

from __future__ import annotations

import numpy as np
import ot
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import wasserstein_distance

from components.functional.transport import (
    Array,
    best_critic,
    dual,
    entropic,
    exact_w1,
    lipschitz_dual,
    primal,
    w1_1d,
)

SUPPORT = 8


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def weights(rng: np.random.Generator, count: int) -> Array:
    return rng.dirichlet(np.ones(count))


def even(count: int) -> Array:
    return np.full(count, 1 / count)


def test_in_one_dimension_it_is_the_distance_of_the_sorted(rng: np.random.Generator) -> None:
    """W1."""
    x, y = rng.normal(size=(200, 3)), rng.gamma(2.0, size=(200, 3))
    expected = [wasserstein_distance(x[:, place], y[:, place]) for place in range(3)]
    np.testing.assert_allclose(w1_1d(x, y), expected, atol=1e-12, rtol=0)
    assert w1_1d(x[:, 0], y[:, 0]) == pytest.approx(exact_w1(x[:, :1], y[:, :1]), abs=1e-12)
    with pytest.raises(ValueError, match=r"\(200, 3\) and \(100, 3\)"):
        w1_1d(x, y[:100])


@pytest.mark.parametrize("seed", range(5))
def test_plan_potentials_and_lipschitz_function_agree_with_pot(seed: int) -> None:
    """W2: two measures on the same eight places."""
    rng = np.random.default_rng(seed)
    places = rng.normal(size=(SUPPORT, 2))
    p, q, metric = weights(rng, SUPPORT), weights(rng, SUPPORT), cdist(places, places)
    plan, potentials, critic = primal(p, q, metric), dual(p, q, metric), lipschitz_dual(p, q, metric)
    expected = ot.emd2(p, q, metric)
    for value in (plan.cost, (plan.mass * metric).sum(), potentials.value, critic.value, critic.f @ (p - q)):
        assert value == pytest.approx(expected, abs=1e-8)
    np.testing.assert_allclose(plan.mass.sum(1), p, atol=1e-10)
    np.testing.assert_allclose(plan.mass.sum(0), q, atol=1e-10)
    assert plan.mass.min() >= 0
    assert (critic.f[:, None] - critic.f - metric).max() <= 1e-10


@pytest.mark.parametrize("seed", range(5))
def test_potentials_price_what_the_plan_carries(seed: int) -> None:
    """W6, with different places, numbers of them and weights on both sides, and one place without weight."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(12, 3)), rng.normal(1.0, 2.0, size=(17, 3))
    a, b, costs = weights(rng, 12), weights(rng, 17), cdist(x, y)
    a[0] += a[1]
    a[1] = 0.0
    plan, potentials = primal(a, b, costs), dual(a, b, costs)
    reduced = costs - potentials.f[:, None] - potentials.g
    assert reduced.min() >= -1e-10
    assert np.abs(reduced[plan.mass > 1e-12]).max() <= 1e-10
    assert a @ potentials.f + b @ potentials.g == pytest.approx(potentials.value, abs=1e-10)
    assert potentials.value == pytest.approx(plan.cost, abs=1e-10)
    assert plan.cost == pytest.approx(ot.emd2(a, b, costs), abs=1e-8)


def test_the_best_critic_is_lipschitz_and_tells_the_measures_apart_by_w1(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(40, 2)), rng.normal(1.0, 0.5, size=(40, 2))
    potentials = dual(even(40), even(40), cdist(x, y))
    anywhere = np.concatenate([rng.normal(size=(100, 2)) * 3, x, y])
    f = best_critic(anywhere, y, potentials)
    assert (f[:, None] - f - cdist(anywhere, anywhere)).max() <= 1e-10
    assert f[100:140].mean() - f[140:].mean() == pytest.approx(exact_w1(x, y), abs=1e-10)


@pytest.mark.parametrize("dimensions", [1, 2, 16])
def test_a_translation_costs_its_length(rng: np.random.Generator, dimensions: int) -> None:
    """W5: the samples may be anything."""
    x, delta = rng.standard_cauchy(size=(60, dimensions)), rng.normal(size=dimensions)
    length = np.linalg.norm(delta)
    assert exact_w1(x, x + delta) == pytest.approx(length, abs=1e-9)
    assert primal(even(60), even(60), cdist(x, x + delta)).cost == pytest.approx(length, abs=1e-9)


def test_entropic_transport_tends_to_it_from_above(rng: np.random.Generator) -> None:
    """W5. On a line many plans are nearly the cheapest, so that entropy costs little; in the plane eps log N bounds what it costs."""
    x = rng.normal(size=(10, 1))
    excess = [entropic(even(10), even(10), cdist(x, x + 1.0), eps).cost - 1.0 for eps in (1.0, 0.1, 0.01)]
    assert excess[0] > excess[1] > excess[2] > -1e-6, excess
    assert excess[2] < 1e-3
    x = rng.normal(size=(10, 2))
    for eps in (1.0, 0.1):
        assert 0 < entropic(even(10), even(10), cdist(x, x + 1.0), eps).cost - np.sqrt(2) < eps * np.log(10)


def test_entropic_plans_are_pots(rng: np.random.Generator) -> None:
    """A place without weight changes nothing."""
    a, b, costs = weights(rng, 9), weights(rng, 11), cdist(rng.normal(size=(9, 2)), rng.normal(size=(11, 2)))
    expected = ot.sinkhorn(a, b, costs, 0.05, method="sinkhorn_log", stopThr=1e-12, numItermax=10_000)
    more = entropic(np.append(a, 0.0), b, np.vstack([costs, np.zeros(11)]), 0.05).mass
    np.testing.assert_allclose(more[:9], expected, atol=1e-6)
    assert not more[9].any()
    with pytest.raises(ValueError, match="eps=1e-06 did not come to its margins in 3 rounds; raise eps"):
        entropic(a, b, costs, 1e-6, rounds=3)


def test_w1_between_clouds_is_pots(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(150, 5)), rng.normal(0.5, 1.5, size=(150, 5))
    assert exact_w1(x, y) == pytest.approx(ot.emd2([], [], ot.dist(x, y, metric="euclidean")), abs=1e-10)


@pytest.mark.parametrize(
    ("a", "b", "shape", "message"),
    [
        ([0.5, 0.5], [1.0], (2, 2), r"2 and 1 weights have costs of shape \(2, 2\), expected \(2, 1\)"),
        ([0.5, 0.6], [0.5, 0.5], (2, 2), "totals 1.1 and 1"),
        ([1.5, -0.5], [0.5, 0.5], (2, 2), "the least -0.5"),
    ],
)
def test_what_are_no_measures_is_refused(a: list[float], b: list[float], shape: tuple[int, int], message: str) -> None:
    for solve in (primal, dual, lipschitz_dual):
        with pytest.raises(ValueError, match=message):
            solve(np.array(a), np.array(b), np.ones(shape))


def test_clouds_of_unequal_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(4, 2\)"):
        exact_w1(np.zeros((3, 2)), np.zeros((4, 2)))
