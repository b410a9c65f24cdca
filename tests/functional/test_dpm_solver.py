"""DPM-Solver++ 2M against diffusers on equal lists of levels, its second order, and schedules with infinite ends."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from scipy.stats import kstest, norm
from torch import Tensor

from components.errors import UserError
from components.functional.ddim import ddim
from components.functional.dpm_solver import dpm_solver_pp_2m
from components.functional.noise_schedules import Discrete, cosine_betas, linear_betas
from components.functional.predictions import Denoiser
from components.functional.timesteps import times_of, times_of_levels
from tests.functional.exact import SCHEDULES, exact_denoiser, gaussian, normal, one_point, two_bumps

LINEAR = Discrete(linear_betas())
NAMES = {"linear": LINEAR, "squaredcos_cap_v2": Discrete(cosine_betas())}


def reference_loop(denoiser: Denoiser, start: Tensor, levels: Tensor, betas: str, final: str) -> Tensor:
    """The loop of diffusers along `levels`, which are given: its own leading and linspace lists take S + 1 strides and drop the last."""
    kind = {"x0": "sample", "eps": "epsilon", "v": "v_prediction"}[denoiser.prediction]
    scheduler = DPMSolverMultistepScheduler(
        beta_schedule=betas,
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type=final,
        prediction_type=kind,
    )
    scheduler.set_timesteps(timesteps=levels.tolist())
    x, schedule = start, denoiser.schedule
    assert isinstance(schedule, Discrete)
    for level in scheduler.timesteps:
        x = scheduler.step(denoiser.model(x, schedule.time_of(level)), level, x).prev_sample
    return x


@pytest.mark.parametrize("betas", NAMES)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 2, 5, 14, 15, 20, 50])
def test_the_whole_loop_equals_diffusers(steps: int, spacing, betas: str) -> None:
    """Its float32 has no digits left for data computed from noise where alpha is 5e-5, at the last level of the cosine: x0 is predicted."""
    schedule = NAMES[betas]
    times = times_of(schedule, spacing, steps)
    denoiser, start = exact_denoiser(schedule, gaussian(0.3, 0.5), "x0"), normal(64, 3)
    expected = reference_loop(denoiser, start, schedule.level_of(times[:-1]).round().long(), betas, "zero")
    torch.testing.assert_close(dpm_solver_pp_2m(denoiser, start, times), expected, rtol=5e-5, atol=5e-5)


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_other_predictions_equal_diffusers(kind) -> None:
    times = times_of(LINEAR, "trailing", 20)
    denoiser, start = exact_denoiser(LINEAR, two_bumps, kind), normal(64, 3)
    expected = reference_loop(denoiser, start, LINEAR.level_of(times[:-1]).round().long(), "linear", "zero")
    torch.testing.assert_close(dpm_solver_pp_2m(denoiser, start, times), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [5, 14, 15, 16, 30])
def test_a_list_that_ends_at_the_first_level_equals_the_references_sigma_min(steps: int) -> None:
    """With fewer than 15 steps the last one is of first order, as the paper has it; with more it is of second order."""
    times = torch.cat([times_of(LINEAR, "trailing", steps)[:-1], LINEAR.time_of(torch.tensor([0]))])
    denoiser, start = exact_denoiser(LINEAR, two_bumps), normal(64, 3)
    levels = LINEAR.level_of(times[:-1]).round().long()
    expected = reference_loop(denoiser, start, levels, "linear", "sigma_min")
    torch.testing.assert_close(dpm_solver_pp_2m(denoiser, start, times), expected, rtol=1e-4, atol=1e-4)


def flow_error(name: str, steps: int, solver=dpm_solver_pp_2m) -> float:
    """Distance to the probability flow of N(0.3, 0.5^2), which keeps (x - mean) / std, between times 0.9 and 0.1."""
    schedule = SCHEDULES[name]
    times = torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64)
    mean, std = 0.3 * schedule.alpha(times), (0.25 * schedule.alpha(times).square() + schedule.sigma(times).square()).sqrt()
    z = torch.linspace(-2, 2, 9, dtype=torch.float64).unsqueeze(1)
    got = solver(exact_denoiser(schedule, gaussian(0.3, 0.5), "velocity"), mean[0] + std[0] * z, times)
    return (got - mean[-1] - std[-1] * z).abs().max().item()


@pytest.mark.parametrize("name", ["VP", "sub-VP", "VE", "straight line"])
def test_the_error_is_of_second_order(name: str) -> None:
    coarse, fine = flow_error(name, 400), flow_error(name, 800)  # of VP the leading terms of the error change sign below 100
    assert math.log2(coarse / fine) == pytest.approx(2, abs=0.15)
    assert fine < flow_error(name, 800, ddim) / 100


def test_on_uneven_strides_the_error_is_of_second_order_too() -> None:
    """The extrapolation weighs the last stride against this one; with equal weights the order would fall to one."""
    schedule, shares = SCHEDULES["VP"], [torch.linspace(0, 1, 2 * n + 1, dtype=torch.float64) for n in (250, 500)]
    errors = []
    for share in shares:
        bent = share + 0.2 * (torch.arange(len(share)) % 2) / len(share)  # strides of 1.2 and 0.8 in turn
        times = 0.9 - 0.8 * bent / bent[-1]
        mean, std = 0.3 * schedule.alpha(times), (0.25 * schedule.alpha(times).square() + schedule.sigma(times).square()).sqrt()
        got = dpm_solver_pp_2m(exact_denoiser(schedule, gaussian(0.3, 0.5)), (mean[0] + std[0]).view(1, 1), times)
        errors.append(abs(got.item() - (mean[-1] + std[-1]).item()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_data_of_one_point_are_hit_exactly(name: str, steps: int) -> None:
    schedule = SCHEDULES[name]
    denoiser = exact_denoiser(schedule, one_point(-0.7), "velocity")
    got = dpm_solver_pp_2m(denoiser, normal(9, 2), times_of(schedule, "quadratic", steps))
    torch.testing.assert_close(got, torch.full((9, 2), -0.7, dtype=torch.float64))
    assert denoiser.evaluations == steps


@pytest.mark.parametrize("kind", ["velocity", "v", "x0"])
def test_the_straight_line_from_pure_noise(kind) -> None:
    """log(alpha / sigma) is infinite at both ends; the law of the mixture comes out with 40 steps."""
    schedule = SCHEDULES["straight line"]
    got = dpm_solver_pp_2m(exact_denoiser(schedule, two_bumps, kind), normal(20_000, 1), times_of(schedule, "uniform", 40))

    def cdf(x):
        return (norm.cdf(x, 1, 0.2) + norm.cdf(x, -1, 0.2)) / 2

    assert kstest(got.flatten().numpy(), cdf).statistic < 0.03


def test_single_precision_stays_single_and_close() -> None:
    denoiser, start, times = exact_denoiser(LINEAR, gaussian(0.3, 0.5)), normal(64, 3), times_of(LINEAR, "trailing", 20)
    got = dpm_solver_pp_2m(denoiser, start.float(), times)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), dpm_solver_pp_2m(denoiser, start, times), rtol=1e-4, atol=1e-4)


def test_a_list_that_does_not_fall() -> None:
    with pytest.raises(UserError, match="must fall strictly"):
        dpm_solver_pp_2m(exact_denoiser(LINEAR, two_bumps), normal(2, 1), times_of_levels(LINEAR, torch.tensor([9, 5])).flip(0))
