"""DDIM (Song et al. 2021, arXiv 2010.02502): generation with a share eta of the ancestral noise, inversion, interpolation of noises.

A step from t to s goes to alpha_s x0 + sqrt(sigma_s^2 - std^2) eps + std z, where s is the next time of the list, whatever its stride.
"""

from __future__ import annotations

import torch
from torch import Tensor

from components.errors import UserError
from components.functional.predictions import Denoiser, Noise
from components.functional.timesteps import Path, path_of


def ddim(denoiser: Denoiser, x: Tensor, times: Tensor, noise: Noise | None = None, *, eta: float = 0.0) -> Tensor:
    """Walk x (B, ...) at times[0] along `times` (n + 1,); any schedule. A step to clean data returns the predicted data itself.

    `eta` 0 is deterministic and never calls `noise`, 1 has the ancestral sampler's small variance. Raises UserError for others than [0, 1].
    """
    if not 0 <= eta <= 1:
        raise UserError(f"eta: {eta:g}; a number from 0 (deterministic) to 1 (ancestral) is expected")
    assert noise is not None or eta == 0, "eta above 0 draws noise"
    path = path_of(denoiser, times)
    for step in range(path.steps):
        x0, eps = denoiser.x0_and_eps(x, path.times[step])
        if path.sigmas[step + 1] == 0:
            return x0
        std = noise_std(path, step, eta)
        x = path.alphas[step + 1] * x0 + max(path.sigmas[step + 1] ** 2 - std**2, 0.0) ** 0.5 * eps
        if noise is not None and std > 0:
            x = x + std * noise(x)
    return x


def noise_std(path: Path, step: int, eta: float) -> float:
    """Standard deviation of the fresh noise of a step, eq. 16: eta times that of the posterior q(x_s | x_t, x_0), for any schedule."""
    return eta * path.sigmas[step + 1] / path.sigmas[step] * path.kernel_variance(step) ** 0.5


def ddim_invert(denoiser: Denoiser, x: Tensor, times: Tensor) -> Tensor:
    """The noise at times[0] from which `ddim` along the same `times` leads back to x (B, ...) at their end, up to a first-order error.

    Each pair of times is walked backwards, with the noise that is predicted at the upper one, so that the model is asked where generation
    asks it. Raises UserError for a denoiser that clips, whose steps have no inverse.
    """
    if denoiser.clip is not None:
        raise UserError("clip: inversion follows unclipped steps, as clipped ones have no inverse; switch clipping off")
    path = path_of(denoiser, times)
    for step in reversed(range(path.steps)):
        _, eps = denoiser.x0_and_eps(x, path.times[step])
        ratio = path.alphas[step] / path.alphas[step + 1]
        x = ratio * x + (path.sigmas[step] - ratio * path.sigmas[step + 1]) * eps
    return x


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Spherical interpolation of rows a, b (B, ...), `share` 0 is a and 1 is b: keeps the length that noise has (eq. 67). Along a straight
    line where a row and its partner are parallel."""
    first, second = a.flatten(1).double(), b.flatten(1).double()
    cosine = torch.nn.functional.cosine_similarity(first, second, dim=1).clamp(-1, 1)
    angle = cosine.acos().unsqueeze(1)
    parallel = angle.sin() < 1e-6
    size = torch.where(parallel, 1.0, angle.sin())
    keep = torch.where(parallel, 1 - share, ((1 - share) * angle).sin() / size)
    take = torch.where(parallel, share, (share * angle).sin() / size)
    return (keep * first + take * second).to(a.dtype).view_as(a)
