"""Checks D3 and D4 of ancestral sampling: the posterior by Bayes, steps of diffusers, and lists shorter than the levels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from components.errors import UserError
from components.functional.ancestral import Posterior, Variance, ancestral
from components.functional.noise_schedules import Discrete, Schedule, cosine_betas, linear_betas
from components.functional.predictions import Denoiser, noise_of
from components.functional.timesteps import path_of, times_of, times_of_levels
from tests.functional.exact import SCHEDULES, exact_denoiser, gaussian, normal, one_point, two_bumps

LINEAR = Discrete(linear_betas())
VARIANCES: list[Variance] = ["small", "large"]


def no_noise(x: Tensor) -> Tensor:
    raise AssertionError("this sampler draws no noise here")


def given(*values: Tensor) -> Callable[[Tensor], Tensor]:
    """Noise handed out one after the other."""
    left = list(values)
    return lambda x: left.pop(0)


def ask_nothing(schedule) -> Denoiser:
    return Denoiser(no_noise, "eps", schedule)  # type: ignore[arg-type]


def product_of_gaussians(alpha_s: float, variance_s: float, ratio: float, beta: float) -> tuple[float, float, float]:
    """Of q(x_t | x_s) q(x_s | x_0) as a density of x_s: the factors of x_0 and x_t in its mean, and its variance, by adding precisions."""
    precision = ratio**2 / beta + 1 / variance_s
    return alpha_s / variance_s / precision, ratio / beta / precision, 1 / precision


@pytest.mark.parametrize("betas", [linear_betas(), cosine_betas(), linear_betas(100)])
def test_d3_the_posterior_is_the_product_of_its_gaussians(betas: Tensor) -> None:
    schedule = Discrete(betas)
    path = path_of(ask_nothing(schedule), times_of(schedule, "leading", len(betas)))
    kept = torch.cumprod(1 - betas, 0).tolist()
    for level in range(1, len(betas)):
        posterior = Posterior.of(path, len(betas) - 1 - level)
        beta = betas[level].item()
        expected = product_of_gaussians(kept[level - 1] ** 0.5, 1 - kept[level - 1], (1 - beta) ** 0.5, beta)
        assert (posterior.of_data, posterior.of_noisy, posterior.small) == pytest.approx(expected, abs=1e-12)
        assert posterior.large == pytest.approx(beta, abs=1e-12)


def test_d3_of_two_neighbours_of_a_short_list() -> None:
    path = path_of(ask_nothing(LINEAR), times_of_levels(LINEAR, torch.tensor([800, 300, 20])))
    kept = torch.cumprod(1 - LINEAR.betas, 0).tolist()
    for step, (upper, lower) in enumerate([(800, 300), (300, 20)]):
        beta = 1 - kept[upper] / kept[lower]
        posterior = Posterior.of(path, step)
        expected = product_of_gaussians(kept[lower] ** 0.5, 1 - kept[lower], (1 - beta) ** 0.5, beta)
        assert (posterior.of_data, posterior.of_noisy, posterior.small) == pytest.approx(expected, abs=1e-12)
        assert posterior.large == pytest.approx(beta, abs=1e-12)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("level", [999, 500, 100, 10, 1, 0])
def test_d4_a_step_equals_diffusers(level: int, clip: bool, variance: Variance) -> None:
    x, eps = normal(4, 3, 8, 8).float(), normal(4, 3, 8, 8, seed=1).float()
    reference = DDPMScheduler(variance_type=f"fixed_{variance}", clip_sample=clip)
    expected = reference.step(eps, level, x, generator=torch.Generator().manual_seed(5)).prev_sample
    noise = noise_of(torch.Generator().manual_seed(5)) if level > 0 else no_noise
    denoiser = Denoiser(lambda x, t: eps, "eps", LINEAR, clip=(-1, 1) if clip else None)
    times = LINEAR.time_of(torch.tensor([level, level - 1]))
    got = ancestral(denoiser, x, times, noise, variance=variance)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("steps", [7, 50])
def test_a_whole_loop_on_a_short_list_equals_diffusers(steps: int, variance: Variance) -> None:
    denoiser = exact_denoiser(LINEAR, two_bumps)
    start = normal(64, 1)
    reference = DDPMScheduler(variance_type=f"fixed_{variance}", clip_sample=False)
    reference.set_timesteps(steps)
    generator, expected = torch.Generator().manual_seed(9), start
    for level in reference.timesteps:
        expected = reference.step(denoiser.model(expected, LINEAR.time_of(level)), level, expected, generator=generator).prev_sample
    times = times_of_levels(LINEAR, reference.timesteps)
    got = ancestral(denoiser, start, times, noise_of(torch.Generator().manual_seed(9)), variance=variance)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "quadratic", "karras"])
def test_the_last_step_returns_the_predicted_data(spacing) -> None:
    denoiser = exact_denoiser(LINEAR, one_point(0.75), "v")
    got = ancestral(denoiser, normal(5, 2), times_of(LINEAR, spacing, 6), noise_of(torch.Generator()))
    torch.testing.assert_close(got, torch.full((5, 2), 0.75, dtype=torch.float64))
    assert denoiser.evaluations == 6


def test_noise_is_drawn_once_a_step_and_not_at_the_last() -> None:
    denoiser = exact_denoiser(LINEAR, one_point(0.0))
    drawn: list[torch.Size] = []

    def noise(x: Tensor) -> Tensor:
        drawn.append(x.shape)
        return torch.zeros_like(x)

    ancestral(denoiser, normal(5, 2), times_of(LINEAR, "trailing", 6), noise)
    assert drawn == [(5, 2)] * 5
    ancestral(denoiser, normal(5, 2), times_of(LINEAR, "trailing", 6)[:-1], noise)  # a list that stops at noise ends with noise
    assert len(drawn) == 10


def spread(schedule: Schedule, times: Tensor, variance: Variance) -> tuple[float, float]:
    """Mean and standard deviation of samples of data N(0.3, 0.5^2)."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(20_000, 1, generator=generator, dtype=torch.float64)
    got = ancestral(exact_denoiser(schedule, gaussian(0.3, 0.5)), start, times, noise_of(generator), variance=variance)
    return got.mean().item(), got.std().item()


