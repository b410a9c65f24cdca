"""Likelihood of data under a model's probability flow, by the instantaneous change of variables.

d log p(x_t) / dt = -div velocity along the flow (Chen et al. 2018, arXiv 1806.07366), so log p(x) at the schedule's start is the prior's at
t = 1 plus the divergence, integrated from there to 1 (Song et al. 2021, arXiv 2011.13456, appendix D.2). Divergences are exact or
estimated as e . J e with signs e (Hutchinson; Grathwohl et al. 2019, arXiv 1810.01367).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from components.errors import UserError
from components.functional.ode_samplers import State, rows_error, solve
from components.functional.predictions import Denoiser, Noise

Divergence = Literal["exact", "hutchinson"]


def log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    *,
    divergence: Divergence = "hutchinson",
    noise: Noise | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Tensor:
    """Nats of each row of data x (B, ...), as a density at the schedule's start under the prior N(0, sigma(1)^2) at t = 1: (B,) float64.

    `exact` costs as many backward passes an evaluation as a row has numbers; `hutchinson` costs one, and is right on average over `noise`,
    of which it asks once. Both count one evaluation each. The steps are those that the worst row needs.
    """
