"""Kernel distance between two sets of features (KID of Bińkowski et al. 2018, arXiv 1801.01401, on features of our own classifier).

An unbiased estimate of a squared maximum mean discrepancy, so it can be negative and, unlike the Fréchet distance, does not fall with the
number of samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 1024  # of the kernel matrix at a time: bounds memory, changes no number


def kernel_distance(a: Tensor, b: Tensor, own_similarity_of_b: float | None = None) -> float:
    """The unbiased squared discrepancy of features (M, D) and (N, D) under k(x, y) = (x.y / D + 1)^3, in float64: eqs. 3 and 4.

    `own_similarity_of_b` is that of `b`, where it is known. Raises ValueError for fewer than two rows or unequal widths.
    """
    if a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"features of shapes {tuple(a.shape)} and {tuple(b.shape)}: expected two rows or more of equal width")
    within = own_similarity(a) + (own_similarity(b) if own_similarity_of_b is None else own_similarity_of_b)
    return within - 2 * _kernel_sum(a.double(), b.double()).item() / (len(a) * len(b))


def own_similarity(features: Tensor) -> float:
    """The mean kernel of two different rows of features (N, D), N at least 2."""
    x = features.double()
    return ((_kernel_sum(x, x) - _cubic((x * x).sum(1), x.shape[1]).sum()) / (len(x) * (len(x) - 1))).item()


def _kernel_sum(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([_cubic(part @ b.T, a.shape[1]).sum() for part in a.split(ROWS)]).sum()


def _cubic(products: Tensor, width: int) -> Tensor:
    return (products / width + 1) ** 3
