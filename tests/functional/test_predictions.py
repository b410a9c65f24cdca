"""Checks D6 and S4 of predictions: they become one another and come back; a denoiser clips data and counts what it asks."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
import torch
from torch import Tensor

from components.functional.predictions import Coefficients, Denoiser, Prediction, convert, noise_of, noised, target, to_x0_and_eps
from tests.functional.exact import SCHEDULES, DeviceCopies, exact_denoiser, normal, two_bumps

KINDS: tuple[Prediction, ...] = get_args(Prediction)
PAIRS = list(itertools.permutations(KINDS, 2))


def drawn(name: str, dtype: torch.dtype, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Coefficients]:
    x0, eps = normal(len(t), 3, 4, 4).to(dtype), normal(len(t), 3, 4, 4, seed=1).to(dtype)
    at = Coefficients.at(SCHEDULES[name], t, x0)
    return x0, eps, noised(x0, eps, at), at


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("have", "want"), PAIRS)
def test_d6_s4_conversions_are_true_and_come_back(name: str, have: Prediction, want: Prediction) -> None:
    x0, eps, x, at = drawn(name, torch.float64, torch.linspace(0.02, 0.98, 9, dtype=torch.float64))
    given = target(have, x0, eps, at)
    converted = convert(given, have, want, x, at)
    torch.testing.assert_close(converted, target(want, x0, eps, at), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(convert(converted, want, have, x, at), given, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("have", "want"), PAIRS)
def test_d6_s4_round_trip_in_single_precision(name: str, have: Prediction, want: Prediction) -> None:
    """1e-5 where data and noise are both there; towards the ends dividing by the smaller one magnifies rounding for every library."""
    t = torch.linspace(0.2, 0.6, 9, dtype=torch.float64)
    x0, eps, x, at = drawn(name, torch.float32, t)
    given = target(have, x0, eps, at)
    back = convert(convert(given, have, want, x, at), want, have, x, at)
    largest = 1e-5 * max(1.0, float(x.abs().max())) * float((1 / at.sigma).max()) if name == "VE" else 1e-5
    torch.testing.assert_close(back, given, atol=largest, rtol=1e-5)


def test_v_is_that_of_progressive_distillation() -> None:
    x0, eps, x, at = drawn("cosine", torch.float64, torch.tensor([0.3], dtype=torch.float64))
    angle = torch.atan2(at.sigma, at.alpha)
    torch.testing.assert_close(target("v", x0, eps, at), angle.cos() * eps - angle.sin() * x0)
    torch.testing.assert_close(
        to_x0_and_eps("v", target("v", x0, eps, at), x, at)[0], angle.cos() * x - angle.sin() * target("v", x0, eps, at)
    )


def test_the_velocity_is_the_derivative_of_the_noised_data() -> None:
    h = 1e-6
    for name, schedule in SCHEDULES.items():
        t = torch.tensor([0.3004, 0.7004], dtype=torch.float64)
        x0, eps, x, at = drawn(name, torch.float64, t)
        ahead, behind = (noised(x0, eps, Coefficients.at(schedule, t + step, x)) for step in (h, -h))
        torch.testing.assert_close(target("velocity", x0, eps, at), (ahead - behind) / (2 * h), atol=1e-6, rtol=1e-6)


def test_the_straight_lines_velocity_needs_no_division_at_either_end() -> None:
    x0, eps, x, at = drawn("straight line", torch.float64, torch.tensor([0.0, 1.0], dtype=torch.float64))
    data, noise = to_x0_and_eps("velocity", eps - x0, x, at)
    torch.testing.assert_close(data, x0)
    torch.testing.assert_close(noise, eps)


def test_the_score_is_the_gradient_of_the_log_density() -> None:
    schedule = SCHEDULES["VP"]
    t = torch.tensor(0.3, dtype=torch.float64)
    alpha, variance = schedule.alpha(t), 0.04 * schedule.alpha(t).square() + schedule.sigma(t).square()
    x = normal(50, 1).requires_grad_()
    density = sum((-(x - sign * alpha).square() / (2 * variance)).exp() for sign in (1, -1))
    (gradient,) = torch.autograd.grad(density.log().sum(), x)
    torch.testing.assert_close(exact_denoiser(schedule, two_bumps).predict("score", x.detach(), t), gradient)


@pytest.mark.parametrize("kind", KINDS)
def test_clipped_data_and_the_noise_that_fits_them(kind: Prediction) -> None:
    x0, eps, x, at = drawn("linear", torch.float64, torch.full((4,), 0.5, dtype=torch.float64))
    denoiser = Denoiser(lambda x, t: target(kind, x0, eps, at), kind, SCHEDULES["linear"], clip=(-1.0, 1.0))
    data, noise = denoiser.x0_and_eps(x, torch.full((4,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(data, x0.clamp(-1, 1))
    torch.testing.assert_close(at.alpha * data + at.sigma * noise, x)
    asked = denoiser.predict("velocity", x, torch.full((4,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(asked, target("velocity", data, noise, at))
    assert denoiser.evaluations == 2


@pytest.mark.parametrize("kind", KINDS)
def test_one_time_or_one_for_each_row(kind: Prediction) -> None:
    denoiser = exact_denoiser(SCHEDULES["VP"], two_bumps, kind)
    x, t = normal(3, 2, 5), torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    together = denoiser.predict("eps", x, t)
    apart = torch.cat([denoiser.predict("eps", row.unsqueeze(0), time) for row, time in zip(x, t, strict=True)])
    torch.testing.assert_close(together, apart)


def test_what_a_model_says_is_passed_on_untouched() -> None:
    """No division that could fail where the prediction is the one asked for."""
    denoiser = Denoiser(lambda x, t: x * 2, "eps", SCHEDULES["straight line"])
    x = normal(2, 3)
    assert torch.equal(denoiser.predict("eps", x, torch.ones((), dtype=torch.float64)), x * 2)


def test_results_keep_the_type_of_what_is_denoised() -> None:
    x, t = normal(2, 3).float(), torch.tensor(0.5, dtype=torch.float64)
    denoiser = Denoiser(lambda x, t: x.bfloat16(), "v", SCHEDULES["cosine"])
    assert {value.dtype for value in (*denoiser.x0_and_eps(x, t), denoiser.predict("score", x, t))} == {torch.float32}


@pytest.mark.parametrize("name", SCHEDULES)
def test_one_time_for_all_rows_is_never_copied_to_their_device(name: str) -> None:
    x, t = torch.zeros(2, 3, device="meta"), torch.tensor(0.5, dtype=torch.float64)
    with DeviceCopies() as copies:
        at = Coefficients.at(SCHEDULES[name], t, x)
        for kind in KINDS:
            assert target(kind, x, x, at).device == x.device
            assert all(value.device == x.device for value in to_x0_and_eps(kind, x, x, at))
    assert copies.count == 0
    assert (at.alpha.device.type, at.alpha.dtype) == ("cpu", torch.float32)
    assert Coefficients.at(SCHEDULES[name], t.expand(2), x).alpha.device == x.device


def test_noise_comes_from_its_generator_alone() -> None:
    draw, again = (noise_of(torch.Generator().manual_seed(3)) for _ in range(2))
    like = torch.zeros(2, 3)
    first = draw(like)
    torch.rand(7)
    assert torch.equal(first, again(like))
    assert not torch.equal(first, draw(like))
