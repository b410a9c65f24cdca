"""Lists of times along which samplers walk from noise to data.

A list falls strictly and has one time more than there are steps; time 0, its usual end, is clean data. `times_of` makes one by the name of
its spacing: `leading`, `trailing`, `linspace` and `quadratic` choose among the levels of a discrete schedule (Song et al. 2021, arXiv
2010.02502, appendix D.2; Lin et al. 2024, arXiv 2305.08891, table 2), `uniform`, `quadratic` and `karras` divide time itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from components.errors import UserError
from components.functional.noise_schedules import Discrete, Schedule
from components.functional.predictions import Denoiser

Spacing = Literal["leading", "trailing", "linspace", "quadratic", "uniform", "karras"]
KARRAS_EXPONENT = 7.0  # rho of Karras et al. 2022, table 1
BISECTIONS = 60  # halvings of [0, 1]: below the spacing of float64


def times_of(schedule: Schedule, spacing: Spacing, steps: int) -> Tensor:
    """Times (steps + 1,) float64 that fall to 0 in `steps` steps. A discrete schedule's `quadratic` chooses among its levels.

    Raises UserError for a spacing of levels where the schedule has none, for more steps than levels with any spacing, since a network knows
    nothing between its levels, and for `karras` where alpha is 0 at time 1.
    """
    _check_steps(steps, schedule.levels if isinstance(schedule, Discrete) else None)
    if isinstance(schedule, Discrete) and spacing in LEVEL_SPACINGS:
        return times_of_levels(schedule, LEVEL_SPACINGS[spacing](schedule.levels, steps))
    if spacing not in TIME_SPACINGS:
        known = ", ".join(TIME_SPACINGS)
        raise UserError(f"spacing: {spacing!r} chooses among levels, and {type(schedule).__name__} has none; choose one of {known}")
    return torch.cat([TIME_SPACINGS[spacing](schedule, steps), torch.zeros(1, dtype=torch.float64)])


def times_of_levels(schedule: Discrete, levels: Tensor) -> Tensor:
    """The times (n + 1,) of falling levels (n,), counted from 0, with clean data at the end."""
    return checked(schedule.time_of(torch.cat([levels, levels.new_full((1,), -1)])))


def leading(levels: int, steps: int) -> Tensor:
    """0, k, 2k, ... with k = levels // steps, falling: (steps,) int64.

    With fewer steps than levels the last level, pure noise, is left out; where `steps` is no divisor, many may be.
    """
    _check_steps(steps, levels)
    return torch.arange(steps).flip(0) * (levels // steps)


def trailing(levels: int, steps: int) -> Tensor:
    """The last level and on in strides of levels / steps, rounded: (steps,) int64 falling."""
    _check_steps(steps, levels)
    strides = torch.arange(steps, dtype=torch.float64) * levels / steps
    return (levels - strides).round().long() - 1


def linspace(levels: int, steps: int) -> Tensor:
    """From the last level to level 0, as even as rounding lets it: (steps,) int64 falling. One step is the last level."""
    _check_steps(steps, levels)
    return torch.linspace(levels - 1, 0, steps, dtype=torch.float64).round().long()


def quadratic(levels: int, steps: int) -> Tensor:
    """Levels c i^2 from the last level to level 0, denser near the data; where they would meet, one by one: (steps,) int64 falling."""
    _check_steps(steps, levels)
    if steps == 1:
        return torch.tensor([levels - 1])
    places = torch.arange(steps)
    squares = (places.double() / (steps - 1)).square() * (levels - 1)
    return torch.maximum(squares.round().long(), places).flip(0)


def uniform(schedule: Schedule, steps: int) -> Tensor:
    """From time 1 in `steps` equal strides, of which the last would reach the schedule's start: (steps,) float64, all above that start."""
    return schedule.start + (1 - schedule.start) * _shares(steps)


def quadratic_times(schedule: Schedule, steps: int) -> Tensor:
    """As `uniform`, in the root of time: denser near the data. (steps,) float64"""
    return schedule.start + (1 - schedule.start) * _shares(steps).square()


