"""From logits to tokens: guidance, temperature, top-k, top-p, and a draw by inverse transform.

Guidance: Ho and Salimans 2022, arXiv 2207.12598, on logits. Top-k: Fan et al. 2018, arXiv 1805.04833. Top-p: Holtzman et al. 2020, arXiv
1904.09751.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Logits l_u + s (l_c - l_u): scale 0 is unconditional, 1 conditional, above 1 exaggerates what the condition changes."""
    return torch.lerp(unconditional, conditional, scale)


def keep_top_k(logits: Tensor, count: int) -> Tensor:
    """The `count` largest of the last axis; all others become -inf. Equals of the smallest kept one are kept too."""
    smallest = logits.topk(count, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest, -math.inf)


def keep_top_p(logits: Tensor, mass: float) -> Tensor:
    """The fewest most likely tokens with probability of at least `mass` together, the one that crosses it included; others become -inf."""
    ordered, places = logits.sort(dim=-1, descending=True)
    likely = ordered.softmax(-1)
    before = likely.cumsum(-1) - likely  # the mass of all that are likelier
    dropped = before >= mass
    dropped[..., 0] = False  # rounding never drops the most likely
    return logits.masked_fill(torch.zeros_like(dropped).scatter(-1, places, dropped), -math.inf)


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Tokens (B,) drawn from softmax(`logits`) (B, K) by inverting its cumulative sum at `uniform` (B,), numbers in [0, 1) of float32."""
    cumulative = logits.float().softmax(-1).cumsum(-1)
    # uniform <= 1 - 2^-24, so the product rounds below the total: the place exists, and the sum grows there, so its probability is not 0.
    place = uniform.unsqueeze(-1) * cumulative[..., -1:]
    return torch.searchsorted(cumulative, place, right=True).squeeze(-1)
