"""Coupling layers: one part of a row decides how the other part is shifted, or shifted and scaled; and the networks that decide.

Additive: Dinh et al. 2015, arXiv 1410.8516; affine: Dinh et al. 2017, arXiv 1605.08803.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.networks.bijection import Bijection, sum_of_rows
from components.networks.invertible import standing_for

Scale = Literal["none", "exp", "sigmoid"]


class Coupling(Bijection):
    """One of two parts of the channels of x (B, C, ...), x_a, stays; the other, x_b, becomes (x_b + t(x_a)) s(x_a).

    `parts` says how many channels the first and the last part have, `keeps_first` which of them stays. `conditioner` gives, of x_a, the
    shifts t, as many channels as x_b has, and unless `scale` is "none" as many raw scales after them: s = exp(c tanh(raw)) with a learnt c
    a channel ("exp", as RealNVP) or sigmoid(raw + 2) ("sigmoid", as Glow).
    """

    def __init__(self, conditioner: nn.Module, parts: tuple[int, int], keeps_first: bool, scale: Scale) -> None:
        super().__init__()
        self.conditioner, self.parts, self.keeps_first, self.scale = conditioner, parts, keeps_first, scale
        if scale == "exp":
            self.reach = nn.Parameter(torch.ones(parts[keeps_first]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self._cut(x)
        return self._move(a, b, *self._decide(a))

    def inverse(self, y: Tensor) -> Tensor:
        a, b = self._cut(y)
        return self._join(a, self._move_back(b, *self._decide(a)))

    def retrace(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As of any block (`components/networks/invertible.py`); here the way back and the way forth share what the conditioner says."""
        a, b = self._cut(y)
        decided = self._decide(a)
        with torch.no_grad():
            before = self._move_back(b, *decided)
            x = self._join(a, before)
        return x, *self._move(a, standing_for(before, b), *decided)

    def _move(self, a: Tensor, b: Tensor, shift: Tensor, log_scale: Tensor | None) -> tuple[Tensor, Tensor]:
        if log_scale is None:
            return self._join(a, b + shift), b.new_zeros(len(b))
        return self._join(a, (b + shift) * log_scale.exp()), sum_of_rows(log_scale)

    def _move_back(self, b: Tensor, shift: Tensor, log_scale: Tensor | None) -> Tensor:
        return (b if log_scale is None else b * (-log_scale).exp()) - shift

    def _decide(self, a: Tensor) -> tuple[Tensor, Tensor | None]:
        """The shifts and, if any, the log-scales of x_b, in the precision of x whatever the conditioner's."""
        decided = self.conditioner(a).to(a.dtype)
        if self.scale == "none":
            return decided, None
        shift, raw = decided.chunk(2, dim=1)
        if self.scale == "sigmoid":
            return shift, F.logsigmoid(raw + 2)
        return shift, self.reach.view(-1, *[1] * (raw.dim() - 2)) * raw.tanh()

    def _cut(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, last = x.split(self.parts, dim=1)
        return (first, last) if self.keeps_first else (last, first)

    def _join(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, b] if self.keeps_first else [b, a], dim=1)


class Permutation(Bijection):
    """Channels in another order: the first of y is that of x which `order` names first."""

    order: Tensor
    back: Tensor

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor(order), persistent=False)
        self.register_buffer("back", torch.tensor(inverse_order(order)), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.index_select(1, self.order), x.new_zeros(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        return y.index_select(1, self.back)


def inverse_order(order: Sequence[int]) -> list[int]:
    """The order of a permutation that undoes the one of `order`."""
    return sorted(range(len(order)), key=order.__getitem__)


def coupling(shape: tuple[int, ...], parts: tuple[int, int], keeps_first: bool, scale: Scale, width: int) -> Coupling:
    """One for rows of `shape`, with convolutions for pictures (C, H, W) and two dense hidden layers for points (D,)."""
    kept, changed = parts if keeps_first else parts[::-1]
    outputs = changed if scale == "none" else 2 * changed
    conditioner = conv_conditioner(kept, outputs, width) if len(shape) == 3 else dense_conditioner(kept, outputs, width, 2)
    return Coupling(conditioner, parts, keeps_first, scale)


def dense_conditioner(inputs: int, outputs: int, width: int, layers: int) -> nn.Sequential:
    """`layers` hidden layers of `width` with ReLU; the last layer is zero, so that a coupling begins as the identity."""
    sizes = [inputs, *[width] * layers]
    hidden = [module for pair in pairwise(sizes) for module in (nn.Linear(*pair), nn.ReLU(inplace=True))]
    return nn.Sequential(*hidden, _zero(nn.Linear(sizes[-1], outputs)))


def conv_conditioner(inputs: int, outputs: int, width: int) -> nn.Sequential:
    """Convolutions 3 x 3, 1 x 1 and 3 x 3, as Glow's; the last is zero, so that a coupling begins as the identity."""
    first, middle = nn.Conv2d(inputs, width, 3, padding=1), nn.Conv2d(width, width, 1)
    return nn.Sequential(first, nn.ReLU(inplace=True), middle, nn.ReLU(inplace=True), _zero(nn.Conv2d(width, outputs, 3, padding=1)))


def _zero(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
