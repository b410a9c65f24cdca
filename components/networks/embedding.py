"""Residual networks from images to embedding vectors: a narrow one for CPUs, ResNet-18 and ResNet-50 for GPUs. Shapes, no losses.

After He et al. 2016 (arXiv 1512.03385), with group normalisation (Wu and He 2018, arXiv 1803.08494) where they have batch normalisation:
without running statistics one worker and many compute the same, and recomputation changes nothing. The last map is not pooled but read
by a linear layer, as ArcFace does (arXiv 1801.07698, section 3.1), since where a feature lies matters on aligned pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from components.networks.dropout import Dropout
from components.training.randomness import Draws

GROUP = 16  # channels normalised together


def norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with groups of 16 channels, or one group where that does not divide."""
    return nn.GroupNorm(channels // GROUP if channels % GROUP == 0 else 1, channels)


class BasicBlock(nn.Module):
    """x + body(x) with two 3x3 convolutions; (B, C, H, W) to (B, width, H / stride, W / stride). The body begins at zero."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            norm(channels),
            nn.Conv2d(channels, width, 3, stride, 1, bias=False),
            norm(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            _last_norm(width),
        )
        self.skip = _skip(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.body(x)


class Bottleneck(nn.Module):
    """The same with 1x1, 3x3 and 1x1 convolutions, to (B, 4 width, H / stride, W / stride)."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            norm(channels),
            nn.Conv2d(channels, width, 1, bias=False),
            norm(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            norm(width),
            nn.ReLU(),
            nn.Conv2d(width, 4 * width, 1, bias=False),
            _last_norm(4 * width),
        )
        self.skip = _skip(channels, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.body(x)


class ResidualEmbedder(nn.Module):
    """Images (B, C, H, W) to embeddings (B, D), of any length: a stem, stages of blocks of which each begins by halving, a linear layer."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        widths: Sequence[int],
        depths: Sequence[int],
        block: type[BasicBlock] | type[Bottleneck],
        stem_stride: int,
        embedding_dim: int,
        dropout: float,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.stem = nn.Sequential(nn.Conv2d(channels, widths[0], 3, stem_stride, 1, bias=False), norm(widths[0]), nn.ReLU())
        blocks: list[nn.Module] = []
        before = widths[0]
        for stage_width, depth in zip(widths, depths, strict=True):
            for number in range(depth):
                blocks.append(block(before, stage_width, 2 if number == 0 else 1))
                before = stage_width * block.expansion
        self.blocks = nn.Sequential(*blocks)
        for halvings in [stem_stride // 2] + [1] * len(widths):
            for _ in range(halvings):
                height, width = math.ceil(height / 2), math.ceil(width / 2)
        self.norm = norm(before)
        self.dropout = Dropout(dropout, "embedding")
        self.out = nn.Linear(before * height * width, embedding_dim)

    def forward(self, images: Tensor, random: Draws | None = None) -> Tensor:
        features = self.norm(self.blocks(self.stem(images)))
        return self.out(self.dropout(features.flatten(1), random))


def _last_norm(channels: int) -> nn.GroupNorm:
    last = norm(channels)
    nn.init.zeros_(last.weight)
    return last


def _skip(channels: int, width: int, stride: int) -> nn.Module:
    if stride == 1 and channels == width:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), norm(width))
