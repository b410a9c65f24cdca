"""Straight lines beside flow_matching and torchcfm's formula, pairings beside every permutation, straightness beside closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from flow_matching.path import CondOTProbPath
from scipy.optimize import linear_sum_assignment
from scipy.stats import ks_2samp, logistic, norm
from torch import Tensor

from components.errors import UserError
from components.functional.flow_matching import logit_normal_times, straightness, transport_cost, transport_pairing
from components.functional.noise_schedules import StraightLine
from components.functional.ode_samplers import ode
from components.functional.oracles import MixtureOracle
from components.functional.predictions import Coefficients, Denoiser, noised, target

SHAPE = (64, 1, 4, 4)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def pairs() -> tuple[Tensor, Tensor, Tensor]:
    """Data, noise and times: multiples of 2^-24, as `torch.rand` draws them, of which 1 - t is exact."""
    return normal(*SHAPE), normal(*SHAPE, seed=1), torch.rand(SHAPE[0], generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_straight_line_is_flow_matchings_and_torchcfms_walked_backwards(pairs: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    """flow_matching is the peer. torchcfm is not installed, being heavy: its formula is written out here, and says no more than that."""
    x0, eps, t = (value.to(dtype) for value in pairs)
    at = Coefficients.at(StraightLine(), t, x0)
    x_t, velocity = noised(x0, eps, at), target("velocity", x0, eps, at)
    peer = CondOTProbPath().sample(t=1 - t, x_0=eps, x_1=x0)
    assert torch.equal(x_t, peer.x_t)
    assert torch.equal(velocity, -peer.dx_t)
    s = (1 - t).view(-1, 1, 1, 1)
    assert torch.equal(x_t, s * x0 + (1 - s) * eps)  # torchcfm's ConditionalFlowMatcher(sigma=0), 1.0.7: t x1 + (1 - t) x0
    assert torch.equal(velocity, -(x0 - eps))  # and its x1 - x0


def test_logit_normal_times_have_their_distribution() -> None:
    uniform = torch.arange(10_000) / 10_000
    t = logit_normal_times(uniform, 0.5, 1.5)
    for point in (0.1, 0.4, 0.7, 0.95):
        assert (t < point).double().mean() == pytest.approx(norm.cdf((logistic.ppf(point) - 0.5) / 1.5), abs=2e-4)
    assert (t.diff() > 0).all()
    assert t[0] == 0
    assert logit_normal_times(torch.tensor([0.5])).item() == 0.5


def total_cost(data: Tensor, noise: Tensor, order: Tensor) -> float:
    return (data - noise[order]).square().sum().item()


def test_pairing_is_the_best_of_all_permutations() -> None:
    data, noise = normal(6, 2), normal(6, 2, seed=1)
    best = min(itertools.permutations(range(6)), key=lambda order: total_cost(data, noise, torch.tensor(order)))
    assert transport_pairing(data, noise).tolist() == list(best)


def test_pairing_is_scipys_assignment_and_never_dearer_than_none() -> None:
    for seed in range(5):
        data, noise = normal(*SHAPE, seed=seed), normal(*SHAPE, seed=100 + seed)
        pairing = transport_pairing(data, noise)
        distances = (data[:, None] - noise[None]).flatten(2).double().square().sum(2)
        assert pairing.tolist() == linear_sum_assignment(distances.numpy())[1].tolist()
        assert sorted(pairing.tolist()) == list(range(SHAPE[0]))
        assert transport_cost(data, noise[pairing]).sum() <= transport_cost(data, noise).sum()


def test_pairing_in_groups_is_that_of_each_group_alone() -> None:
    data, noise = normal(*SHAPE), normal(*SHAPE, seed=1)
    groups = torch.randint(3, (SHAPE[0],), generator=torch.Generator().manual_seed(2))
    pairing = transport_pairing(data, noise, groups)
    assert torch.equal(groups[pairing], groups)
    for group in range(3):
        members = (groups == group).nonzero()[:, 0]
        assert torch.equal(pairing[members], members[transport_pairing(data[members], noise[members])])


def test_pairs_that_disregard_the_class_tell_the_class_from_the_noise() -> None:
    """Why there are groups: torchcfm's pairing with labels carries them along, and then one class has the noise on its side."""
    labels = torch.arange(512) % 2
    data, noise = (labels * 4.0 - 2)[:, None] + 0.1 * normal(512, 1), normal(512, 1, seed=1)
    skewed, fair = noise[transport_pairing(data, noise)], noise[transport_pairing(data, noise, labels)]
    assert skewed[labels == 1].mean() > 0.7
    assert fair[labels == 1].mean() == pytest.approx(noise[labels == 1].mean().item(), abs=1e-6)


