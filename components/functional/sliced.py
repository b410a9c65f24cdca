"""Sliced Wasserstein distance (Bonneel et al. 2015): the mean over directions of the W1 between one-dimensional projections."""

from __future__ import annotations

import torch
from torch import Tensor

from components.seeds import derive_seed


def directions(width: int, count: int = 128) -> Tensor:
    """Unit vectors (width, count) float32, uniform on the sphere, always the same for one width and count."""
    generator = torch.Generator().manual_seed(derive_seed("sliced directions", width, count))
    drawn = torch.randn(width, count, generator=generator)
    return drawn / drawn.norm(dim=0)


def sliced_w1(x: Tensor, y: Tensor) -> float:
    """Mean over columns of the W1 between the projections x and y, both (N, count): mean |sorted(x) - sorted(y)|."""
    return float((x.double().sort(0).values - y.double().sort(0).values).abs().mean())
