"""Checks D1, D2 and S2 of schedules against diffusers, iterated kernels and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from components.errors import UserError
from components.functional.noise_schedules import Discrete, Schedule, Table, VariancePreserving, cosine_betas, linear_betas
from tests.functional.exact import SCHEDULES, DeviceCopies

TIMES = torch.linspace(0.05, 0.95, 19, dtype=torch.float64) + 0.0004  # between two levels of 1000
CONTINUOUS = [name for name in SCHEDULES if name not in ("linear", "cosine")]


def alpha_bars(schedule: Discrete) -> Tensor:
    return schedule.alpha(schedule.time_of(torch.arange(schedule.levels))).square()


@pytest.mark.parametrize(("betas", "name"), [(linear_betas, "linear"), (cosine_betas, "squaredcos_cap_v2")])
def test_d1_alpha_bar_equals_diffusers(betas, name: str) -> None:
    reference = DDPMScheduler(beta_schedule=name).alphas_cumprod
    torch.testing.assert_close(alpha_bars(Discrete(betas())), reference.double(), atol=1e-6, rtol=0)


def test_d1_the_last_level_of_linear_betas_is_almost_noise() -> None:
    assert alpha_bars(Discrete(linear_betas()))[-1].item() == pytest.approx(4.0358e-5, rel=1e-4)
    assert alpha_bars(Discrete(linear_betas(4000)))[-1].item() == pytest.approx(4.0358e-5, rel=0.1)  # rescaled with the number of levels
    assert alpha_bars(Discrete(linear_betas(100)))[-1].item() < 1e-4


def test_d1_the_sum_of_4000_logarithms_keeps_its_digits() -> None:
    betas = linear_betas(4000)
    exact = math.exp(math.fsum(math.log1p(-beta) for beta in betas.tolist()))
    assert alpha_bars(Discrete(betas))[-1].item() == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("betas", [linear_betas(), cosine_betas(), linear_betas(250)])
def test_d2_iterated_kernels_give_the_closed_form(betas: Tensor) -> None:
    schedule = Discrete(betas)
    mean, variance = 1.0, 0.0
    for level, beta in enumerate(betas.tolist()):
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        t = schedule.time_of(torch.tensor(level))
        assert schedule.alpha(t).item() == pytest.approx(mean, abs=1e-12)
        assert schedule.sigma(t).square().item() == pytest.approx(variance, abs=1e-12)


def test_a_level_is_met_exactly_and_comes_back_from_its_time() -> None:
    schedule = Discrete(linear_betas(997))
    levels = torch.arange(-1, 997)
    t = schedule.time_of(levels)
    torch.testing.assert_close(schedule.level_of(t), levels.double(), atol=1e-9, rtol=0)
    expected = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - schedule.betas, 0)]).sqrt()
    torch.testing.assert_close(schedule.alpha(t), expected, atol=1e-14, rtol=1e-13)
    assert schedule.start == t[1].item()


def test_at_a_level_the_rate_is_that_of_the_kernel_which_ends_there() -> None:
    """Times (i + 1) / T are rounded; whichever way, the beta is the level's own."""
    schedule = Discrete(linear_betas(997))
    t = schedule.time_of(torch.arange(997))
    torch.testing.assert_close(schedule.alpha_rate(t) / schedule.alpha(t), torch.log1p(-schedule.betas) / 2 * 997, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_are_derivatives(name: str) -> None:
    schedule, h = SCHEDULES[name], 1e-6
    for of, rate in ((schedule.alpha, schedule.alpha_rate), (schedule.sigma, schedule.sigma_rate)):
        torch.testing.assert_close(rate(TIMES), (of(TIMES + h) - of(TIMES - h)) / (2 * h), atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_sde_keeps_the_moments_of_the_schedule(name: str) -> None:
    """d mean / dt = f mean and d variance / dt = 2 f variance + g^2, for finite differences of alpha and sigma^2."""
    schedule, h = SCHEDULES[name], 1e-6
    variance = schedule.sigma(TIMES).square()
    mean_rate = (schedule.alpha(TIMES + h) - schedule.alpha(TIMES - h)) / (2 * h)
    variance_rate = (schedule.sigma(TIMES + h).square() - schedule.sigma(TIMES - h).square()) / (2 * h)
    drift, diffusion = schedule.drift(TIMES), schedule.diffusion_squared(TIMES)
    torch.testing.assert_close(drift * schedule.alpha(TIMES), mean_rate, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(2 * drift * variance + diffusion, variance_rate, atol=1e-6, rtol=1e-6)
    assert (diffusion > 0).all()


def test_vp_is_the_sde_of_its_beta() -> None:
    schedule = VariancePreserving()
    torch.testing.assert_close(schedule.drift(TIMES), -schedule.beta(TIMES) / 2)
    torch.testing.assert_close(schedule.diffusion_squared(TIMES), schedule.beta(TIMES))


def test_s2_levels_tend_to_vp() -> None:
    def gap(levels: int) -> float:
        t = torch.arange(1, levels + 1, dtype=torch.float64) / levels
        return (alpha_bars(Discrete(linear_betas(levels))) - VariancePreserving().alpha(t).square()).abs().max().item()

    assert gap(1000) == pytest.approx(8.1e-4, rel=0.01)
    assert gap(1000) / gap(2000) == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize("name", SCHEDULES)
def test_ends_and_types(name: str) -> None:
    schedule = SCHEDULES[name]
    for t in (torch.tensor(0.0), torch.tensor([0.0, 1.0]), torch.rand(3, 2)):
        for of in (schedule.alpha, schedule.sigma, schedule.alpha_rate, schedule.sigma_rate):
            assert of(t).dtype == torch.float64
            assert of(t).shape == t.shape
    zero = torch.zeros(1)
    assert schedule.alpha(zero).item() == 1
    assert schedule.sigma(zero).item() == (pytest.approx(0.01) if name == "VE" else 0)
    assert not schedule.sigma(zero).signbit()
    assert schedule.sigma_rate(zero).item() > 0  # infinite for the schedules whose variance starts in proportion to time
    noise = schedule.sigma(torch.linspace(0, 1, 2000)) / schedule.alpha(torch.linspace(0, 1, 2000))
    assert (noise.diff() > 0).all()


def test_infinite_rates_have_a_sign() -> None:
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    for name in ("linear", "cosine", "VP"):
        assert SCHEDULES[name].sigma_rate(zero).item() == math.inf
    assert SCHEDULES["straight line"].drift(one).item() == -math.inf


@pytest.mark.parametrize("levels", [1, 20])
def test_too_few_linear_levels(levels: int) -> None:
    with pytest.raises(UserError, match=f"levels: {levels}; linear betas need more than 20"):
        linear_betas(levels)
    assert Discrete(linear_betas(21)).alpha(torch.ones(1)).item() > 0
    assert Discrete(cosine_betas(levels)).sigma(torch.ones(1)).item() > 0.99


def test_a_schedule_takes_times_from_low_precision_without_losing_its_own() -> None:
    def distance(schedule: Schedule) -> float:
        return (schedule.alpha(torch.tensor(0.5)) - schedule.alpha(torch.tensor(0.5, dtype=torch.float64))).abs().item()

    assert max(distance(schedule) for schedule in SCHEDULES.values()) == 0


@pytest.mark.parametrize("name", SCHEDULES)
def test_tables_are_copied_to_a_device_once(name: str) -> None:
    schedule, t = SCHEDULES[name], torch.rand(4, dtype=torch.float64, device="meta")
    asked = (schedule.alpha, schedule.sigma, schedule.alpha_rate, schedule.sigma_rate)
    with torch.inference_mode():
        found = [each(t) for each in asked]
    assert {value.device.type for value in found} == {"meta"}
    with DeviceCopies() as copies:
        for each in asked:
            each(t)
    assert copies.count == 0
    table = Table(torch.arange(3))
    with torch.inference_mode():
        first = table.on(t.device)
    assert table.on(t.device) is first
    assert not first.is_inference()
