"""The variational bound of DDPM (Ho et al. 2020, arXiv 2006.11239, eq. 5) on the likelihood of 8-bit pictures, and its discretized decoder.

L = L_0 + L_1 + ... + L_T: the decoder -log p(x_0 | x_1), T - 1 divergences between Gaussians of one step, and that of x_T from the prior.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from components.errors import UserError
from components.functional.ancestral import Posterior, Variance, preserving_path
from components.functional.noise_schedules import Discrete
from components.functional.predictions import Denoiser, Noise
from components.functional.timesteps import Path, times_of

HALF_BIN = 1 / 255  # pixels 2 k / 255 - 1


def variational_bound(
    denoiser: Denoiser, x0: Tensor, noise: Noise, times: Tensor | None = None, *, variance: Variance = "small", levels_at_once: int = 1
) -> Tensor:
    """An unbiased estimate of the bound on -log p(x0) in nats a row (B,) float64, for pixels x0 (B, ...) in [-1, 1].

    The arguments are those of `variational_terms`.
    """
    return variational_terms(denoiser, x0, noise, times, variance=variance, levels_at_once=levels_at_once).sum(0)


def variational_terms(
    denoiser: Denoiser, x0: Tensor, noise: Noise, times: Tensor | None = None, *, variance: Variance = "small", levels_at_once: int = 1
) -> Tensor:
    """L_0 ... L_T in nats (T + 1, B) float64, for pixels x0 (B, ...) in [-1, 1].

    `times` (T + 1,) end at 0; none means all levels of a discrete schedule. `noise` is called once a level, with a tensor like x0.
    `levels_at_once` levels go through the model together: rows 0 ... B-1 of one level, then of the next. Raises UserError for a schedule
    whose alpha^2 + sigma^2 is not 1, or times that do not end at 0.
    """
    path = preserving_path(denoiser, _all_levels(denoiser) if times is None else times)
    if path.sigmas[-1] != 0:
        raise UserError(f"times: a bound on the likelihood of data ends at time 0, not at {path.times[-1]:g}")
    terms: list[Tensor] = []
    for first in range(0, path.steps, levels_at_once):
        steps = list(range(path.steps))[::-1][first : first + levels_at_once]  # from the data on, as the terms are counted
        for step, (x, predicted) in zip(steps, _predictions(denoiser, path, steps, x0, noise), strict=True):
            terms.append(
                _decoder_term(path, x0, predicted) if step == path.steps - 1 else _step_term(path, step, x0, x, predicted, variance)
            )
    return torch.stack([*terms, _prior_term(path, x0)])


def discretized_gaussian_log_likelihood(x: Tensor, mean: Tensor, std: float) -> Tensor:
    """log of the normal mass in the bin of each 8-bit value x in [-1, 1], edge bins open (eq. 13): float64, of x's shape."""
    x, mean = x.double(), mean.double()
    upper = torch.where(x > 1 - HALF_BIN, math.inf, (x + HALF_BIN - mean) / std)
    lower = torch.where(x < -1 + HALF_BIN, -math.inf, (x - HALF_BIN - mean) / std)
    mirrored = lower > 0  # differences are taken in the lower tail, where they keep their digits
    low, high = torch.where(mirrored, -upper, lower), torch.where(mirrored, -lower, upper)
    log_high = torch.special.log_ndtr(high)
    return log_high + torch.log(-torch.expm1(torch.special.log_ndtr(low) - log_high))


def _all_levels(denoiser: Denoiser) -> Tensor:
    if not isinstance(denoiser.schedule, Discrete):
        raise UserError("times: the variational bound of a schedule without levels wants a list of times that ends at 0")
    return times_of(denoiser.schedule, "leading", denoiser.schedule.levels)


def _predictions(denoiser: Denoiser, path: Path, steps: list[int], x0: Tensor, noise: Noise) -> list[tuple[Tensor, Tensor]]:
    """x_t and predicted data at the upper time of each step, with one question to the model."""
    noisy = torch.cat([path.alphas[step] * x0 + path.sigmas[step] * noise(x0) for step in steps])
    predicted, _ = denoiser.x0_and_eps(noisy, path.times[steps].repeat_interleave(len(x0)).to(x0.device))
    return list(zip(noisy.chunk(len(steps)), predicted.chunk(len(steps)), strict=True))


def _decoder_term(path: Path, x0: Tensor, predicted: Tensor) -> Tensor:
    """L_0. The last posterior's variance is 0: the one before it is taken, as the paper's authors do, or the kernel's of a single step."""
    last = path.steps - 1
    variance = Posterior.of(path, last - 1).small if last > 0 else Posterior.of(path, last).large
    return -discretized_gaussian_log_likelihood(x0, predicted, variance**0.5).flatten(1).sum(1)


def _step_term(path: Path, step: int, x0: Tensor, x: Tensor, predicted: Tensor, choice: Variance) -> Tensor:
    """KL(q(x_s | x_t, x_0) || p(x_s | x_t)) of one step; both are Gaussians."""
    posterior = Posterior.of(path, step)
    variance = posterior.variance(choice)
    shift = posterior.of_data * (x0.double() - predicted.double())
    spread = posterior.small / variance
    return ((spread - 1 - math.log(spread) + shift.square() / variance) / 2).flatten(1).sum(1)


def _prior_term(path: Path, x0: Tensor) -> Tensor:
    """L_T = KL(q(x_T | x_0) || N(0, 1))."""
    alpha, variance = path.alphas[0], path.sigmas[0] ** 2
    return ((variance - 1 - math.log(variance) + (alpha * x0.double()).square()) / 2).flatten(1).sum(1)
