"""Ancestral sampling of DDPM (Ho et al. 2020, arXiv 2006.11239, algorithm 2): each step draws from the reverse kernel.

Along a sub-list of the levels, beta is that of the forward kernel between two neighbours of the list, 1 - alpha_t^2 / alpha_s^2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from components.errors import UserError
from components.functional.predictions import Denoiser, Noise
from components.functional.timesteps import Path, path_of

Variance = Literal["small", "large"]


@dataclass(frozen=True)
class Posterior:
    """q(x_s | x_t, x_0) = N(of_data x_0 + of_noisy x_t, small); `large` is the kernel's beta, the other choice (section 3.2)."""

    of_data: float
    of_noisy: float
    small: float
    large: float

    @classmethod
    def of(cls, path: Path, step: int) -> Posterior:
        """For the times t and s before and after step `step` of the path: eqs. 6 and 7 of Ho et al."""
        alpha_t, sigma_t = path.alphas[step], path.sigmas[step]
        alpha_s, sigma_s = path.alphas[step + 1], path.sigmas[step + 1]
        beta = path.kernel_variance(step)
        kept = (sigma_s / sigma_t) ** 2
        return cls(alpha_s * beta / sigma_t**2, alpha_t / alpha_s * kept, beta * kept, beta)

    def mean(self, x0: Tensor, x: Tensor) -> Tensor:
        return self.of_data * x0 + self.of_noisy * x

    def variance(self, choice: Variance) -> float:
        return self.small if choice == "small" else self.large


def ancestral(denoiser: Denoiser, x: Tensor, times: Tensor, noise: Noise, *, variance: Variance = "small") -> Tensor:
    """Walk x (B, ...) at times[0] along `times` (n + 1,). A step to clean data returns the predicted data, without noise.

    `variance`: "small" is the posterior's, "large" the kernel's beta, which suits all levels and explodes with few steps. Raises UserError
    for a schedule whose alpha^2 + sigma^2 is not 1.
    """
    path = preserving_path(denoiser, times)
    for step in range(path.steps):
        x0, _ = denoiser.x0_and_eps(x, path.times[step])
        if path.sigmas[step + 1] == 0:
            return x0
        posterior = Posterior.of(path, step)
        x = posterior.mean(x0, x) + posterior.variance(variance) ** 0.5 * noise(x)
    return x


def preserving_path(denoiser: Denoiser, times: Tensor) -> Path:
    """The path of a method that is made for alpha^2 + sigma^2 = 1. Raises UserError for other schedules."""
    path = path_of(denoiser, times)
    sizes = torch.tensor(path.alphas).square() + torch.tensor(path.sigmas).square()
    if (sizes - 1).abs().max() > 1e-5:
        raise UserError(
            f"sampler: ancestral steps need alpha^2 + sigma^2 = 1, and {type(denoiser.schedule).__name__} has another sum; choose another"
        )
    return path
