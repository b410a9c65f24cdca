"""DPM-Solver++ 2M (Lu et al. 2022, arXiv 2211.01095, algorithm 2): second order with one evaluation a step.

Written without logarithms where they could be infinite, so that it starts from pure noise (alpha 0) and ends at clean data (sigma 0).
"""

from __future__ import annotations

import math

from torch import Tensor

from components.functional.predictions import Denoiser
from components.functional.timesteps import Path, path_of

FEW_STEPS = 15  # below, the last step is of first order, which is stabler


def dpm_solver_pp_2m(denoiser: Denoiser, x: Tensor, times: Tensor) -> Tensor:
    """Walk x (B, ...) at times[0] along `times` (n + 1,); any schedule.

    The first step is of first order, and so is the last one where it leads to clean data or the list is short.
    """
    path = path_of(denoiser, times)
    before: Tensor | None = None
    for step in range(path.steps):
        x0, _ = denoiser.x0_and_eps(x, path.times[step])
        last = step == path.steps - 1 and (path.sigmas[-1] == 0 or path.steps < FEW_STEPS)
        data = x0 if before is None or last else x0 + _extrapolation(path, step) * (x0 - before)
        shrink = path.sigmas[step + 1] / path.sigmas[step]
        x = shrink * x + (path.alphas[step + 1] - shrink * path.alphas[step]) * data
        before = x0
    return x


def _extrapolation(path: Path, step: int) -> float:
    """1 / (2 r) with r the ratio of the last stride of log(alpha / sigma) to this one: eq. 18's midpoint. 0 after a stride from alpha 0."""
    return _stride(path, step) / _stride(path, step - 1) / 2


def _stride(path: Path, step: int) -> float:
    """h, the growth of log(alpha / sigma) in a step; infinite from alpha 0."""
    if path.alphas[step] == 0:
        return math.inf
    return math.log(path.alphas[step + 1] * path.sigmas[step] / (path.alphas[step] * path.sigmas[step + 1]))
