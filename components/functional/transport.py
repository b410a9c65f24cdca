"""Optimal transport between small discrete measures, from both sides: plans that carry mass, and potentials that price it.

W1(p, q) is the least cost of carrying p to q, where distance is the cost of a unit (`primal`); it is also the most that a function of
Lipschitz constant 1 can tell p from q by, E_p f - E_q f (`lipschitz_dual`; Kantorovich and Rubinstein). The critic of a WGAN looks for that
function (Arjovsky et al. 2017, arXiv 1701.07875, eq. 2). Linear programs are solved by HiGHS, pairings by `linear_sum_assignment`. All
arrays are float64 numpy; for measures of more than a few hundred points use `exact_w1`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import OptimizeResult, linear_sum_assignment, linprog
from scipy.spatial.distance import cdist
from scipy.special import logsumexp

Array = NDArray[np.float64]

SLACK = 1e-9  # by which totals of weights may differ
MARGIN = 1e-7  # by which all margins of an entropic plan together may


@dataclass(frozen=True)
class Plan:
    """How much goes from each place to each: `mass` (N, M), whose sums over rows and columns are the two measures."""

    mass: Array
    cost: float


@dataclass(frozen=True)
class Potentials:
    """What a unit is worth before, `f` (N,), and after, `g` (M,): f_i + g_j is at most the cost from i to j. `value` is a.f + b.g."""

    f: Array
    g: Array
    value: float


def primal(a: Array, b: Array, costs: Array) -> Plan:
    """The cheapest plan that carries weights a (N,) to weights b (M,) at `costs` (N, M) a unit.

    Raises ValueError for weights that are negative, of unequal totals or of another number than the costs.
    """
    _check(a, b, costs)
    n, m = costs.shape
    solved = _solve(costs.ravel(), A_eq=_sums(n, m), b_eq=np.concatenate([a, b]), bounds=(0, None))
    return Plan(solved.x.reshape(n, m), float(solved.fun))


def dual(a: Array, b: Array, costs: Array) -> Potentials:
    """The potentials of most value, which is the cost of the cheapest plan: no plan is cheaper, no potentials are worth more.

    Raises ValueError as `primal`.
    """
    _check(a, b, costs)
    n, m = costs.shape
    solved = _solve(-np.concatenate([a, b]), A_ub=_sums(n, m).T, b_ub=costs.ravel(), bounds=(None, None))
    return Potentials(solved.x[:n], solved.x[n:], float(-solved.fun))


def lipschitz_dual(p: Array, q: Array, metric: Array) -> Potentials:
    """Kantorovich and Rubinstein's form, for two measures p, q (N,) on the same places and their distances (N, N).

    The function f with f_i - f_j <= d_ij that tells them apart best; g is -f, and `value` is W1. Raises ValueError as `primal`.
    """
    _check(p, q, metric)
    n = len(p)
    before, after = np.divmod(np.arange(n * n), n)  # of every pair of places
    differences = sparse.eye_array(n, format="csc")[before] - sparse.eye_array(n, format="csc")[after]
    bounds = [(0.0, 0.0)] + [(None, None)] * (n - 1)  # f is known up to a constant
    solved = _solve(q - p, A_ub=differences, b_ub=metric.ravel(), bounds=bounds)
    return Potentials(solved.x, -solved.x, float(-solved.fun))


def best_critic(places: Array, y: Array, potentials: Potentials) -> Array:
    """The critic f(x) = min_j |x - y_j| - g_j at `places` (K, D), of the potentials between some x and y (M, D) at Euclidean cost: (K,).

    It has Lipschitz constant 1, and its means over the two measures differ by the potentials' value: the best that a WGAN's critic can do.
    """
    return (cdist(places, y) - potentials.g).min(1)


def entropic(a: Array, b: Array, costs: Array, eps: float, rounds: int = 100_000) -> Plan:
    """The plan of least cost - eps * entropy, by Sinkhorn's rounds in the log domain (Cuturi 2013, arXiv 1306.0895); `cost` is without it.

    It tends to the cheapest plan's from above as eps falls, and takes more rounds then. Raises ValueError as `primal`, and when the plan's
    margins are not a and b after so many `rounds`.
    """
    _check(a, b, costs)
    with np.errstate(divide="ignore"):
        log_a, log_b = np.log(a)[:, None], np.log(b)
    g = np.zeros(len(b))
    for _ in range(rounds):
        f = -eps * logsumexp(log_b + (g - costs) / eps, axis=1, keepdims=True)
        g = -eps * logsumexp(log_a + (f - costs) / eps, axis=0)
        mass = np.exp(log_a + log_b + (f + g - costs) / eps)
        if abs(mass.sum(1) - a).sum() < MARGIN:
            return Plan(mass, float((mass * costs).sum()))
    raise ValueError(f"eps={eps:g} did not come to its margins in {rounds} rounds; raise eps")


def w1_1d(x: Array, y: Array) -> Array:
    """W1 between numbers x (N, ...) and as many y (N, ...), along the first dimension: the mean distance of the sorted. (...)"""
    if x.shape != y.shape:
        raise ValueError(f"numbers of shapes {x.shape} and {y.shape}: expected as many of each")
    return np.abs(np.sort(x, axis=0) - np.sort(y, axis=0)).mean(0)


def exact_w1(x: Array, y: Array) -> float:
    """W1 between clouds of equal size (N, D), at Euclidean distance: of all pairings the one of least mean distance, in seconds for 2,000.

    Raises ValueError for clouds of unequal shapes.
    """
    if x.shape != y.shape or x.ndim != 2 or not len(x):
        raise ValueError(f"clouds of shapes {x.shape} and {y.shape}: expected two of the same shape (N, D), N at least 1")
    costs = cdist(x, y)
    return float(costs[linear_sum_assignment(costs)].mean())


def _sums(n: int, m: int) -> sparse.csc_array:
    """(N + M, N M): a plan's sums over its rows and over its columns, as linear functions of its entries."""
    return sparse.vstack(
        [sparse.kron(sparse.eye_array(n), np.ones((1, m))), sparse.kron(np.ones((1, n)), sparse.eye_array(m))], format="csc"
    )


def _solve(objective: Array, **constraints: object) -> OptimizeResult:
    solved = linprog(objective, method="highs-ds", **constraints)  # the simplex method ends in a corner, which is exact to rounding
    assert solved.success, solved.message
    return solved


def _check(a: Array, b: Array, costs: Array) -> None:
    if costs.shape != (len(a), len(b)):
        raise ValueError(f"{len(a)} and {len(b)} weights have costs of shape {costs.shape}, expected {(len(a), len(b))}")
    if min(a.min(), b.min()) < 0 or abs(a.sum() - b.sum()) > SLACK:
        raise ValueError(
            f"weights with totals {a.sum():g} and {b.sum():g}, the least {min(a.min(), b.min()):g}: expected equal, none below 0"
        )
