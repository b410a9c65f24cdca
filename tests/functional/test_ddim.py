"""Checks I1 to I6 of DDIM, its order on an exact denoiser, inversion and interpolation."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from scipy.stats import kstest, norm
from torch import Tensor

from components.errors import UserError
from components.functional.ancestral import Posterior, ancestral
from components.functional.ddim import ddim, ddim_invert, noise_std, slerp
from components.functional.noise_schedules import Discrete, linear_betas
from components.functional.predictions import Denoiser, noise_of
from components.functional.timesteps import path_of, times_of, times_of_levels
from tests.functional.exact import SCHEDULES, exact_denoiser, gaussian, normal, one_point, two_bumps

LINEAR = Discrete(linear_betas())


def all_levels():
    return path_of(exact_denoiser(LINEAR, two_bumps), times_of(LINEAR, "leading", 1000))


def no_noise(x: Tensor) -> Tensor:
    raise AssertionError("a deterministic sampler draws no noise")


def test_i1_eta_1_has_the_posterior_variance_of_ddpm() -> None:
    path = all_levels()
    kept = torch.cumprod(1 - LINEAR.betas, 0).flip(0)
    before = torch.cat([kept[1:], torch.ones(1, dtype=torch.float64)])
    expected = LINEAR.betas.flip(0) * (1 - before) / (1 - kept)
    got = torch.tensor([noise_std(path, step, 1.0) for step in range(path.steps)], dtype=torch.float64).square()
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)
    assert [Posterior.of(path, step).small for step in range(path.steps)] == pytest.approx(got.tolist(), rel=1e-9)


def test_i1_eta_1_on_all_levels_is_the_small_ancestral_step() -> None:
    eps, x = normal(8, 3, seed=1), normal(8, 3)
    denoiser = Denoiser(lambda x, t: eps, "eps", LINEAR)
    for level in (999, 500, 100, 10, 1, 0):
        times = LINEAR.time_of(torch.tensor([level, level - 1]))
        ours, theirs = (
            sample(denoiser, x, times, noise_of(torch.Generator().manual_seed(level)), **options)
            for sample, options in ((ddim, {"eta": 1.0}), (ancestral, {"variance": "small"}))
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


def test_i2_eta_0_is_deterministic_and_leaves_the_generator_alone() -> None:
    denoiser, times, start = exact_denoiser(LINEAR, two_bumps), times_of(LINEAR, "leading", 20), normal(50, 2)
    generator = torch.Generator().manual_seed(1)
    state = generator.get_state()
    first, second = (ddim(denoiser, start, times, noise_of(generator)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first, ddim(denoiser, start, times))
    assert torch.equal(generator.get_state(), state)


def reference_loop(denoiser: Denoiser, start: Tensor, steps: int, spacing: str, eta: float) -> Tensor:
    """The loop of diffusers, with its own levels and strides, and products in float64: in float32 its last alpha is off by 5e-5."""
    scheduler = DDIMScheduler(timestep_spacing=spacing, clip_sample=False)
    scheduler.alphas_cumprod = torch.cumprod(1 - LINEAR.betas, 0)
    scheduler.set_timesteps(steps)
    generator, x = torch.Generator().manual_seed(4), start
    for level in scheduler.timesteps:
        x = scheduler.step(denoiser.model(x, LINEAR.time_of(level)), level, x, eta=eta, generator=generator).prev_sample
    return x


def ours(denoiser: Denoiser, start: Tensor, steps: int, spacing, eta: float) -> Tensor:
    return ddim(denoiser, start, times_of(LINEAR, spacing, steps), noise_of(torch.Generator().manual_seed(4)), eta=eta)


LEADING = [("leading", steps) for steps in (1, 2, 3, 7, 10, 50, 300, 333, 600, 1000)]
TRAILING = [("trailing", steps) for steps in (1, 2, 4, 5, 10, 20, 50, 125, 500, 1000)]


@pytest.mark.parametrize(("spacing", "steps"), LEADING + TRAILING)
def test_i3_the_whole_loop_equals_diffusers(spacing: str, steps: int) -> None:
    denoiser, start = exact_denoiser(LINEAR, gaussian(0.3, 0.5)), normal(64, 3)
    for eta in (0.0, 0.5):
        expected = reference_loop(denoiser, start, steps, spacing, eta)
        torch.testing.assert_close(ours(denoiser, start, steps, spacing, eta), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize(("spacing", "steps"), [("linspace", 10), ("linspace", 50), ("trailing", 7), ("trailing", 300)])
def test_i3_where_the_reference_steps_by_a_fixed_stride_we_go_to_the_next_level(spacing: str, steps: int) -> None:
    """It takes t - 1000 // S for the level after t, which is not the one at which it asks the model next: x then has other noise than the
    model is told. Of data of one point the noise is known at every question; it stays that of the start with us, and drifts with it."""
    exact, start, heard = exact_denoiser(LINEAR, one_point(0.4)), normal(20, 1), []

    def model(x: Tensor, t: Tensor) -> Tensor:
        heard.append(exact.model(x, t))
        return heard[-1]

    denoiser = Denoiser(model, "eps", LINEAR)
    mine = ours(denoiser, start, steps, spacing, 0.0)
    assert max((noise - heard[0]).abs().max().item() for noise in heard) < 1e-9
    heard.clear()
    reference_loop(denoiser, start, steps, spacing, 0.0)
    assert max((noise - heard[0]).abs().max().item() for noise in heard) > 0.01
    torch.testing.assert_close(mine, torch.full_like(start, 0.4))


@pytest.mark.parametrize(("spacing", "steps"), [("linspace", 600), ("trailing", 600), ("trailing", 300)])
def test_i3_the_fixed_stride_of_the_reference_misses_the_data_however_many_the_steps(spacing: str, steps: int) -> None:
    denoiser, start = exact_denoiser(LINEAR, gaussian(0.3, 0.5)), normal(2000, 1)
    true = 0.3 + 0.5 * start  # where the probability flow goes from N(0, 1), but for alpha of the last level, 0.006
    assert (ours(denoiser, start, steps, spacing, 0.0) - true).abs().mean() < 0.01
    assert (reference_loop(denoiser, start, steps, spacing, 0.0) - true).abs().mean() > 0.02


def test_i4_the_last_update_returns_the_predicted_data_exactly() -> None:
    for name, schedule in SCHEDULES.items():
        x, t = normal(4, 3), torch.tensor(0.25, dtype=torch.float64)
        denoiser = exact_denoiser(schedule, two_bumps, "v")
        x0, _ = denoiser.x0_and_eps(x, t)
        assert torch.equal(ddim(denoiser, x, torch.tensor([0.25, 0.0]), no_noise, eta=1.0), x0), name


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_i5_squared_coefficients_add_up_to_the_noise_of_the_next_time(eta: float) -> None:
    """Measured on the sampler itself: it is linear in eps and in the fresh noise."""
    none, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    times = times_of_levels(LINEAR, torch.tensor([800, 300, 20]))
    for pair in times.unfold(0, 2, 1)[:-1]:
        denoiser = Denoiser(lambda x, t: one, "eps", LINEAR)
        x = LINEAR.sigma(pair[0]) * one  # of data 0
        of_eps = ddim(denoiser, x, pair, lambda like: none, eta=eta)
        of_noise = ddim(denoiser, x, pair, lambda like: one, eta=eta) - of_eps
        torch.testing.assert_close(of_eps.square() + of_noise.square(), LINEAR.sigma(pair[1]).square() * one)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", SCHEDULES)
def test_i5_data_of_one_point_are_hit_exactly(name: str, eta: float) -> None:
    schedule = SCHEDULES[name]
    for spacing in ("uniform", "quadratic"):
        denoiser = exact_denoiser(schedule, one_point(-0.7), "velocity")
        got = ddim(denoiser, normal(9, 2), times_of(schedule, spacing, 7), noise_of(torch.Generator()), eta=eta)
        torch.testing.assert_close(got, torch.full((9, 2), -0.7, dtype=torch.float64))


def mixture_cdf(x):
    return (norm.cdf(x, 1, 0.2) + norm.cdf(x, -1, 0.2)) / 2


@pytest.mark.parametrize(("steps", "distance"), [(10, 0.090), (20, 0.049), (50, 0.019), (100, 0.012)])
def test_i6_distance_to_a_mixture(steps: int, distance: float) -> None:
    got = ddim(exact_denoiser(LINEAR, two_bumps), normal(20_000, 1), times_of(LINEAR, "leading", steps))
    assert kstest(got.flatten().numpy(), mixture_cdf).statistic == pytest.approx(distance, abs=0.008)


def flow_error(name: str, steps: int, end: float = 0.1) -> float:
    """Distance to the probability flow of N(0.3, 0.5^2), which keeps (x - mean) / std, from time 0.9."""
    schedule = SCHEDULES[name]
    times = torch.linspace(0.9, end, steps + 1, dtype=torch.float64)
    mean, std = 0.3 * schedule.alpha(times), (0.25 * schedule.alpha(times).square() + schedule.sigma(times).square()).sqrt()
    z = torch.linspace(-2, 2, 9, dtype=torch.float64).unsqueeze(1)
    got = ddim(exact_denoiser(schedule, gaussian(0.3, 0.5), "velocity"), mean[0] + std[0] * z, times)
    return (got - mean[-1] - std[-1] * z).abs().max().item()


@pytest.mark.parametrize("name", ["VP", "sub-VP", "VE", "straight line"])
def test_the_error_is_of_first_order(name: str) -> None:
    assert math.log2(flow_error(name, 100) / flow_error(name, 200)) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("kind", ["velocity", "v", "x0"])
def test_the_straight_line_from_pure_noise(kind) -> None:
    """Alpha is 0 at time 1; nothing is divided by it, and DDIM is Euler's method on the velocity there."""
    schedule, start = SCHEDULES["straight line"], normal(20_000, 1)
    times = times_of(schedule, "uniform", 100)
    got = ddim(exact_denoiser(schedule, two_bumps, kind), start, times)
    assert kstest(got.flatten().numpy(), mixture_cdf).statistic < 0.03
    denoiser, x = exact_denoiser(schedule, two_bumps, "velocity"), start
    for t, s in times.unfold(0, 2, 1):
        x = x + (s - t) * denoiser.predict("velocity", x, t)
    torch.testing.assert_close(got, x, atol=1e-9, rtol=1e-9)


