"""Activation normalization: a shift and a scale a channel that begin where data come out normal.

Kingma and Dhariwal 2018, arXiv 1807.03039, section 3.1. Unlike batch normalization it ties no rows together and keeps no running
statistics: after its first rows it is an affine map like any other.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.networks.bijection import DataDependent


class ActNorm(DataDependent):
    """y = (x + bias) exp(log_scale), channel by channel; data begin with mean 0 and standard deviation 1. No running statistics."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        bias, log_scale = self._like(x)
        return (x + bias) * log_scale.exp(), (self.log_scale.sum() * positions(x)).expand(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        bias, log_scale = self._like(y)
        return y * (-log_scale).exp() - bias

    def _begin(self, x: Tensor) -> None:
        others = [dim for dim in range(x.dim()) if dim != 1]
        exact = x.double()
        self.bias.copy_(-exact.mean(others))
        self.log_scale.copy_(-exact.std(others, correction=0).clamp(min=1e-6).log())

    def _like(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, -1, *[1] * (x.dim() - 2))
        return self.bias.view(shape), self.log_scale.view(shape)


def positions(x: Tensor) -> int:
    """Places at which each channel of x (B, C, ...) stands: the pixels of a picture, one of a vector."""
    return x[0, 0].numel()
