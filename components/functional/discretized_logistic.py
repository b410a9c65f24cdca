"""Mixtures of logistic distributions cut into the 256 values of an 8-bit pixel (Salimans et al. 2017, arXiv 1701.05517, eq. 2).

Value v stands for the bin of width 2 / 255 around v / 127.5 - 1. The bins of 0 and 255 are open, so that the 256 masses sum to 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

VALUES = 256
LOG_SCALES = (-7.0, 7.0)  # narrower than a bin by far, and wider than all bins by far: beyond these nothing is learnt


def log_prob(values: Tensor, parameters: Tensor) -> Tensor:
    """log of the mass of `values` (...) in 0 to 255 under `parameters` (..., 3 K): K logits, K means, K log scales. Nats, (...) float32.

    sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)) keeps all digits in both tails, so no bin needs a case of its own.
    """
    logits, means, inverse_scales = _split(parameters)
    first, last = (values == 0).unsqueeze(-1), (values == VALUES - 1).unsqueeze(-1)
    lower, upper = ((_edge_below(each).unsqueeze(-1) - means) * inverse_scales for each in (values, values + 1))
    below_upper = torch.where(last, 0.0, F.logsigmoid(upper))
    above_lower = torch.where(first, 0.0, F.logsigmoid(-lower))
    inside = torch.where(first | last, 0.0, torch.log(-torch.expm1(lower - upper)))
    return torch.logsumexp(F.log_softmax(logits, -1) + below_upper + above_lower + inside, -1)


def draw(parameters: Tensor, uniform: Tensor) -> Tensor:
    """Values (...) int64 drawn from `parameters` (..., 3 K), by inverting their distribution function at `uniform` (...) in [0, 1)."""
    logits, means, inverse_scales = _split(parameters)
    edges = _edge_below(torch.arange(1, VALUES, device=parameters.device))
    below = torch.sigmoid((edges.unsqueeze(-1) - means.unsqueeze(-2)) * inverse_scales.unsqueeze(-2))  # (..., 255, K)
    mass_below = (below @ logits.softmax(-1).unsqueeze(-1)).squeeze(-1)
    return (uniform.unsqueeze(-1) >= mass_below).sum(-1)


def _edge_below(values: Tensor) -> Tensor:
    """The end that the bins of value and value - 1 share, to the last bit: so masses add up to 1."""
    return (values - 0.5) / 127.5 - 1


def _split(parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, means and inverse scales (..., K) each, float32."""
    logits, means, log_scales = parameters.float().chunk(3, -1)
    return logits, means, torch.exp(-log_scales.clamp(*LOG_SCALES))
