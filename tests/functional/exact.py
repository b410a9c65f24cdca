"""Exact denoisers of simple data, so that samplers are judged without a network, and schedules of every kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from components.functional.noise_schedules import (
    Discrete,
    Schedule,
    StraightLine,
    SubVariancePreserving,
    VarianceExploding,
    VariancePreserving,
    cosine_betas,
    linear_betas,
)
from components.functional.predictions import Coefficients, Denoiser, Prediction, target

SCHEDULES: dict[str, Schedule] = {
    "linear": Discrete(linear_betas()),
    "cosine": Discrete(cosine_betas()),
    "VP": VariancePreserving(),
    "sub-VP": SubVariancePreserving(),
    "VE": VarianceExploding(),
    "straight line": StraightLine(),
}


class DeviceCopies(TorchDispatchMode):
    """Counts tensors that are copied to another device. The device "meta" stands for one that the host would wait for."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.count += func is torch.ops.aten._to_copy.default and found.device != args[0].device
        return found


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_denoiser(schedule: Schedule, data: Callable[[Tensor, Tensor, Tensor], Tensor], prediction: Prediction = "eps") -> Denoiser:
    """Of E[x_0 | x_t] given as `data(x, alpha, sigma)`."""

    def model(x: Tensor, t: Tensor) -> Tensor:
        at = Coefficients.at(schedule, t, x)
        x0 = data(x, at.alpha, at.sigma)
        return target(prediction, x0, (x - at.alpha * x0) / at.sigma, at)

    return Denoiser(model, prediction, schedule)


def one_point(value: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Data that are `value` everywhere."""
    return lambda x, alpha, sigma: torch.full_like(x, value)


def gaussian(mean: float, std: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Data N(mean, std^2), independent in every place."""
    return lambda x, alpha, sigma: mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x - alpha * mean)


def two_bumps(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Data of which half is N(1, 0.2^2) and half N(-1, 0.2^2)."""
    variance = 0.04 * alpha**2 + sigma**2
    side = torch.tanh(alpha * x / variance)  # E[+-1 | x]
    return side + alpha * 0.04 / variance * (x - alpha * side)
