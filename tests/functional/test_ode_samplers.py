"""Flows of exact models beside closed forms, SciPy's solver and diffusers; orders of convergence; what is refused."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from scipy import integrate, optimize, stats

from components.errors import UserError
from components.functional.noise_schedules import (
    Discrete,
    Schedule,
    StraightLine,
    VarianceExploding,
    VariancePreserving,
    cosine_betas,
    linear_betas,
)
from components.functional.ode_samplers import Method, dopri5, ode, solve
from components.functional.oracles import GaussianOracle, MixtureOracle
from components.functional.predictions import Denoiser, Prediction

METHODS: list[Method] = ["euler", "heun", "midpoint", "rk4"]


def two_peaks(schedule: Schedule) -> MixtureOracle:
    """N(+-1, 0.2^2)."""
    return MixtureOracle(torch.tensor([[-1.0], [1.0]]), torch.tensor([0.2, 0.2], dtype=torch.float64), torch.ones(2), schedule)


def two_peaks_law(x: np.ndarray) -> np.ndarray:
    return (stats.norm.cdf(x, -1, 0.2) + stats.norm.cdf(x, 1, 0.2)) / 2


def falling(steps: int, start: float = 1.0, end: float = 0.0) -> torch.Tensor:
    return torch.linspace(start, end, steps + 1, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def carried(schedule: Schedule, x: torch.Tensor, start: float, end: float) -> torch.Tensor:
    """The exact flow of the two peaks (B, 1): in one dimension it keeps every row's share of the law."""

    def law(t: float) -> tuple[np.ndarray, float]:
        at = torch.tensor(t, dtype=torch.float64)
        alpha = float(schedule.alpha(at))
        return alpha * np.array([-1.0, 1.0]), math.hypot(0.2 * alpha, float(schedule.sigma(at)))

    def place(share: float) -> float:
        means, std = law(end)
        return optimize.brentq(lambda v: stats.norm.cdf(v, means, std).mean() - share, -10, 10, xtol=1e-15, rtol=1e-14)

    means, std = law(start)
    shares = stats.norm.cdf(x.numpy(), means, std).mean(1)
    return torch.tensor([[place(share)] for share in shares], dtype=torch.float64)


@pytest.mark.parametrize("schedule", [StraightLine(), VariancePreserving()], ids=["line", "vp"])
@pytest.mark.parametrize(("method", "order", "steps"), [("euler", 1, 128), ("heun", 2, 64), ("midpoint", 2, 64), ("rk4", 4, 64)])
def test_halving_the_step_divides_the_error(schedule: Schedule, method: Method, order: int, steps: int) -> None:
    x = torch.linspace(-1.5, 1.5, 8, dtype=torch.float64).unsqueeze(1)
    exact = carried(schedule, x, 0.9, 0.2)
    errors = [(ode(two_peaks(schedule).denoiser("v"), x, falling(n, 0.9, 0.2), method=method) - exact).norm() for n in (steps, 2 * steps)]
    assert float(errors[0] / errors[1]) == pytest.approx(2**order, rel=0.1)


@pytest.mark.parametrize("schedule", [StraightLine(), VariancePreserving(), VarianceExploding(sigma_max=5.0)], ids=["line", "vp", "ve"])
def test_adaptive_steps_follow_the_exact_flow_and_scipy(schedule: Schedule) -> None:
    oracle, x, (start, end) = two_peaks(schedule), normal(20, 1), (1.0, 0.05)
    denoiser = oracle.denoiser("eps" if not isinstance(schedule, StraightLine) else "velocity")
    ours = dopri5(denoiser, x, start, end, rtol=1e-10, atol=1e-10)
    assert (ours - carried(schedule, x, start, end)).abs().max() < 1e-7

    def field(t: float, y: np.ndarray) -> np.ndarray:
        return denoiser.predict("velocity", torch.from_numpy(y).unsqueeze(1), torch.tensor(t, dtype=torch.float64)).squeeze(1).numpy()

    theirs = integrate.solve_ivp(field, (start, end), x[:, 0].numpy(), "RK45", rtol=1e-10, atol=1e-10)
    assert np.abs(ours[:, 0].numpy() - theirs.y[:, -1]).max() < 1e-7


