"""Dropout (Srivastava et al. 2014) whose mask is computed from the step and the global row, never taken from torch's global generator.

The same rows get the same mask for any number of workers, and when a block is computed again in activation checkpointing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from components.training.randomness import Draws

LEVELS = 256  # a mask costs one random byte an element, a third of the time of a random float


class Dropout(nn.Module):
    """Sets elements to 0 with probability `rate`, rounded to 1 / 256, and scales the others so that the mean stays.

    `name` tells apart the layers of a model: equal names drop equal places.
    """

    def __init__(self, rate: float, name: str) -> None:
        super().__init__()
        self.name = f"dropout.{name}"
        self.dropped_levels = round(rate * LEVELS)
        assert 0 <= self.dropped_levels < LEVELS, f"dropout rate {rate} is not in [0, 1)"

    @property
    def rate(self) -> float:
        """The rate after rounding."""
        return self.dropped_levels / LEVELS

    def forward(self, x: Tensor, random: Draws | None) -> Tensor:
        """`x` (B, ...) with elements dropped; unchanged without `random`, as in evaluation."""
        if random is None or not self.dropped_levels:
            return x
        rows, row_size = x.shape[0], math.prod(x.shape[1:])
        words = random.integers(self.name, 1 << 32, (rows, -(-row_size // 4))).int()  # 32 random bits each
        kept = words.view(torch.uint8)[:, :row_size].reshape(x.shape) >= self.dropped_levels
        return x * kept.to(x.dtype).mul_(1 / (1 - self.rate))

    def extra_repr(self) -> str:
        return f"rate={self.dropped_levels}/{LEVELS}, name={self.name!r}"
