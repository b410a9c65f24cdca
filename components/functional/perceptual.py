"""A distance between pictures through the feature maps of a network (Zhang et al. 2018, arXiv 1801.03924, without learned weights)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def feature_distance(a: Sequence[Tensor], b: Sequence[Tensor], eps: float = 1e-6) -> Tensor:
    """Mean over places of the squared distance between unit feature vectors (B, C, h, w), summed over maps: eq. 1 with w = 1; a scalar."""
    return torch.stack([(_unit(x, eps) - _unit(y, eps)).square().sum(1).mean() for x, y in zip(a, b, strict=True)]).sum()


def _unit(x: Tensor, eps: float) -> Tensor:
    # eps inside the root: a place without any active feature has a finite gradient
    return x / (x.square().sum(1, keepdim=True) + eps).sqrt()
