"""Fully visible sigmoid belief network: each pixel a logistic regression on those before it (Neal 1992; Frey 1998).

logit_i = b_i + sum_{j < i} W_ij x_j, which is convex in W and b.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.networks.autoregressive import DenseNetwork, OrderedConfig, Steps
from components.training.randomness import Draws


class FVSBNConfig(OrderedConfig):
    """Nothing but the order."""

    kind: Literal["fvsbn"] = "fvsbn"

    def build(self, shape: tuple[int, int, int], num_classes: int, parameters: int = 1) -> FVSBN:
        """The network, freshly initialized, for pictures (C, H, W)."""
        assert parameters == 1, "of binary pixels"
        return FVSBN(self, shape, num_classes)


class EarlierPixels(nn.Module):
    """x W^T with W strictly lower triangular: `weight` is multiplied by its mask each time, so that no optimizer revives what it hides."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(pixels, pixels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        return F.linear(x, self.weight.tril(-1))


class FVSBN(DenseNetwork):
    """One strictly triangular matrix."""

    def __init__(self, config: FVSBNConfig, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(config, shape, num_classes)
        self.earlier = EarlierPixels(self.pixels)

    def logits(self, x: Tensor, labels: Tensor | None, random: Draws | None) -> Tensor:
        return self.earlier(x)

    def steps(self, rows: int, labels: Tensor | None) -> Steps:
        columns = self.earlier.weight.tril(-1).T.contiguous()
        logits = columns.new_zeros(rows, self.pixels)
        for place in range(self.pixels):
            x = yield logits[:, place]
            logits.addr_(x, columns[place])
