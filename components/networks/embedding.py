"""Residual networks from images to embedding vectors: a narrow one for CPUs, and the shapes of ResNet-18 and ResNet-50 for GPUs. No losses.

Pre-activation blocks (He et al. 2016, arXiv 1603.05027) with group normalisation (Wu and He 2018, arXiv 1803.08494) in the place of batch
normalisation: without running statistics one worker and many compute the same, and recomputation changes nothing. The last map is not
pooled but read by a linear layer, as ArcFace does (arXiv 1801.07698, section 3.1): where a feature lies matters on aligned pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from components.networks.dropout import Dropout
from components.training.randomness import Draws

GROUP = 16  # channels normalised together


class BasicBlock(nn.Module):
    """x + body(x) with two 3x3 convolutions, (B, C, H, W) to the same shape; the body begins at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_convolution(width, width, 3), *_convolution(width, width, 3, zero=True))

    @staticmethod
    def halving(channels: int, width: int) -> nn.Module:
        """(B, channels, H, W) to (B, width, H / 2, W / 2), rounded up."""
        return nn.Sequential(*_convolution(channels, width, 3, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Bottleneck(nn.Module):
    """The same with 1x1, 3x3 and 1x1 convolutions, a quarter as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = width // 4
        self.body = nn.Sequential(*_convolution(width, inner, 1), *_convolution(inner, inner, 3), *_convolution(inner, width, 1, zero=True))

    @staticmethod
    def halving(channels: int, width: int) -> nn.Module:
        """The same: here a 3x3 convolution would have most of all weights, so the map is averaged and then widened."""
        return nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), *_convolution(channels, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ResidualEmbedder(nn.Module):
    """Images (B, C, H, W) to embeddings (B, D), of any length: each stage halves the map and has `depths` blocks of its width."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        widths: Sequence[int],
        depths: Sequence[int],
        block: type[BasicBlock] | type[Bottleneck],
        embedding_dim: int,
        dropout: float,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.stem = nn.Conv2d(channels, widths[0], 4, 2, 1, bias=False)
        nn.init.kaiming_normal_(self.stem.weight, nonlinearity="relu")
        stages: list[nn.Module] = []
        for number, (stage_width, depth) in enumerate(zip(widths, depths, strict=True)):
            if number:
                stages.append(block.halving(widths[number - 1], stage_width))
            stages += [block(stage_width) for _ in range(depth)]
        self.blocks = nn.Sequential(*stages)
        height, width = height // 2, width // 2
        for _ in widths[1:]:
            height, width = math.ceil(height / 2), math.ceil(width / 2)
        features = widths[-1] * height * width
        self.flat = nn.Sequential(_norm(widths[-1]), nn.ReLU(), nn.Flatten(), nn.LayerNorm(features))
        self.dropout = Dropout(dropout, "embedding")
        self.out = nn.Linear(features, embedding_dim)

    def features(self, images: Tensor) -> Tensor:
        """The last map, flat."""
        return self.flat(self.blocks(self.stem(images)))

    def read(self, features: Tensor, random: Draws | None = None) -> Tensor:
        return self.out(self.dropout(features, random))


def _convolution(channels: int, width: int, kernel: int, stride: int = 1, zero: bool = False) -> list[nn.Module]:
    layer = nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False)
    if zero:
        nn.init.zeros_(layer.weight)
    else:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return [_norm(channels), nn.ReLU(), layer]


def _norm(channels: int) -> nn.GroupNorm:
    """Groups of 16 channels, or one group where that does not divide."""
    return nn.GroupNorm(channels // GROUP if channels % GROUP == 0 else 1, channels)
