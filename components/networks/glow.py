"""Glow: activation normalization, an invertible 1 x 1 convolution and an affine coupling, again and again, over several scales.

Kingma and Dhariwal 2018, arXiv 1807.03039. On points the convolution is an invertible matrix.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from components.networks.actnorm import ActNorm, positions
from components.networks.bijection import Bijection, BijectionChain
from components.networks.coupling import Scale, coupling
from components.networks.multiscale import MultiScaleConfig, MultiScaleFlow


class GlowConfig(MultiScaleConfig):
    """Steps, levels and the size of the networks in the couplings."""

    kind: Literal["glow"] = "glow"
    steps: int = Field(8, gt=0, description="of each level")
    scale: Scale = Field("sigmoid", description="of a coupling: sigmoid(raw + 2), exp(c tanh(raw)) or none, which only shifts")

    def build(self, shape: tuple[int, ...], start: BijectionChain) -> MultiScaleFlow:
        """The flow of rows (B, *shape), which `start` prepares."""
        return MultiScaleFlow(self, shape, start)

    def level(self, shape: tuple[int, ...], squeeze: int) -> list[Bijection | BijectionChain]:
        return [self._step(shape) for _ in range(self.steps)]

    def _step(self, shape: tuple[int, ...]) -> BijectionChain:
        channels = shape[0]
        parts = channels // 2, channels - channels // 2
        return BijectionChain(ActNorm(channels), InvertibleConv(channels), coupling(shape, parts, True, self.scale, self.width))


class InvertibleConv(Bijection):
    """y = W x at every position, W = P L (U + diag(s)) kept as its parts, so that log |det W| = sum log |s| (eq. 10 and 11).

    L has ones on its diagonal, U zeros; P and the signs of s stay as the random rotation that W begins as has them.
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        rotation, _ = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))
        permutation, lower, upper = (part.float() for part in torch.linalg.lu(rotation))
        self.lower = nn.Parameter(lower.tril(-1))
        self.upper = nn.Parameter(upper.triu(1))
        self.log_scale = nn.Parameter(upper.diagonal().abs().log())
        self.register_buffer("permutation", permutation)
        self.register_buffer("sign", upper.diagonal().sign())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):  # errors would grow in the inverse
            lower, upper = self._parts()
            y = _at_every_position(self.permutation @ lower @ upper, x)
        return y, (self.log_scale.sum() * positions(x)).expand(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        with torch.autocast(y.device.type, enabled=False):
            lower, upper = (part.double() for part in self._parts())
            first = torch.linalg.solve_triangular(lower, self.permutation.double().T, upper=False, unitriangular=True)
            return _at_every_position(torch.linalg.solve_triangular(upper, first, upper=True).to(y.dtype), y)

    def _parts(self) -> tuple[Tensor, Tensor]:
        eye = torch.eye(len(self.sign), dtype=self.lower.dtype, device=self.lower.device)
        return self.lower.tril(-1) + eye, self.upper.triu(1) + torch.diag(self.sign * self.log_scale.exp())


def _at_every_position(matrix: Tensor, x: Tensor) -> Tensor:
    """The matrix (C, C) times the channels of x (B, C, ...)."""
    return x @ matrix.T if x.dim() == 2 else F.conv2d(x, matrix[:, :, None, None])
