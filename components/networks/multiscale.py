"""Flows over several scales: squeeze pixels into channels, run a level's bijections, set half of the channels aside, go on with the rest.

Dinh et al. 2017, arXiv 1605.08803, sections 3.6 and 3.7. What was set aside is put back at the end, so that latents have the shape of data.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from components.networks.bijection import Bijection, BijectionChain, ChainFlow, ChainFlowConfig


class MultiScaleConfig(ChainFlowConfig):
    """Levels, and the size of the networks in their couplings. Points have one level and no squeeze."""

    squeezes: tuple[PositiveInt, ...] = Field(
        (4,), min_length=1, description="pictures: of each level, the side of the squares that become channels"
    )
    width: int = Field(64, gt=0, description="of the networks in the couplings")

    def require_shape(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError for pictures that a squeeze cannot divide, and rows that have no two parts."""
        if len(shape) == 3:
            shapes = level_shapes(shape, self.squeezes)
        else:
            default = type(self).model_fields["squeezes"].default
            if self.squeezes != default:
                raise ValueError(f"squeezes={list(self.squeezes)} has no effect on points; leave it out, which is {list(default)}")
            shapes = [shape]
        if any(channels < 2 for channels, *_ in shapes):
            raise ValueError(f"squeezes={list(self.squeezes)} leaves a level one channel, which has no two parts; squeeze by 2 or more")

    def level(self, shape: tuple[int, ...], squeeze: int) -> list[Bijection | BijectionChain]:
        """The bijections of a level whose rows have `shape`, after a squeeze by this factor."""
        raise NotImplementedError


class MultiScaleFlow(ChainFlow):
    """`start`, then of pictures level after level, of points the only one."""

    def __init__(self, config: MultiScaleConfig, shape: tuple[int, ...], start: BijectionChain) -> None:
        def chain(shape: tuple[int, ...], squeeze: int) -> BijectionChain:
            return BijectionChain(*config.level(shape, squeeze), from_outputs=config.from_outputs)

        if len(shape) == 3:
            shapes = level_shapes(shape, config.squeezes)
            body: Bijection | BijectionChain = MultiScale(
                [chain(*each) for each in zip(shapes, config.squeezes, strict=True)], config.squeezes
            )
        else:
            body = chain(shape, 1)
        pattern = "chain.1.levels.*.*" if len(shape) == 3 else "chain.1.*"
        super().__init__(start, body, recomputed=() if config.from_outputs else (pattern,))


class MultiScale(Bijection):
    """A bijection of pictures (B, C, H, W): one chain of bijections a level, on rows of the shapes that `level_shapes` gives."""

    def __init__(self, levels: Sequence[BijectionChain], squeezes: Sequence[int]) -> None:
        super().__init__()
        self.levels, self.squeezes = nn.Sequential(*levels), tuple(squeezes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        aside: list[Tensor] = []
        total = x.new_zeros(len(x))
        for number, level in enumerate(self.levels):
            x = self._enter(x, number, aside)
            x, log_det = level(x)
            total = total + log_det
        return self._leave(x, aside), total

    def inverse(self, y: Tensor) -> Tensor:
        aside: list[Tensor] = []
        for number in range(len(self.levels)):
            y = self._enter(y, number, aside)
        for level, factor in zip(reversed(self.levels), reversed(self.squeezes), strict=True):
            y = unsqueeze(level.inverse(y), factor)  # type: ignore[operator]
            if aside:
                y = merge(y, aside.pop())
        return y

    def initialize(self, x: Tensor) -> Tensor:
        aside: list[Tensor] = []
        for number, level in enumerate(self.levels):
            x = level.initialize(self._enter(x, number, aside))  # type: ignore[operator]
        return self._leave(x, aside)

    def _enter(self, x: Tensor, level: int, aside: list[Tensor]) -> Tensor:
        """What a level starts from; of all but the first, half of the channels go `aside`."""
        if level:
            x, rest = split(x)
            aside.append(rest)
        return squeeze(x, self.squeezes[level]).contiguous(memory_format=torch.channels_last)  # convolutions are quicker so

    def _leave(self, x: Tensor, aside: list[Tensor]) -> Tensor:
        """What the last level made, with all that was set aside, in the shape of the data."""
        for factor in reversed(self.squeezes[1:]):
            x = merge(unsqueeze(x, factor), aside.pop())
        return unsqueeze(x, self.squeezes[0])


def level_shapes(shape: tuple[int, ...], squeezes: Sequence[int]) -> list[tuple[int, ...]]:
    """(C, H, W) after the squeeze of each level; raises ValueError for pictures that a squeeze cannot divide."""
    shapes: list[tuple[int, ...]] = []
    channels, height, width = shape
    for level, factor in enumerate(squeezes):
        if height % factor or width % factor:
            raise ValueError(
                f"squeezes={list(squeezes)} cannot divide {height} x {width} pixels by {factor} (level {level + 1} of pictures of "
                f"{shape[1]} x {shape[2]}); choose factors that divide both sides, or kind=nice, which takes any shape"
            )
        channels, height, width = (channels // 2 if level else channels) * factor**2, height // factor, width // factor
        shapes.append((channels, height, width))
    return shapes


def squeeze(x: Tensor, factor: int) -> Tensor:
    """(B, C, f H, f W) to (B, f^2 C, H, W): each channel becomes the pixels of a square of f x f, row by row."""
    return F.pixel_unshuffle(x, factor) if factor > 1 else x


def unsqueeze(x: Tensor, factor: int) -> Tensor:
    """The inverse of `squeeze`."""
    return F.pixel_shuffle(x, factor) if factor > 1 else x


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """The half of the channels that goes on, and the other half."""
    half = x.shape[1] // 2
    return x[:, :half], x[:, half:]


def merge(on: Tensor, aside: Tensor) -> Tensor:
    """The inverse of `split`."""
    return torch.cat([on, aside], dim=1)