def test_a_hard_row_is_as_exact_among_many_easy_ones() -> None:
    """The solver's own measure, the mean over a batch, would let a row's error grow with the square root of the batch."""
    denoiser = two_peaks(StraightLine()).denoiser("velocity")
    hard = torch.tensor([[1e-3]], dtype=torch.float64)  # between the peaks, where the flow parts
    easy = torch.full((4000, 1), 1.5, dtype=torch.float64)
    exact = carried(StraightLine(), hard, 1.0, 0.0)
    alone = (dopri5(denoiser, hard, rtol=1e-4, atol=1e-4) - exact).abs().item()
    among = (dopri5(denoiser, torch.cat([hard, easy]), rtol=1e-4, atol=1e-4)[:1] - exact).abs().item()
    assert among < 2 * alone + 1e-6


@pytest.mark.parametrize("kind", ["eps", "x0", "v", "velocity", "score"])
def test_a_gaussian_is_reached_exactly_whatever_is_predicted(kind: Prediction) -> None:
    """The data law by the flow of VP: N(0, 1) draws keep the mean and spread of the data, to 1%."""
    oracle = GaussianOracle(torch.tensor([0.7]), torch.tensor(0.5), VariancePreserving())
    data = ode(oracle.denoiser(kind), normal(50_000, 1), falling(60), method="heun")
    assert float(data.mean()) == pytest.approx(0.7, rel=0.01)
    assert float(data.std()) == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize(("steps", "method"), [(100, "heun"), (50, "rk4")])
def test_the_flow_samples_a_mixture(steps: int, method: Method) -> None:
    data = ode(two_peaks(VariancePreserving()).denoiser("eps"), normal(20_000, 1), falling(steps), method=method)
    assert stats.kstest(data[:, 0].numpy(), two_peaks_law).statistic < 0.02


def test_the_adaptive_flow_samples_a_mixture() -> None:
    for schedule, kind in ((VariancePreserving(), "eps"), (StraightLine(), "velocity"), (Discrete(linear_betas()), "eps")):
        data = dopri5(two_peaks(schedule).denoiser(kind), normal(20_000, 1))
        assert stats.kstest(data[:, 0].numpy(), two_peaks_law).statistic < 0.02


def test_the_straight_lines_field_is_that_of_the_closed_form() -> None:
    """N(m, s^2) from N(0, 1) in the time of rectified flow's paper, u = 1 - t, where the velocity is minus ours."""
    m, s, x = 0.625, 0.25, normal(50, 1)
    denoiser = GaussianOracle(torch.tensor([m]), torch.tensor(s), StraightLine()).denoiser("velocity")
    for u in (0.0, 0.3, 0.9):
        field = m + (u * s**2 - (1 - u)) / ((1 - u) ** 2 + u**2 * s**2) * (x - u * m)
        torch.testing.assert_close(-denoiser.predict("velocity", x, torch.tensor(1 - u, dtype=torch.float64)), field)
    assert (dopri5(denoiser, x, rtol=1e-9, atol=1e-9) - (m + s * x)).abs().max() < 1e-6


def test_a_straight_coupling_needs_one_step() -> None:
    """Data m + s z from noise z, so the path is straight: x = (1 - t) (m + s z) + t z gives z, and with it the velocity z - (m + s z)."""
    m, s, x = 0.6, 0.3, normal(50, 4)

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        z = (x - (1 - t) * m) / ((1 - t) * s + t)
        return z - (m + s * z)

    denoiser = Denoiser(velocity, "velocity", StraightLine())
    for method in METHODS:
        assert (ode(denoiser, x, falling(1), method=method) - (m + s * x)).abs().max() < 1e-6


