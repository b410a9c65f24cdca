"""Likelihood of data under a model's probability flow, by the instantaneous change of variables.

d log p(x_t) / dt = -div velocity along the flow (Chen et al. 2018, arXiv 1806.07366), so log p(x) at the schedule's start is the prior's at
t = 1 plus the divergence, integrated from there to 1 (Song et al. 2021, arXiv 2011.13456, appendix D.2). Divergences are exact or
estimated as e . J e with signs e (Hutchinson; Grathwohl et al. 2019, arXiv 1810.01367).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from components.errors import UserError
from components.functional.continuous import Divergence, coordinates
from components.functional.ode_samplers import State, solve
from components.functional.predictions import Denoiser, Noise


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
    if divergence not in ("exact", "hutchinson"):
        raise UserError(f"divergence: {divergence!r} is not known; choose exact or hutchinson")
    schedule = denoiser.schedule
    with torch.inference_mode(False), torch.no_grad():
        x = x.clone()  # of a caller in inference mode, whose tensors have no derivatives
        probes = list(coordinates(x)) if divergence == "exact" else [_signs(x, noise)]

        def field(t: Tensor, state: State) -> State:
            return _velocity_and_divergence(denoiser, state[0].to(x.dtype), t, probes)

        times = torch.tensor([schedule.start, 1.0], dtype=torch.float64)
        x_1, gained = solve(field, (x, x.new_zeros(len(x))), times, rtol=rtol, atol=atol)
        scale = float(schedule.sigma(times[-1]))
        return gained + _log_normal(x_1 / scale) - x[0].numel() * math.log(scale)


def bits_per_dim(log_likelihood: Tensor, dims: int) -> Tensor:
    """Bits for each of `dims` numbers of 8 bits, from nats of dequantized data in [-1, 1]: the uniform density needs 8."""
    return -log_likelihood.double() / (dims * math.log(2)) + math.log2(256 / 2)  # a grey value is 2 / 256 wide there


def dequantized(values: Tensor, uniform: Tensor) -> Tensor:
    """Numbers of 8 bits as numbers in [-1, 1), spread over the width of one of them by `uniform` in [0, 1)."""
    return (values.to(uniform.dtype) + uniform) / 128 - 1


def _velocity_and_divergence(denoiser: Denoiser, x: Tensor, t: Tensor, probes: Sequence[Tensor]) -> State:
    """The velocity, and the sum over `probes` e of e . J e."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        velocity = denoiser.predict("velocity", x, t)
        divergence = x.new_zeros(len(x))
        for place, probe in enumerate(probes, start=1):
            (slope,) = torch.autograd.grad(velocity, x, probe, retain_graph=place < len(probes))
            divergence = divergence + (slope * probe).flatten(1).sum(1)
    return velocity.detach(), divergence.detach()


def _signs(x: Tensor, noise: Noise | None) -> Tensor:
    assert noise is not None, "hutchinson draws noise"
    return torch.where(noise(x) < 0, -1.0, 1.0).to(x.dtype)


def _log_normal(x: Tensor) -> Tensor:
    """Of rows of standard normal numbers."""
    return -(x.square() + math.log(2 * math.pi)).flatten(1).sum(1) / 2
