"""What a denoising network may predict, and how each prediction becomes any other.

With x = alpha x_0 + sigma eps: `eps`; `x0`; `v` = alpha eps - sigma x_0 (Salimans and Ho 2022, arXiv 2202.00512, appendix D); `velocity` =
alpha' x_0 + sigma' eps, the field of the probability flow; `score` = -eps / sigma.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from components.functional.noise_schedules import Schedule

Prediction = Literal["eps", "x0", "v", "velocity", "score"]
Model = Callable[[Tensor, Tensor], Tensor]  # x (B, ...) and t () or (B,) float64 in [0, 1] -> a prediction (B, ...)


class Coefficients:
    """A schedule at times t, shaped to multiply x: (B, 1, ...) or (). Computed when first asked for, as few predictions need the rates."""

    def __init__(self, schedule: Schedule, t: Tensor, shaped: Callable[[Tensor], Tensor]) -> None:
        self._schedule, self._t, self._shaped = schedule, t, shaped

    @classmethod
    def at(cls, schedule: Schedule, t: Tensor, x: Tensor) -> Coefficients:
        """For x (B, ...) and t (B,) or (), in the type of x."""
        return cls(schedule, t, lambda value: beside(value, x))

    @cached_property
    def alpha(self) -> Tensor:
        return self._shaped(self._schedule.alpha(self._t))

    @cached_property
    def sigma(self) -> Tensor:
        return self._shaped(self._schedule.sigma(self._t))

    @cached_property
    def alpha_rate(self) -> Tensor:
        return self._shaped(self._schedule.alpha_rate(self._t))

    @cached_property
    def sigma_rate(self) -> Tensor:
        return self._shaped(self._schedule.sigma_rate(self._t))


def beside(values: Tensor, x: Tensor) -> Tensor:
    """`values` () or (B,), one for each row of x (B, ...), in its type and shaped to multiply it.

    On the device of x; but a single number on the host stays there, where arithmetic takes it from without any copy.
    """
    if values.dim() == 0 and values.device.type == "cpu":
        return values.to(x.dtype)
    return values.to(x).reshape(values.shape + (1,) * (x.dim() - 1) if values.dim() else ())


def noised(x0: Tensor, eps: Tensor, at: Coefficients) -> Tensor:
    """x_t."""
    return at.alpha * x0 + at.sigma * eps


def target(kind: Prediction, x0: Tensor, eps: Tensor, at: Coefficients) -> Tensor:
    """The prediction `kind` that is true of data `x0` and noise `eps`."""
    if kind == "eps":
        return eps
    if kind == "x0":
        return x0
    if kind == "v":
        return at.alpha * eps - at.sigma * x0
    if kind == "velocity":
        return at.alpha_rate * x0 + at.sigma_rate * eps
    return -eps / at.sigma


def to_x0_and_eps(kind: Prediction, value: Tensor, x: Tensor, at: Coefficients) -> tuple[Tensor, Tensor]:
    """Data and noise, of which `value` is the prediction `kind` at x."""
    if kind == "x0":
        return value, (x - at.alpha * value) / at.sigma
    if kind == "v":
        size = at.alpha.square() + at.sigma.square()
        return (at.alpha * x - at.sigma * value) / size, (at.sigma * x + at.alpha * value) / size
    if kind == "velocity":
        determinant = at.alpha * at.sigma_rate - at.sigma * at.alpha_rate
        return (at.sigma_rate * x - at.sigma * value) / determinant, (at.alpha * value - at.alpha_rate * x) / determinant
    eps = -at.sigma * value if kind == "score" else value
    return (x - at.sigma * eps) / at.alpha, eps


def convert(value: Tensor, have: Prediction, want: Prediction, x: Tensor, at: Coefficients) -> Tensor:
    """The prediction `want` that says the same as the prediction `have`."""
    return value if have == want else target(want, *to_x0_and_eps(have, value, x, at), at)


@dataclass
class Denoiser:
    """What samplers ask: a model as a plain callable, what it predicts, and the schedule it was made for. Counts its evaluations."""

    model: Model
    prediction: Prediction
    schedule: Schedule
    clip: tuple[float, float] | None = None  # of predicted data; the noise is computed again from what was clipped
    evaluations: int = 0

    def x0_and_eps(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted data and noise for x (B, ...) at one time t () or one for each row (B,)."""
        at = Coefficients.at(self.schedule, t, x)
        x0, eps = to_x0_and_eps(self.prediction, self._ask(x, t), x, at)
        if self.clip is None:
            return x0, eps
        x0 = x0.clamp(*self.clip)
        return x0, (x - at.alpha * x0) / at.sigma

    def predict(self, want: Prediction, x: Tensor, t: Tensor) -> Tensor:
        """The prediction `want` for x (B, ...) at t () or (B,)."""
        at = Coefficients.at(self.schedule, t, x)
        if self.clip is not None:
            return target(want, *self.x0_and_eps(x, t), at)
        return convert(self._ask(x, t), self.prediction, want, x, at)

    def _ask(self, x: Tensor, t: Tensor) -> Tensor:
        self.evaluations += 1
        return self.model(x, t).to(x.dtype)


Noise = Callable[[Tensor], Tensor]  # standard normal numbers like the tensor given; a sampler that is deterministic never calls it


def noise_of(generator: torch.Generator) -> Noise:
    """Noise drawn from one generator, on whose device the tensors must be."""
    return lambda x: torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
