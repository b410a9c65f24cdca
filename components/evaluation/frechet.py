"""Fréchet distance between Gaussian fits of features (Dowson and Landau 1982; Heusel et al. 2017, arXiv 1706.08500, eq. 6).

Features come from a small classifier of the project's own, so the number is called FD-cnn, never FID. It falls with the number of samples:
state that number beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Streamed statistics of features in float64: count, sum (D,) and sum of outer products (D, D); parts add up to the whole."""

    count: int
    total: Tensor
    outer: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Of features (N, D)."""
        x = features.double()
        return cls(len(x), x.sum(0), x.T @ x)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.outer + other.outer)

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """Unbiased, (D, D)."""
        assert self.count > 1, "a covariance needs two rows"
        return (self.outer - self.count * torch.outer(self.mean, self.mean)) / (self.count - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), not negative.

    The trace of the root is taken of the symmetric C_a^(1/2) C_b C_a^(1/2), which has the eigenvalues of C_a C_b.
    """
    root = _square_root(a.covariance)
    eigenvalues = torch.linalg.eigvalsh(root @ b.covariance @ root)
    distance = (a.mean - b.mean).square().sum() + (a.covariance + b.covariance).trace() - 2 * eigenvalues.clamp(min=0).sqrt().sum()
    return max(distance.item(), 0.0)


def _square_root(matrix: Tensor) -> Tensor:
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    return (vectors * eigenvalues.clamp(min=0).sqrt()) @ vectors.T