def test_ve_ends_at_clean_data() -> None:
    """The noise sigma_min that the schedule leaves at time 0 is taken away too."""
    schedule = SCHEDULES["VE"]
    got = ddim(exact_denoiser(schedule, gaussian(0.3, 0.5)), 50 * normal(20_000, 1), times_of(schedule, "karras", 200))
    assert (got.mean().item(), got.std().item()) == pytest.approx((0.3, 0.5), abs=0.02)


@pytest.mark.parametrize("eta", [-0.1, 1.0001, math.nan, math.inf])
def test_eta_outside_its_range(eta: float) -> None:
    with pytest.raises(UserError, match=r"eta: .*from 0"):
        ddim(exact_denoiser(LINEAR, two_bumps), normal(2, 1), times_of(LINEAR, "leading", 5), no_noise, eta=eta)


def test_clipping_returns_data_within_the_range() -> None:
    denoiser = exact_denoiser(LINEAR, gaussian(0, 1))
    denoiser.clip = (-1, 1)
    got = ddim(denoiser, normal(500, 1), times_of(LINEAR, "leading", 10))
    assert got.abs().max() == 1
    scheduler, x = DDIMScheduler(clip_sample=True, timestep_spacing="leading"), normal(500, 1)
    scheduler.set_timesteps(10)
    for level in scheduler.timesteps:
        eps = denoiser.model(x, LINEAR.time_of(level))
        x = scheduler.step(eps, level, x, use_clipped_model_output=True).prev_sample  # its default keeps the noise of the unclipped data
    torch.testing.assert_close(got, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_inversion_equals_diffusers(spacing) -> None:
    denoiser, data = exact_denoiser(LINEAR, two_bumps), normal(64, 2) / 5 + 1
    scheduler, x = DDIMInverseScheduler(timestep_spacing=spacing, clip_sample=False), data
    scheduler.set_timesteps(50)
    for level in scheduler.timesteps:
        x = scheduler.step(denoiser.model(x, LINEAR.time_of(level)), level, x).prev_sample
    torch.testing.assert_close(ddim_invert(denoiser, data, times_of(LINEAR, spacing, 50)), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "quadratic"])
