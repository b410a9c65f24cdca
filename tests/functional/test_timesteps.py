"""Lists of times: spacings against diffusers and their formulas, Karras's through its noise, and lists that do not fit."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from torch import Tensor

from components.errors import UserError
from components.functional.noise_schedules import Discrete, VarianceExploding, linear_betas
from components.functional.predictions import Denoiser
from components.functional.timesteps import (
    checked,
    karras,
    leading,
    linspace,
    path_of,
    quadratic,
    time_of_noise,
    times_of,
    times_of_levels,
    trailing,
    uniform,
)
from tests.functional.exact import SCHEDULES

CONTINUOUS = ["VP", "sub-VP", "VE", "straight line"]


def of_diffusers(spacing: str, steps: int) -> list[int]:
    scheduler = DDIMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    return scheduler.timesteps.tolist()


@pytest.mark.parametrize("steps", [2, 3, 7, 10, 50, 333, 999, 1000])
def test_levels_equal_diffusers(steps: int) -> None:
    assert leading(1000, steps).tolist() == of_diffusers("leading", steps)
    assert linspace(1000, steps).tolist() == of_diffusers("linspace", steps)
    if 1000 % steps == 0 or steps in (3, 7):
        assert trailing(1000, steps).tolist() == of_diffusers("trailing", steps)


def test_the_reference_may_go_below_the_first_level_and_we_do_not() -> None:
    """Its trailing list adds up a rounded stride, so that level -1 may follow the last, and a half may be rounded to the other side."""
    lists = {steps: of_diffusers("trailing", steps) for steps in range(1, 1001)}
    assert any(levels[-1] == -1 for levels in lists.values())
    for steps, levels in lists.items():
        assert len(levels) == steps + (levels[-1] == -1)
        assert (trailing(1000, steps) - torch.tensor(levels[:steps])).abs().max() <= 1


@pytest.mark.parametrize("spacing", [leading, trailing, linspace, quadratic])
def test_every_number_of_steps_makes_a_falling_list(spacing) -> None:
    for levels in (1, 2, 10, 97, 1000):
        for steps in range(1, levels + 1):
            chosen = spacing(levels, steps)
            assert chosen.dtype == torch.int64
            assert chosen.shape == (steps,)
            assert chosen.min() >= 0
            assert chosen.max() < levels
            assert (chosen.diff() < 0).all()
            if spacing is not leading:
                assert chosen[0] == levels - 1  # starts from pure noise, a single step too
        assert spacing(levels, levels).tolist() == list(range(levels))[::-1]


def test_quadratic_levels_grow_with_the_square() -> None:
    assert quadratic(1001, 11).tolist() == [1000, 810, 640, 490, 360, 250, 160, 90, 40, 10, 0]


@pytest.mark.parametrize("spacing", ["uniform", "quadratic", "karras"])
@pytest.mark.parametrize("name", CONTINUOUS)
@pytest.mark.parametrize("steps", [1, 2, 3, 20, 1000, 5000])
def test_continuous_lists_fall_from_noise_to_data(name: str, spacing: str, steps: int) -> None:
    schedule = SCHEDULES[name]
    if (name, spacing) == ("straight line", "karras"):
        with pytest.raises(UserError, match="karras"):
            times_of(schedule, "karras", steps)
        return
    times = checked(times_of(schedule, spacing, steps))  # type: ignore[arg-type]
    assert times.shape == (steps + 1,)
    assert times[0] == 1
    assert times[-1] == 0
    assert times[-2] >= schedule.start  # nothing asks a network below the times it was trained at


def test_uniform_strides_and_their_squares() -> None:
    line = SCHEDULES["straight line"]
    assert times_of(line, "uniform", 4).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert times_of(line, "quadratic", 4).tolist() == [1, 0.5625, 0.25, 0.0625, 0]
    strides = uniform(SCHEDULES["VP"], 100).diff()
    torch.testing.assert_close(strides, torch.full((99,), -0.999 / 100, dtype=torch.float64))


@pytest.mark.parametrize("name", ["VP", "sub-VP", "VE", "linear", "cosine"])
def test_karras_noise_is_that_of_the_paper(name: str) -> None:
    schedule, n, rho = SCHEDULES[name], 12, 7.0
    times = karras(schedule, n)
    noise = (schedule.sigma(times) / schedule.alpha(times)).tolist()
    largest, smallest = noise[0], noise[-1]
    expected = [(largest ** (1 / rho) + i / (n - 1) * (smallest ** (1 / rho) - largest ** (1 / rho))) ** rho for i in range(n)]
    assert noise == pytest.approx(expected, rel=1e-9)
    assert times[[0, -1]].tolist() == [1, schedule.start]


def test_karras_noise_of_the_levels_equals_diffusers() -> None:
    reference = EulerDiscreteScheduler(beta_schedule="linear", beta_end=0.02, beta_start=1e-4, use_karras_sigmas=True)
    reference.set_timesteps(18)
    schedule = Discrete(linear_betas())
    times = karras(schedule, 18)
    torch.testing.assert_close((schedule.sigma(times) / schedule.alpha(times)).float(), reference.sigmas[:-1], rtol=1e-4, atol=0)


def test_the_time_of_noise_by_bisection_equals_the_inverse_function() -> None:
    noise = torch.tensor([0.02, 0.5, 7.0, 49.0], dtype=torch.float64)
    torch.testing.assert_close(time_of_noise(VarianceExploding(), noise), (noise / 0.01).log() / math.log(5000), atol=1e-15, rtol=1e-14)
    torch.testing.assert_close(time_of_noise(SCHEDULES["straight line"], noise), noise / (1 + noise), atol=1e-15, rtol=1e-14)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "quadratic", "uniform", "karras"])
def test_more_steps_than_levels(spacing: str) -> None:
    with pytest.raises(UserError, match="steps: 1001 are more than the 1000 levels"):
        times_of(SCHEDULES["linear"], spacing, 1001)  # type: ignore[arg-type]
    assert len(times_of(SCHEDULES["linear"], spacing, 1000)) == 1001  # type: ignore[arg-type]


@pytest.mark.parametrize("spacing", ["leading", "quadratic", "uniform", "karras"])
@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps(spacing: str, steps: int) -> None:
    with pytest.raises(UserError, match=f"steps: {steps}; at least 1"):
        times_of(SCHEDULES["cosine"], spacing, steps)  # type: ignore[arg-type]


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_levels_of_a_schedule_without_levels(spacing: str) -> None:
    with pytest.raises(
        UserError, match=f"'{spacing}' chooses among levels, and VariancePreserving has none; choose one of uniform, quadratic, karras"
    ):
        times_of(SCHEDULES["VP"], spacing, 10)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("times", "complaint"),
    [
        ([0.5, 0.5, 0.0], "0.5 is followed by 0.5; the list must fall strictly, from noise to data; sort them downwards"),
        ([0.2, 0.6, 1.0], "0.2 is followed by 0.6; the list must fall strictly"),
        ([1.0], "two or more"),
        ([[1.0, 0.0]], "two or more"),
        ([1.5, 0.0], "every time lies in"),
        ([1.0, -0.1], "every time lies in"),
        ([float("nan"), 0.0], "every time lies in"),
    ],
)
def test_lists_that_are_none(times: list[float], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        checked(torch.tensor(times))


def test_levels_that_do_not_fall_or_are_none() -> None:
    schedule = Discrete(linear_betas(100))
    assert times_of_levels(schedule, torch.tensor([99, 49])).tolist() == [1.0, 0.5, 0.0]
    with pytest.raises(UserError, match="fall strictly"):
        times_of_levels(schedule, torch.tensor([0, 50, 99]))
    with pytest.raises(UserError, match="every time lies in"):
        times_of_levels(schedule, torch.tensor([100, 50]))


@pytest.mark.parametrize("kind", ["eps", "score"])
def test_noise_alone_says_nothing_of_data_where_alpha_is_zero(kind) -> None:
    def path(schedule, start: float):
        return path_of(Denoiser(lambda x, t: x, kind, schedule), torch.tensor([start, 0.5, 0.0]))

    with pytest.raises(UserError, match=f"does not fit the prediction '{kind}'"):
        path(SCHEDULES["straight line"], 1.0)
    path(SCHEDULES["straight line"], 0.99)
    path(SCHEDULES["cosine"], 1.0)


def test_time_0_is_clean_data_for_every_schedule() -> None:
    for schedule in SCHEDULES.values():
        times: Tensor = torch.tensor([0.5, 0.25, 0.0])
        path = path_of(Denoiser(lambda x, t: x, "x0", schedule), times)
        assert (path.alphas[-1], path.sigmas[-1], path.steps) == (1, 0, 2)
        assert path.sigmas[1] == schedule.sigma(times[1]).item()
