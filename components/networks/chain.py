"""Blocks that run one after another, all on the same extra arguments; activation checkpointing may run several of them as one."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Chain(nn.Sequential):
    """`nn.Sequential` whose blocks take more than their input: x -> block(x, *extra) for each block in turn."""

    def forward(self, x: Tensor, *extra: Any) -> Tensor:
        for block in self:
            x = block(x, *extra)
        return x