def test_transport_cost_is_a_sum_over_pixels() -> None:
    assert transport_cost(torch.zeros(3, 1, 2, 2), torch.full((3, 1, 2, 2), 2.0)).tolist() == [16.0] * 3


def flow(velocity: object) -> Denoiser:
    return Denoiser(velocity, "velocity", StraightLine())  # type: ignore[arg-type]


def test_a_constant_velocity_is_straight_and_a_turning_one_is_not() -> None:
    times, noise = torch.linspace(1, 0, 2001, dtype=torch.float64), normal(5, 1, 2, 2).double()
    assert straightness(flow(lambda x, t: torch.ones_like(x)), noise, times).abs().max() < 1e-9
    turning = straightness(flow(lambda x, t: torch.full_like(x, math.sin(2 * math.pi * t))), noise, times)
    assert turning.tolist() == pytest.approx([4 * 0.5] * 5, rel=1e-6)  # four pixels, each int sin^2 = 1/2 about a mean of 0


@pytest.mark.parametrize("times", [[1.0, 0.5, 0.5, 0.0], [0.0, 0.5, 1.0], [[1.0, 0.0]], [1.5, 0.0]])
def test_straightness_along_times_that_do_not_fall_is_refused(times: list[float]) -> None:
    with pytest.raises(UserError, match=r"^times"):
        straightness(flow(lambda x, t: x), normal(5, 1), torch.tensor(times))


def test_straightness_of_gaussians_is_that_of_their_exact_flow() -> None:
    """N(0, s^2) from N(0, 1): Z_t = sd(t) z, so that S = z^2 int ((1 - s) - sd'(t))^2 dt with sd^2 = (1 - t)^2 s^2 + t^2."""
    s, z = 0.3, normal(4, 1).double()
    times = torch.linspace(1, 0, 4001, dtype=torch.float64)
    rate = lambda t: (t - (1 - t) * s**2) / ((1 - t) ** 2 * s**2 + t**2)  # noqa: E731
    found = straightness(flow(lambda x, t: rate(t) * x), z, times)
    grid = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    deviation = (1 - s) - rate(grid) * ((1 - grid) ** 2 * s**2 + grid**2).sqrt()
    expected = z[:, 0].square() * torch.trapezoid(deviation.square(), grid)
    assert found.tolist() == pytest.approx(expected.tolist(), rel=2e-3)


MIXTURE = MixtureOracle(torch.tensor([[-1.0], [1.0]]), torch.tensor([0.2, 0.2]), torch.tensor([0.5, 0.5]), StraightLine())
PAIRS = 20_000


def field_of(data: Tensor, noise: Tensor, bins: int = 500) -> Denoiser:
    """What a network learns from pairs (N, 1), E[velocity | x_t], by averages over neighbours along x_t."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        at = Coefficients.at(StraightLine(), t, data)
        x_t = noised(data, noise, at)
        order = x_t[:, 0].argsort()
        place, mean = (values[order].view(bins, -1).mean(1).numpy() for values in (x_t, target("velocity", data, noise, at)))
        return torch.from_numpy(np.interp(x.numpy(), place, mean))

    return flow(velocity)


def test_reflow_keeps_the_marginals_and_makes_one_step_enough() -> None:
    noise, fresh = normal(PAIRS, 1).double(), normal(PAIRS, 1, seed=1).double()
    fine, coarse, one = (torch.linspace(1, 0, n + 1, dtype=torch.float64) for n in (100, 20, 1))
    first = MIXTURE.denoiser("velocity")
    data = ode(first, noise, fine, method="rk4")
    second = field_of(data, noise)

    def distance(samples: Tensor) -> float:
        return ks_2samp(samples[:, 0].numpy(), data[:, 0].numpy()).statistic

    assert distance(ode(second, fresh, coarse, method="euler")) <= 0.02
    assert distance(ode(second, fresh, one, method="euler")) <= 0.02
    assert distance(ode(first, fresh, one, method="euler")) > 0.2  # before reflow all of one step's samples are the mean
    assert straightness(second, fresh, coarse).mean() < 1e-3 < 0.1 < straightness(first, fresh, coarse).mean()
    shuffled = field_of(data, noise.roll(PAIRS // 2, 0))
    assert distance(ode(shuffled, fresh, one, method="euler")) > 0.2  # the pairing is what made the paths straight