@pytest.mark.parametrize("variance", VARIANCES)
def test_all_levels_give_the_law_of_the_data(variance: Variance) -> None:
    mean, std = spread(LINEAR, times_of(LINEAR, "trailing", 1000), variance)
    assert mean == pytest.approx(0.3, abs=0.015)
    assert std == pytest.approx(0.5, rel=0.02)


def test_few_steps_are_too_narrow_with_the_small_variance_and_too_wide_with_the_large() -> None:
    times = times_of(LINEAR, "linspace", 10)[:-1]  # to the first level, whose noise is next to none
    narrow, wide = spread(LINEAR, times, "small")[1], spread(LINEAR, times, "large")[1]
    assert narrow < 0.47 < 0.53 < wide


def test_the_continuous_vp_is_sampled_too() -> None:
    mean, std = spread(SCHEDULES["VP"], times_of(SCHEDULES["VP"], "uniform", 300), "small")
    assert (mean, std) == pytest.approx((0.3, 0.5), abs=0.02)


@pytest.mark.parametrize("name", ["sub-VP", "VE", "straight line"])
def test_schedules_that_do_not_preserve_variance(name: str) -> None:
    denoiser = exact_denoiser(SCHEDULES[name], one_point(0.0), "velocity")
    with pytest.raises(UserError, match=r"alpha\^2 \+ sigma\^2 = 1"):
        ancestral(denoiser, normal(2, 1), times_of(SCHEDULES[name], "uniform", 5), no_noise)
    assert denoiser.evaluations == 0


def test_a_list_that_does_not_fall() -> None:
    with pytest.raises(UserError, match="must fall strictly"):
        ancestral(exact_denoiser(LINEAR, two_bumps), normal(2, 1), times_of(LINEAR, "leading", 5).flip(0), no_noise)