def test_decoding_what_was_encoded_comes_back_the_better_the_more_steps(spacing) -> None:
    denoiser, data = exact_denoiser(LINEAR, two_bumps), torch.cat([normal(500, 1) / 5 + 1, normal(500, 1, seed=1) / 5 - 1])

    def error(steps: int) -> float:
        times = times_of(LINEAR, spacing, steps)
        return (ddim(denoiser, ddim_invert(denoiser, data, times), times) - data).square().mean().sqrt().item()

    errors = [error(steps) for steps in (25, 100, 400)]
    assert errors[0] < 0.1
    assert errors[1] < 0.4 * errors[0]
    assert errors[2] < 0.4 * errors[1]


def test_encoded_data_are_noise() -> None:
    data = torch.cat([normal(2000, 1) / 5 + 1, normal(2000, 1, seed=1) / 5 - 1])
    for name in ("linear", "cosine", "VP", "straight line"):
        schedule = SCHEDULES[name]
        noise = ddim_invert(exact_denoiser(schedule, two_bumps, "v"), data, times_of(schedule, "uniform", 200))
        assert kstest(noise.flatten().numpy(), norm.cdf).statistic < 0.04, name


def test_inversion_of_clipped_steps() -> None:
    denoiser = exact_denoiser(LINEAR, two_bumps)
    denoiser.clip = (-1, 1)
    with pytest.raises(UserError, match="clip"):
        ddim_invert(denoiser, normal(2, 1), times_of(LINEAR, "leading", 5))


def test_slerp_turns_by_equal_angles_and_keeps_the_length() -> None:
    a, b = normal(6, 3, 8, 8), normal(6, 3, 8, 8, seed=1)
    b = b * (a.flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)

    def angle(x: Tensor, y: Tensor) -> Tensor:
        return torch.nn.functional.cosine_similarity(x.flatten(1), y.flatten(1)).acos()

    for share in (0.25, 0.5, 0.8):
        between = slerp(a, b, share)
        torch.testing.assert_close(between.flatten(1).norm(dim=1), a.flatten(1).norm(dim=1))
        torch.testing.assert_close(angle(a, between), share * angle(a, b), rtol=1e-6, atol=1e-6)


def test_slerp_of_parallel_rows_and_of_other_rows_beside_them() -> None:
    a, b = normal(3, 4).float(), normal(3, 4, seed=1).float()
    b[0], b[1] = a[0], 2 * a[1]
    got = slerp(a, b, 0.5)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got[:2], torch.stack([a[0], 1.5 * a[1]]))
    torch.testing.assert_close(got[2:], slerp(a[2:], b[2:], 0.5))
    torch.testing.assert_close(slerp(a, -a, 0.25), a / 2)  # opposite: no turn is shorter than another
