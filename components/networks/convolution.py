"""Convolutional networks for small images: residual encoder and decoder, patch discriminator, classifier. Shapes, no losses.

Without normalisation layers: at these depths zero-initialised residual branches train as well, and on CPUs a normalisation costs as much
time as a convolution. No layer keeps running statistics, so recomputation and data parallelism cannot change them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """x + body(x) with two 3x3 convolutions in `body`, the second zero-initialised; (B, C, H, W) to the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        last = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(last.weight)
        self.body = nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), last)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Encoder(nn.Module):
    """Images (B, C, H, W) to vectors (B, D, H / f, W / f), f = 2 ** len(widths): strided 4x4 convolutions, residual blocks, 1x1."""

    def __init__(self, image_channels: int, widths: Sequence[int], num_blocks: int, code_dim: int) -> None:
        super().__init__()
        down: list[nn.Module] = []
        for before, width in zip((image_channels, *widths), widths, strict=False):
            down += [nn.Conv2d(before, width, 4, stride=2, padding=1), nn.ReLU()]
        self.down = nn.Sequential(*down[:-1])  # the first residual block begins with the nonlinearity
        self.blocks = nn.Sequential(*(ResidualBlock(widths[-1]) for _ in range(num_blocks)))
        self.out = nn.Sequential(nn.ReLU(), nn.Conv2d(widths[-1], code_dim, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.out(self.blocks(self.down(images)))


class Decoder(nn.Module):
    """Vectors (B, D, h, w) to images (B, C, h f, w f), f = 2 ** len(widths), unclamped: the encoder's mirror image."""

    def __init__(self, image_channels: int, widths: Sequence[int], num_blocks: int, code_dim: int) -> None:
        super().__init__()
        coarse_to_fine = tuple(reversed(widths))
        self.inward = nn.Conv2d(code_dim, coarse_to_fine[0], 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(coarse_to_fine[0]) for _ in range(num_blocks)))
        up: list[nn.Module] = [nn.ReLU()]
        for width, after in pairwise(coarse_to_fine):
            up += [nn.ConvTranspose2d(width, after, 4, stride=2, padding=1), nn.ReLU()]
        self.up = nn.Sequential(*up)
        self.last = nn.ConvTranspose2d(coarse_to_fine[-1], image_channels, 4, stride=2, padding=1)

    def forward(self, vectors: Tensor) -> Tensor:
        return self.last(self.up(self.blocks(self.inward(vectors))))


class PatchDiscriminator(nn.Module):
    """Images (B, C, H, W) to a logit per overlapping patch, (B, 1, H / f, W / f), f = 2 ** len(widths); Isola 2017, arXiv 1611.07004."""

    def __init__(self, image_channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in zip((image_channels, *widths), widths, strict=False):
            layers += [nn.Conv2d(before, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class FeatureStages(nn.Module):
    """Images (B, C, H, W) to feature maps, each half the size of the one before: a strided 4x4 convolution and a residual block each."""

    def __init__(self, image_channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            nn.Conv2d(before, width, 4, stride=2, padding=1) for before, width in zip((image_channels, *widths), widths, strict=False)
        )
        self.blocks = nn.ModuleList(ResidualBlock(width) for width in widths)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps, x = [], images
        for down, block in zip(self.down, self.blocks, strict=True):
            x = block(down(x)).relu()
            maps.append(x)
        return maps