@pytest.mark.parametrize("steps", [1, 7, 20])
def test_euler_equals_diffusers(steps: int) -> None:
    """Its noise level is our t, given sigmas from 1 to 1 / N; its output of the model is our velocity, the step being to a lower level."""
    denoiser = two_peaks(StraightLine()).denoiser("velocity")
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    x = theirs = normal(100, 1).float()
    for t in scheduler.timesteps:
        theirs = scheduler.step(denoiser.predict("velocity", theirs, t.double() / 1000), t, theirs).prev_sample
    assert (ode(denoiser, x, falling(steps), method="euler") - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("schedule", [StraightLine(), VariancePreserving()], ids=["line", "vp"])
def test_data_come_back_from_their_noise(schedule: Schedule) -> None:
    oracle, start = two_peaks(schedule), schedule.start
    data = oracle.sample(500, torch.Generator().manual_seed(0))
    denoiser = oracle.denoiser("velocity")
    noise = dopri5(denoiser, data, start, 1.0, rtol=1e-7, atol=1e-7)
    assert (dopri5(denoiser, noise, 1.0, start, rtol=1e-7, atol=1e-7) - data).square().mean().sqrt() < 1e-3
    rising = falling(200, 1.0, start).flip(0)
    back = ode(denoiser, ode(denoiser, data, rising, method="rk4"), rising.flip(0), method="rk4")
    assert (back - data).square().mean().sqrt() < 1e-3


@pytest.mark.parametrize(("method", "cost"), [("euler", 1), ("heun", 2), ("midpoint", 2), ("rk4", 4)])
def test_evaluations(method: Method, cost: int) -> None:
    line, vp = two_peaks(StraightLine()).denoiser("velocity"), two_peaks(VariancePreserving()).denoiser("eps")
    ode(line, normal(2, 1), falling(10), method=method)
    ode(vp, normal(2, 1), falling(10), method=method)
    assert (line.evaluations, vp.evaluations) == (10 * cost, 10 * cost + 1)


def test_a_schedule_with_a_start_ends_there_and_then_at_the_predicted_data() -> None:
    for schedule in (VariancePreserving(), Discrete(linear_betas()), VarianceExploding()):
        denoiser, x, start = two_peaks(schedule).denoiser("eps"), normal(5, 1), torch.tensor(schedule.start, dtype=torch.float64)
        flown = ode(denoiser, x, falling(10, 1.0, schedule.start))
        listed = torch.cat([falling(10, 1.0, schedule.start), torch.zeros(1, dtype=torch.float64)])
        torch.testing.assert_close(ode(denoiser, x, listed), denoiser.predict("x0", flown, start), rtol=0, atol=0)
        adaptive = dopri5(denoiser, x, 1.0, schedule.start)
        torch.testing.assert_close(dopri5(denoiser, x), denoiser.predict("x0", adaptive, start), rtol=0, atol=0)


@pytest.mark.parametrize("schedule", [VariancePreserving(), StraightLine(), Discrete(linear_betas(100))], ids=["vp", "line", "discrete"])
def test_the_adaptive_solver_asks_at_no_time_past_the_ends(schedule: Schedule) -> None:
    asked: list[float] = []
    exact = two_peaks(schedule).denoiser("velocity")

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert (t.dtype, x.dtype) == (torch.float64, torch.float32)
        asked.append(float(t))
        return exact.model(x, t)

    data = dopri5(Denoiser(model, "velocity", schedule), normal(10, 1).float(), rtol=1e-3, atol=1e-3)
    assert data.dtype == torch.float32
    assert data.isfinite().all()
    assert schedule.start <= min(asked) < schedule.start + 1e-9
    assert max(asked) == 1.0


def test_results_are_the_same_every_time_and_in_inference_mode() -> None:
    denoiser, x = two_peaks(VariancePreserving()).denoiser("eps"), normal(100, 1).float()
    state = torch.random.get_rng_state()
    with torch.inference_mode():
        assert torch.equal(ode(denoiser, x, falling(5)), ode(denoiser, x, falling(5)))
        assert torch.equal(dopri5(denoiser, x), dopri5(denoiser, x))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_linear_field_is_the_exponential_of_its_matrix() -> None:
    matrix, x = normal(3, 3, seed=1), normal(4, 3)
    (ours,) = solve(lambda t, state: (state[0] @ matrix.T,), (x,), torch.tensor([0.0, 1.0]).double(), rtol=1e-10, atol=1e-10)
    assert (ours - x @ torch.linalg.matrix_exp(matrix).T).abs().max() < 1e-6


def test_pure_noise_with_predicted_noise_is_refused_and_with_v_is_not() -> None:
    for kind in ("eps", "score"):
        with pytest.raises(UserError, match=f"alpha is 0, does not fit the prediction '{kind}'"):
            ode(two_peaks(StraightLine()).denoiser(kind), normal(2, 1), falling(4))
    for kind in ("v", "velocity"):
        assert ode(two_peaks(StraightLine()).denoiser(kind), normal(2, 1), falling(4)).isfinite().all()


def test_predicted_or_clipped_data_tell_no_velocity_at_0() -> None:
    line = two_peaks(StraightLine())
    for denoiser in (line.denoiser("x0"), line.denoiser("velocity", clip=(-1, 1))):
        for method in ("heun", "rk4"):
            with pytest.raises(UserError, match="where sigma is 0"):
                ode(denoiser, normal(2, 1), falling(4), method=method)
        with pytest.raises(UserError, match="where sigma is 0"):
            dopri5(denoiser, normal(2, 1))
        for method in ("euler", "midpoint"):
            assert ode(denoiser, normal(2, 1), falling(4), method=method).isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_at_the_end_of_cosine_levels_a_small_error_of_eps_grows_and_one_of_v_does_not(method: Method) -> None:
    """alpha(1) is 4.9e-5 there, by which an error of the noise is divided: why cosine presets predict v."""
    oracle, x = two_peaks(Discrete(cosine_betas())), normal(500, 1)
    exact = dopri5(oracle.denoiser("v"), x, rtol=1e-6, atol=1e-6)

    def away(kind: Prediction) -> float:
        """Root mean square distance from the exact flow, of a model whose every prediction is off by 0.02."""
        true = oracle.denoiser(kind).model
        off = Denoiser(lambda x, t: true(x, t) + 0.02, kind, oracle.schedule)
        return float((ode(off, x, falling(50), method=method) - exact).square().mean().sqrt())

    assert away("v") < 0.1
    assert away("eps") > 2 * away("v")


def test_what_is_refused() -> None:
    denoiser, x = two_peaks(VariancePreserving()).denoiser("eps"), normal(2, 1)
    with pytest.raises(UserError, match="did you mean 'midpoint'"):
        ode(denoiser, x, falling(4), method="mid_point")  # type: ignore[arg-type]
    for times in ([1.0, 0.4, 0.5, 0.0], [1.0, 0.5, 0.5, 0.0], [0.0, 0.5, 0.4, 1.0], [1.0], [1.5, 0.0]):
        with pytest.raises(UserError, match=r"^times"):
            ode(denoiser, x, torch.tensor(times, dtype=torch.float64))
    for shaped in (torch.tensor(1.0), falling(4).unsqueeze(1), torch.zeros(0)):
        with pytest.raises(UserError, match=r"^times: a list of two or more is expected"):
            ode(denoiser, x, shaped)
    for tolerances in ({"rtol": 0.0}, {"atol": -1.0}, {"rtol": float("nan")}):
        with pytest.raises(UserError, match=r"^rtol"):
            dopri5(denoiser, x, **tolerances)


def test_a_model_that_is_not_finite_ends_the_adaptive_solver() -> None:
    broken = Denoiser(lambda x, t: torch.full_like(x, torch.nan), "eps", VariancePreserving())
    with pytest.raises(UserError, match="no step was small enough"):
        dopri5(broken, normal(2, 1))


def test_steps_of_different_length_are_all_taken() -> None:
    """On the two ends of any list the flow of one Gaussian is nearly the same, whatever lies between."""
    oracle = GaussianOracle(torch.tensor([0.7]), torch.tensor(0.5), VariancePreserving())
    x, uneven = normal(20, 1), falling(60).square()
    assert all(t > s for t, s in pairwise(uneven.tolist()))
    end = torch.tensor(oracle.schedule.start)
    exact = oracle.denoiser("eps").predict("x0", oracle.flow(x, torch.tensor(1.0), end), end)
    torch.testing.assert_close(ode(oracle.denoiser("eps"), x, uneven, method="rk4"), exact, rtol=0, atol=2e-4)
