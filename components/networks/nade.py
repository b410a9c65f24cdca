"""NADE: the neural autoregressive distribution estimator (Larochelle and Murray 2011; Uria et al. 2016, arXiv 1605.02226).

h_i = sigmoid(c + sum_{j < i} W_j x_j) and logit_i = b_i + V_i . (h_i - 1/2), with the inner sum carried from pixel to pixel: D H operations
a row. The half is no more than another b, but hidden units around 0 are learnt from faster.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from components.networks.autoregressive import DenseNetwork, OrderedConfig, Steps
from components.training.randomness import Draws

SPREAD = 6.0  # of the first W, times sqrt(D): so wide that the hidden units of two pictures differ, and are learnt from
BLOCK = 16  # pixels whose hidden units are there at a time: few enough for a processor's cache


class NADEConfig(OrderedConfig):
    """The order, and how many hidden units each pixel has."""

    kind: Literal["nade"] = "nade"
    hidden: int = Field(500, gt=0, description="hidden units of each pixel; all pixels share their weights")

    def build(self, shape: tuple[int, int, int], num_classes: int, parameters: int = 1) -> NADE:
        """The network, freshly initialized, for pictures (C, H, W)."""
        assert parameters == 1, "of binary pixels"
        return NADE(self, shape, num_classes)


class RunningSum(torch.autograd.Function):
    """V_i . sigmoid(start + sum_{j < i} W_j x_j), (D, B), of x (D, B), start (B, H), W and V (D, H).

    Autograd would keep D B H numbers; this keeps the running sum at the start of each block, and goes through the blocks again, backwards.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, start: Tensor, inward: Tensor, outward: Tensor) -> Tensor:
        logits = x.new_empty(x.shape)
        total, starts = start.clone(), []
        for block in _blocks(len(x)):
            starts.append(total.clone())
            hidden = _hidden(total, x[block], inward[block])
            torch.bmm(hidden, outward[block].unsqueeze(2), out=logits[block].unsqueeze(2))
        ctx.save_for_backward(x, inward, outward, torch.stack(starts))
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        x, inward, outward, starts = ctx.saved_tensors
        slope = slope.contiguous()
        by_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        by_inward, by_outward = torch.empty_like(inward), torch.empty_like(outward)
        later = torch.zeros_like(starts[0])  # the slope by the running sum, of all pixels from the current one on
        for start, block in reversed(list(zip(starts, _blocks(len(x)), strict=True))):
            hidden = _hidden(start.clone(), x[block], inward[block])
            torch.bmm(slope[block].unsqueeze(1), hidden, out=by_outward[block].unsqueeze(1))
            for place in reversed(range(block.start, block.stop)):
                torch.mv(later.T, x[place], out=by_inward[place])
                if by_x is not None:
                    torch.mv(later, inward[place], out=by_x[place])
                h = hidden[place - block.start]
                later += torch.ops.aten.sigmoid_backward(torch.outer(slope[place], outward[place]), h)
        return by_x, later, by_inward, by_outward


def _blocks(pixels: int) -> list[slice]:
    return [slice(first, min(first + BLOCK, pixels)) for first in range(0, pixels, BLOCK)]


def _hidden(total: Tensor, x: Tensor, inward: Tensor) -> Tensor:
    """The hidden units (K, B, H) of a block of pixels x (K, B); `total` (B, H) moves to the end of it, in place."""
    hidden = total.new_empty(len(x), *total.shape)
    for place in range(len(x)):
        torch.sigmoid(total, out=hidden[place])
        total.addcmul_(x[place][:, None], inward[place])
    return hidden


class SharedHidden(nn.Module):
    """The hidden units of all pixels: `inward` is W and `outward` is V, both (D, H)."""

    def __init__(self, pixels: int, hidden: int) -> None:
        super().__init__()
        self.inward = nn.Parameter(torch.empty(pixels, hidden).uniform_(-SPREAD, SPREAD) / pixels**0.5)
        self.outward = nn.Parameter(torch.zeros(pixels, hidden))  # so that an untrained network says its biases alone

    def forward(self, x: Tensor, start: Tensor) -> Tensor:
        """(B, D) and (B, H) to logits (B, D)."""
        with torch.autocast(x.device.type, enabled=False):
            return RunningSum.apply(x.T.contiguous(), start, self.inward, self.outward).T - self.outward.sum(1) / 2


class NADE(DenseNetwork):
    """Hidden units of each pixel that see the pixels before it."""

    recomputed = ("shared",)

    def __init__(self, config: NADEConfig, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(config, shape, num_classes)
        self.shared = SharedHidden(self.pixels, config.hidden)
        self.hidden_bias = nn.Parameter(torch.zeros(config.hidden))
        self.class_hidden = nn.Embedding(num_classes, config.hidden) if num_classes else None
        if self.class_hidden is not None:
            nn.init.zeros_(self.class_hidden.weight)

    def logits(self, x: Tensor, labels: Tensor | None, random: Draws | None) -> Tensor:
        return self.shared(x, self._start(len(x), labels))

    def steps(self, rows: int, labels: Tensor | None) -> Steps:
        total = self._start(rows, labels).clone()
        for inward, outward in zip(self.shared.inward, self.shared.outward, strict=True):
            x = yield (total.sigmoid() - 0.5) @ outward
            total.addr_(x, inward)

    def _start(self, rows: int, labels: Tensor | None) -> Tensor:
        """The running sum (B, H) before the first pixel."""
        if self.class_hidden is None:
            return self.hidden_bias.expand(rows, -1)
        return self.hidden_bias + self.class_hidden(labels)
