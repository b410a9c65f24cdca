"""Exact predictions beside derivatives of the density, integrals over noise, and each other; the SDEs' moments beside their equations."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from components.functional.noise_schedules import (
    Discrete,
    Schedule,
    StraightLine,
    SubVariancePreserving,
    VarianceExploding,
    VariancePreserving,
    linear_betas,
)
from components.functional.oracles import GaussianOracle, MixtureOracle, Oracle
from components.functional.predictions import Coefficients, Denoiser, Prediction, convert, target

SCHEDULES = [
    Discrete(linear_betas()),
    VariancePreserving(),
    SubVariancePreserving(),
    VarianceExploding(sigma_max=10.0),
    StraightLine(),
]
KINDS: list[Prediction] = ["eps", "x0", "v", "velocity", "score"]
NAMES = [type(schedule).__name__ for schedule in SCHEDULES]
TIMES = torch.tensor([0.02, 0.1, 0.37, 0.8, 0.97], dtype=torch.float64)


def a_mixture(schedule: Schedule) -> MixtureOracle:
    """Three components of a 2 x 3 row."""
    centres = torch.linspace(-1, 1, 18).reshape(3, 2, 3).sin()
    return MixtureOracle(centres, torch.tensor([0.2, 0.5, 0.3]), torch.tensor([1.0, 2.0, 1.0]), schedule)


def a_gaussian(schedule: Schedule) -> GaussianOracle:
    return GaussianOracle(torch.tensor([[0.3, -0.2, 0.5], [0.1, 0.0, -0.9]]), torch.tensor(0.4), schedule)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=NAMES)
@pytest.mark.parametrize("make", [a_gaussian, a_mixture])
def test_score_is_the_gradient_of_the_log_density(make: Callable[[Schedule], Oracle], schedule: Schedule, x: torch.Tensor) -> None:
    oracle = make(schedule)
    place = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(oracle.log_density(place, TIMES).sum(), place)
    torch.testing.assert_close(oracle.denoiser("score").predict("score", x, TIMES), gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=NAMES)
@pytest.mark.parametrize("make", [a_gaussian, a_mixture])
def test_predictions_of_every_kind_say_the_same(make: Callable[[Schedule], Oracle], schedule: Schedule, x: torch.Tensor) -> None:
    oracle = make(schedule)
    for want in KINDS:
        expected = oracle.denoiser(want).predict(want, x, TIMES)
        for have in KINDS:
            torch.testing.assert_close(oracle.denoiser(have).predict(want, x, TIMES), expected, rtol=1e-8, atol=1e-8)


def test_predicted_data_are_the_mean_over_all_data_that_fit() -> None:
    oracle = MixtureOracle(torch.tensor([[-1.0], [0.5]]), torch.tensor([0.2, 0.4]), torch.tensor([0.3, 0.7]), VariancePreserving())
    alpha, sigma = (float(f(torch.tensor(0.3))) for f in (oracle.schedule.alpha, oracle.schedule.sigma))

    def moment(power: int) -> float:
        def integrand(x0: float) -> float:
            law = 0.3 * stats.norm.pdf(x0, -1, 0.2) + 0.7 * stats.norm.pdf(x0, 0.5, 0.4)
            return x0**power * law * stats.norm.pdf(0.25, alpha * x0, sigma)

        return integrate.quad(integrand, -4, 4, epsabs=1e-12, points=(-1, 0.5))[0]

    predicted = oracle.denoiser("x0").predict("x0", torch.tensor([[0.25]]), torch.tensor(0.3))
    assert float(predicted) == pytest.approx(moment(1) / moment(0), abs=1e-7)
    assert float(oracle.log_density(torch.tensor([[0.25]]), torch.tensor(0.3))) == pytest.approx(math.log(moment(0)), abs=1e-7)


def test_one_time_is_that_time_for_every_row(x: torch.Tensor) -> None:
    for oracle in (a_gaussian(StraightLine()), a_mixture(StraightLine())):
        denoiser = oracle.denoiser("velocity")
        torch.testing.assert_close(
            denoiser.predict("velocity", x, torch.tensor(0.3)), denoiser.predict("velocity", x, torch.full((5,), 0.3)), rtol=1e-12, atol=0
        )


def test_a_mixture_of_one_is_the_gaussian(x: torch.Tensor) -> None:
    gaussian = a_gaussian(VariancePreserving())
    mixture = MixtureOracle(gaussian.mean[None], torch.tensor([0.4]), torch.ones(1), VariancePreserving())
    torch.testing.assert_close(mixture.log_density(x, TIMES), gaussian.log_density(x, TIMES), rtol=1e-12, atol=0)
    for kind in KINDS:
        torch.testing.assert_close(
            mixture.denoiser(kind).predict(kind, x, TIMES), gaussian.denoiser(kind).predict(kind, x, TIMES), rtol=1e-10, atol=1e-10
        )


def test_samples_follow_the_law() -> None:
    generator = torch.Generator().manual_seed(0)
    oracle = MixtureOracle(torch.tensor([[-1.0], [2.0]]), torch.tensor([0.2, 0.5]), torch.tensor([1.0, 3.0]), StraightLine())
    drawn = oracle.sample(20_000, generator)[:, 0].numpy()
    law = stats.kstest(drawn, lambda v: 0.25 * stats.norm.cdf(v, -1, 0.2) + 0.75 * stats.norm.cdf(v, 2, 0.5))
    assert law.statistic < 0.012
    gaussian = GaussianOracle(torch.tensor([3.0, -1.0]), torch.tensor([0.5, 2.0]), StraightLine()).sample(20_000, generator)
    assert gaussian.mean(0).tolist() == pytest.approx([3.0, -1.0], abs=0.05)
    assert gaussian.std(0).tolist() == pytest.approx([0.5, 2.0], rel=0.02)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=NAMES)
def test_weighted_score_matching_is_the_loss_on_noise(schedule: Schedule, x: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(1)
    eps, guess = (torch.randn(x.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    at = Coefficients.at(schedule, TIMES, x)
    noisy = at.alpha * x + at.sigma * eps
    score = convert(guess, "eps", "score", noisy, at)
    weighted = (at.sigma * (score - target("score", x, eps, at))).square()
    torch.testing.assert_close(weighted, (guess - eps).square(), rtol=1e-6, atol=1e-6)


def test_evaluations_and_clipping_are_the_denoisers(x: torch.Tensor) -> None:
    denoiser: Denoiser = a_mixture(VariancePreserving()).denoiser("v", clip=(-0.1, 0.1))
    x0, eps = denoiser.x0_and_eps(x, TIMES)
    at = Coefficients.at(denoiser.schedule, TIMES, x)
    assert denoiser.evaluations == 1
    assert x0.abs().max() == pytest.approx(0.1)
    torch.testing.assert_close(at.alpha * x0 + at.sigma * eps, x)


# The SDEs of Song et al. 2021, section 3.4 and appendix B, as the paper writes them: drift factor f(t), g(t)^2, and the variance at 0.
def _beta(t: float) -> float:
    return 0.1 + 19.9 * t


def _total(t: float) -> float:
    return 0.1 * t + 19.9 * t * t / 2


SDES: list[tuple[Schedule, Callable[[float], float], Callable[[float], float], float]] = [
    (VariancePreserving(), lambda t: -_beta(t) / 2, _beta, 0.0),
    (SubVariancePreserving(), lambda t: -_beta(t) / 2, lambda t: _beta(t) * -math.expm1(-2 * _total(t)), 0.0),
    (VarianceExploding(), lambda t: 0.0, lambda t: (0.01 * 5000**t) ** 2 * 2 * math.log(5000), 0.01**2),
]


@pytest.mark.parametrize(("schedule", "drift", "diffusion_squared", "variance"), SDES, ids=NAMES[1:4])
def test_mean_and_variance_solve_the_moment_equations(
    schedule: Schedule, drift: Callable[[float], float], diffusion_squared: Callable[[float], float], variance: float
) -> None:
    def rates(t: float, moments: np.ndarray) -> list[float]:
        return [drift(t) * moments[0], 2 * drift(t) * moments[1] + diffusion_squared(t)]

    places = np.linspace(0, 1, 21)
    solved = integrate.solve_ivp(rates, (0, 1), [1.0, variance], "DOP853", places, rtol=1e-12, atol=1e-14)
    t = torch.tensor(places)
    np.testing.assert_allclose(schedule.alpha(t).numpy(), solved.y[0], rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(schedule.sigma(t).square().numpy(), solved.y[1], rtol=1e-8, atol=1e-10)
    inner = t[1:]
    np.testing.assert_allclose(schedule.drift(inner).numpy(), [drift(v) for v in places[1:]], rtol=1e-9)
    np.testing.assert_allclose(schedule.diffusion_squared(inner).numpy(), [diffusion_squared(v) for v in places[1:]], rtol=1e-8)