def karras(schedule: Schedule, steps: int, exponent: float = KARRAS_EXPONENT) -> Tensor:
    """Times whose noise sigma / alpha is spaced by eq. 5 of Karras et al. 2022, arXiv 2206.00364, from 1 to the start: (steps,) float64."""
    _check_steps(steps)
    ends = torch.tensor([1.0, schedule.start], dtype=torch.float64)
    largest, smallest = (schedule.sigma(ends) / schedule.alpha(ends)).tolist()
    if largest == float("inf"):
        raise UserError("spacing: 'karras' divides sigma / alpha, which is infinite at time 1 here; choose uniform or quadratic")
    roots = torch.linspace(largest ** (1 / exponent), smallest ** (1 / exponent), steps, dtype=torch.float64)
    inner = time_of_noise(schedule, roots[1:-1] ** exponent)
    return torch.cat([ends[:1], inner, ends[1:]])[:steps]  # the ends are met exactly


def time_of_noise(schedule: Schedule, ratio: Tensor) -> Tensor:
    """The times at which sigma / alpha is `ratio`, by bisection, as the ratio grows with time: float64, of the same shape."""
    low, high = torch.zeros_like(ratio, dtype=torch.float64), torch.ones_like(ratio, dtype=torch.float64)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        below = schedule.sigma(middle) < ratio * schedule.alpha(middle)
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return high


LEVEL_SPACINGS: dict[str, Callable[[int, int], Tensor]] = {
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
    "quadratic": quadratic,
}
TIME_SPACINGS: dict[str, Callable[[Schedule, int], Tensor]] = {"uniform": uniform, "quadratic": quadratic_times, "karras": karras}


def checked(times: Tensor) -> Tensor:
    """`times` (n + 1,) as float64 on the CPU. Raises UserError unless they are two or more and fall strictly within [0, 1]."""
    times = times.detach().double().cpu()
    if times.dim() != 1 or len(times) < 2:
        raise UserError(f"times: a list of two or more is expected, not a tensor of shape {tuple(times.shape)}")
    if not ((times >= 0) & (times <= 1)).all():
        raise UserError(f"times: from {times.min():g} to {times.max():g}; every time lies in [0, 1], 0 is data and 1 is noise")
    rises = (times.diff() >= 0).nonzero()
    if len(rises):
        place = int(rises[0])
        raise UserError(
            f"times: {times[place]:g} is followed by {times[place + 1]:g}; the list must fall strictly, from noise to data; "
            "sort them downwards, each once"
        )
    return times


@dataclass(frozen=True)
class Path:
    """Checked times (n + 1,) and the schedule there as plain numbers. Time 0 is clean data: sigma is 0 there for every schedule."""

    times: Tensor
    alphas: list[float]
    sigmas: list[float]

    @property
    def steps(self) -> int:
        """n."""
        return len(self.times) - 1

    def kernel_variance(self, step: int) -> float:
        """Variance of x_t given x_s, for the times t and s before and after the step; beta where alpha^2 + sigma^2 is 1."""
        ratio = self.alphas[step] / self.alphas[step + 1]
        return max(self.sigmas[step] ** 2 - (ratio * self.sigmas[step + 1]) ** 2, 0.0)


def path_of(denoiser: Denoiser, times: Tensor) -> Path:
    """The path of a sampler. Raises UserError for times that `checked` refuses, or where alpha is 0 and the noise alone is predicted."""
    times = checked(times)
    alphas, sigmas = denoiser.schedule.alpha(times), denoiser.schedule.sigma(times).masked_fill(times == 0, 0.0)
    if alphas[0] == 0 and denoiser.prediction in ("eps", "score"):
        raise UserError(
            f"times: a list that starts at {times[0]:g}, where alpha is 0, does not fit the prediction {denoiser.prediction!r}: the noise "
            "alone says nothing of the data there; start below, or predict velocity, v or x0"
        )
    return Path(times, alphas.tolist(), sigmas.tolist())


def _shares(steps: int) -> Tensor:
    """1, 1 - 1 / n, ..., 1 / n."""
    _check_steps(steps)
    return torch.arange(steps, 0, -1, dtype=torch.float64) / steps


def _check_steps(steps: int, levels: int | None = None) -> None:
    if steps < 1:
        raise UserError(f"steps: {steps}; at least 1 is expected")
    if levels is not None and steps > levels:
        raise UserError(f"steps: {steps} are more than the {levels} levels the model was trained with; at most {levels} are possible")
