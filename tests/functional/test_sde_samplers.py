"""Reverse SDEs of exact scores beside the data law and the steps of diffusers; the corrector; what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import ScoreSdeVeScheduler
from diffusers.schedulers.deprecated.scheduling_sde_vp import ScoreSdeVpScheduler
from scipy import stats

from components.errors import UserError
from components.functional.noise_schedules import (
    Discrete,
    Schedule,
    StraightLine,
    SubVariancePreserving,
    VarianceExploding,
    VariancePreserving,
    linear_betas,
)
from components.functional.oracles import GaussianOracle, MixtureOracle
from components.functional.predictions import Denoiser, noise_of
from components.functional.sde_samplers import euler_maruyama, predictor_corrector, reverse_diffusion

Sampler = Callable[..., torch.Tensor]
SAMPLERS = [euler_maruyama, reverse_diffusion, predictor_corrector]
SCHEDULES = [VariancePreserving(), SubVariancePreserving(), VarianceExploding(sigma_max=10.0), Discrete(linear_betas())]
NAMES = ["vp", "subvp", "ve", "discrete"]
IMAGES = (1, 3, 8, 8)


def two_peaks(schedule: Schedule) -> MixtureOracle:
    return MixtureOracle(torch.tensor([[-1.0], [1.0]]), torch.tensor([0.2, 0.2]), torch.ones(2), schedule)


def two_peaks_law(x: np.ndarray) -> np.ndarray:
    return (stats.norm.cdf(x, -1, 0.2) + stats.norm.cdf(x, 1, 0.2)) / 2


def falling(steps: int, end: float = 0.0) -> torch.Tensor:
    return torch.linspace(1, end, steps + 1, dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def prior(schedule: Schedule, *shape: int) -> torch.Tensor:
    return schedule.sigma(torch.tensor(1.0)) * torch.randn(*shape, generator=seeded(1), dtype=torch.float64)


def distance(x: torch.Tensor) -> float:
    return stats.kstest(x[:, 0].numpy(), two_peaks_law).statistic


def test_euler_maruyama_samples_a_mixture() -> None:
    denoiser = two_peaks(VariancePreserving()).denoiser("score")
    assert distance(euler_maruyama(denoiser, prior(VariancePreserving(), 20_000, 1), falling(1000), noise_of(seeded()))) <= 0.02
    assert denoiser.evaluations == 1000


def test_predictor_and_corrector_sample_a_mixture() -> None:
    denoiser = two_peaks(VariancePreserving()).denoiser("eps")
    assert distance(predictor_corrector(denoiser, prior(VariancePreserving(), 20_000, 1), falling(500), noise_of(seeded()))) <= 0.02
    assert denoiser.evaluations == 1000


@pytest.mark.parametrize("schedule", SCHEDULES, ids=NAMES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_schedule_is_sampled(sampler: Sampler, schedule: Schedule) -> None:
    x = sampler(two_peaks(schedule).denoiser("eps"), prior(schedule, 10_000, 1), falling(120), noise_of(seeded()))
    assert distance(x) <= 0.03


def test_the_corrector_mends_what_few_steps_leave() -> None:
    schedule = VarianceExploding(sigma_max=10.0)
    errors = []
    for corrections in (0, 2, 8):
        denoiser = two_peaks(schedule).denoiser("eps")
        x = predictor_corrector(denoiser, prior(schedule, 20_000, 1), falling(10), noise_of(seeded()), corrections=corrections)
        errors.append(distance(x))
        assert denoiser.evaluations == 10 * (1 + corrections)
    assert errors[0] > 1.2 * errors[1] > 1.5 * errors[2]


def test_many_corrections_at_one_time_keep_its_law() -> None:
    """At t = 0.3 the marginal of the mixture is stationary: 40 steps leave draws of it as they are distributed."""
    schedule, t = VariancePreserving(), 0.3
    at = torch.tensor(t)
    alpha, sigma = float(schedule.alpha(at)), float(schedule.sigma(at))
    x = alpha * two_peaks(schedule).sample(20_000, seeded(2)) + sigma * torch.randn(20_000, 1, generator=seeded(3), dtype=torch.float64)
    times = torch.tensor([t, t - 1e-6], dtype=torch.float64)
    moved = predictor_corrector(two_peaks(schedule).denoiser("score"), x, times, noise_of(seeded()), corrections=40)

    def law(v: np.ndarray) -> np.ndarray:
        return np.mean([stats.norm.cdf(v, alpha * m, math.hypot(0.2 * alpha, sigma)) for m in (-1, 1)], axis=0)

    assert stats.kstest(moved[:, 0].numpy(), law).statistic < 0.015
    assert np.corrcoef(moved[:, 0], x[:, 0])[0, 1] < 0.95  # they did move


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_gaussian_in_many_dimensions(sampler: Sampler) -> None:
    oracle = GaussianOracle(torch.linspace(-0.5, 0.5, 12).reshape(3, 2, 2), torch.tensor(0.3), VariancePreserving())
    x = sampler(oracle.denoiser("v"), prior(oracle.schedule, 4000, 3, 2, 2), falling(200), noise_of(seeded()))
    assert (x.mean(0) - oracle.mean).abs().max() < 0.03
    assert (x.std(0) - 0.3).abs().max() < 0.02


def test_a_point_is_hit_exactly() -> None:
    """Data that are one point: the last step denoises, so not a grain of noise is left."""
    oracle = GaussianOracle(torch.tensor([0.7, -0.2]), torch.tensor(0.0), VariancePreserving())
    for sampler in SAMPLERS:
        x = sampler(oracle.denoiser("eps"), prior(oracle.schedule, 10, 2), falling(20), noise_of(seeded()))
        assert (x - oracle.mean).abs().max() < 1e-9


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_final_is_one_denoising_step_without_noise(sampler: Sampler) -> None:
    denoiser, x = two_peaks(VariancePreserving()).denoiser("eps"), prior(VariancePreserving(), 5, 1)
    noisy = sampler(denoiser, x, falling(10, 0.1), noise_of(seeded()))
    clean = sampler(denoiser, x, falling(10, 0.1), noise_of(seeded()), final=True)
    torch.testing.assert_close(clean, denoiser.predict("x0", noisy, torch.tensor(0.1, dtype=torch.float64)), rtol=0, atol=0)
    assert (noisy - clean).abs().max() > 0.01


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_row_depends_on_its_own_noise_alone(sampler: Sampler) -> None:
    schedule = VariancePreserving()
    x, draws = prior(schedule, 6, 3), torch.randn(100, 6, 3, generator=seeded(), dtype=torch.float64)

    def run(rows: slice) -> torch.Tensor:
        left = iter(draws[:, rows])
        return sampler(two_peaks(schedule).denoiser("eps"), x[rows], falling(8), lambda _: next(left))

    torch.testing.assert_close(torch.cat([run(slice(0, 2)), run(slice(2, 6))]), run(slice(0, 6)), rtol=1e-12, atol=1e-12)


def test_numbers_stay_of_the_type_of_x() -> None:
    for schedule in SCHEDULES:
        for sampler in SAMPLERS:
            x = sampler(two_peaks(schedule).denoiser("eps"), prior(schedule, 5, 1).float(), falling(5), noise_of(seeded()))
            assert x.dtype == torch.float32
            assert x.isfinite().all()


def test_reverse_diffusion_of_neighbouring_levels_is_the_papers() -> None:
    """(2 - sqrt(1 - beta)) x + beta score + sqrt(beta) z."""
    betas = linear_betas()
    schedule = Discrete(betas)
    denoiser, x = two_peaks(schedule).denoiser("score"), prior(schedule, 50, 1)
    for level in (999, 500, 1):
        t, beta = torch.tensor((level + 1) / 1000, dtype=torch.float64), betas[level]
        z = torch.randn(x.shape, generator=seeded(), dtype=torch.float64)
        expected = (2 - (1 - beta).sqrt()) * x + beta * denoiser.predict("score", x, t) + beta.sqrt() * z
        times = torch.stack([t, torch.tensor(level / 1000, dtype=torch.float64)])
        torch.testing.assert_close(reverse_diffusion(denoiser, x, times, noise_of(seeded())), expected, rtol=1e-9, atol=1e-9)


def test_a_step_of_euler_maruyama_equals_diffusers() -> None:
    """Its step is always 1 / N long, though its N times between 1 and 1e-3 lie a little less apart: one step at a time is compared."""
    scheduler = ScoreSdeVpScheduler()
    scheduler.set_timesteps(50)
    generator = seeded(3)
    x, eps = (torch.randn(*IMAGES, generator=generator) for _ in range(2))
    denoiser = Denoiser(lambda x, t: eps, "eps", VariancePreserving())
    for t in (1.0, 0.6, 0.05):
        theirs, _ = scheduler.step_pred(eps, x, torch.tensor(t), generator=seeded())
        times = torch.tensor([t, t - 1 / 50], dtype=torch.float64)
        torch.testing.assert_close(euler_maruyama(denoiser, x, times, noise_of(seeded())), theirs, rtol=1e-5, atol=1e-5)


def test_a_step_of_reverse_diffusion_equals_diffusers() -> None:
    """Its levels are of times evenly spaced from 0 to 1, whatever the times it shows."""
    count, schedule = 40, VarianceExploding(sigma_max=20.0)
    scheduler = ScoreSdeVeScheduler(num_train_timesteps=count, sigma_max=20.0)
    scheduler.set_timesteps(count)
    scheduler.set_sigmas(count)
    score = 0.1 * torch.randn(*IMAGES, generator=seeded(4))
    denoiser, x = Denoiser(lambda x, t: score, "score", schedule), torch.randn(*IMAGES, generator=seeded(5))
    for place in (0, 10, count - 3):
        times = torch.tensor([count - 1 - place, count - 2 - place], dtype=torch.float64) / (count - 1)
        shown = float(times[0]) + 1e-4  # theirs rounds down to a level
        theirs = scheduler.step_pred(score, min(shown, 1.0), x, generator=seeded()).prev_sample
        torch.testing.assert_close(reverse_diffusion(denoiser, x, times, noise_of(seeded())), theirs, rtol=1e-4, atol=1e-4)


def test_a_corrector_step_equals_diffusers_where_norms_are_as_expected() -> None:
    """Theirs measures |z| / |score|, as a mean over the batch; where it is sigma, as with a score of -eps / sigma, the steps are equal."""
    schedule, t = VarianceExploding(sigma_max=20.0), torch.tensor(0.6, dtype=torch.float64)
    scheduler = ScoreSdeVeScheduler(snr=0.16)
    scheduler.set_timesteps(10)
    x, z, eps = (torch.randn(*IMAGES, generator=seeded(seed)) for seed in (0, 6, 7))
    score = -eps / eps.norm() * z.norm() / schedule.sigma(t).float()
    denoiser = Denoiser(lambda x, t: score, "score", schedule)
    times = torch.stack([t, t - 1e-12])  # a predictor's step of next to nothing
    ours = predictor_corrector(denoiser, x, times, noise_of(seeded(6)), snr=0.16)
    theirs = scheduler.step_correct(score, x, generator=seeded(6)).prev_sample
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
    assert (ours - x).norm() > 0.1


def test_the_correctors_alpha_is_that_of_one_step() -> None:
    """Its steps are of 2 (1 - beta) (r sigma)^2 with the beta of the coming interval: none of it is left where that loses all data."""
    schedule = VariancePreserving()
    x, zero = torch.zeros(1, 1000), Denoiser(lambda x, t: torch.zeros_like(x), "score", schedule)
    z = torch.randn(2, 1, 1000, generator=seeded())
    for t, s in ((0.5, 0.499), (0.9, 0.3)):
        times = torch.tensor([t, s], dtype=torch.float64)
        draws = iter([z[0], torch.zeros_like(x)])  # the predictor draws none
        ours = predictor_corrector(zero, x, times, lambda _, draws=draws: next(draws), snr=0.2)
        ratio = schedule.alpha(times[0]) / schedule.alpha(times[1])
        step = 2 * ratio.square() * (0.2 * schedule.sigma(times[0])).square()
        torch.testing.assert_close(ours, (2 - ratio).float() * (2 * step).sqrt().float() * z[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_is_refused(sampler: Sampler) -> None:
    x, noise = torch.zeros(2, 1), noise_of(seeded())
    with pytest.raises(UserError, match="starts at 1, where alpha is 0"):
        sampler(two_peaks(StraightLine()).denoiser("velocity"), x, falling(5), noise)
    for times in ([1.0, 0.4, 0.5], [0.0, 1.0], [0.5]):
        with pytest.raises(UserError, match=r"^times"):
            sampler(two_peaks(VariancePreserving()).denoiser("eps"), x, torch.tensor(times), noise)


def test_the_straight_line_has_an_sde_below_pure_noise() -> None:
    oracle = two_peaks(StraightLine())
    x = 0.01 * oracle.sample(20_000, seeded(2)) + 0.99 * torch.randn(20_000, 1, generator=seeded(1), dtype=torch.float64)
    times = torch.linspace(0.99, 0, 400, dtype=torch.float64)
    assert distance(euler_maruyama(oracle.denoiser("velocity"), x, times, noise_of(seeded()))) < 0.03


def test_options_of_the_corrector_that_are_refused() -> None:
    denoiser, x = two_peaks(VariancePreserving()).denoiser("eps"), torch.zeros(2, 1)
    for options in ({"snr": 0.0}, {"snr": float("nan")}, {"corrections": -1}):
        with pytest.raises(UserError, match=next(iter(options))):
            predictor_corrector(denoiser, x, falling(5), noise_of(seeded()), **options)
