"""Generator and critic of adversarial families, for pictures and for points. No losses; a discriminator is a critic whose score is a logit.

Pictures: the strided and transposed 4x4 convolutions of DCGAN (Radford et al. 2016, arXiv 1511.06434). Points: multilayer perceptrons.
The generator normalises over all of one picture (GroupNorm of one group) where DCGAN normalises over the batch: nothing then depends on
which rows share a batch, on how many workers there are or on a mode, and recomputation changes nothing. The critic has no normalisation,
so that a penalty on the gradient of one row is about that row alone.

A class enters the generator as an embedding beside the noise and the critic as a projection (Miyato and Koyama 2018, arXiv 1802.05637).

    networks = AdversarialNetworks(shape=(1, 28, 28), num_classes=10)
    scores = Critic(networks)(Generator(networks)(z, labels), labels)
"""

from __future__ import annotations

from itertools import pairwise
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from components.config import Config

SLOPE = 0.2  # of the critic's leaky ReLUs
SMALLEST = 8  # sides are halved while both are even and at least this long
MOST_WIDER = 8  # times, however often a picture is halved: as in DCGAN for 64 x 64 pixels
HIDDEN_LAYERS = 3  # of a perceptron


class AdversarialNetworks(Config):
    """Sizes of both networks. The data decides `shape` and `num_classes`."""

    shape: tuple[int, ...] = Field((1, 28, 28), description="of one sample: (channels, height, width) of a picture, (numbers,) of a point")
    num_classes: int = Field(10, ge=0, description="0: no classes")
    latent: int = Field(64, gt=0, description="numbers of the noise that becomes one sample")
    width: int = Field(64, gt=0, description="channels at the first halving, doubled at the next three; of points, of every layer")

    @model_validator(mode="after")
    def _shape_fits(self) -> Self:
        if len(self.shape) not in (1, 3) or min(self.shape) < 1:
            raise ValueError(f"shape={self.shape} is neither (channels, height, width) of a picture nor (numbers,) of a point")
        if self.is_picture and not self.halvings:
            raise ValueError(
                f"shape={self.shape}: pictures are halved in both networks, which needs an even height and width of at least {SMALLEST};"
                " prepare them in such a size"
            )
        return self

    @property
    def is_picture(self) -> bool:
        return len(self.shape) == 3

    @property
    def halvings(self) -> int:
        """How often a picture is halved: 28 -> 14 -> 7, 32 -> 16 -> 8 -> 4."""
        (_, height, width), times = self.shape, 0
        while min(height, width) >= SMALLEST and height % 2 == 0 and width % 2 == 0:
            height, width, times = height // 2, width // 2, times + 1
        return times

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels after each halving."""
        return tuple(self.width * min(2**level, MOST_WIDER) for level in range(self.halvings))

    @property
    def coarse(self) -> tuple[int, int]:
        """Height and width of a picture after all halvings."""
        _, height, width = self.shape
        return height >> self.halvings, width >> self.halvings


class Generator(nn.Module):
    """Noise and class to samples."""

    def __init__(self, networks: AdversarialNetworks) -> None:
        super().__init__()
        n = networks
        self.classes = nn.Embedding(n.num_classes, n.latent) if n.num_classes else None
        inputs = n.latent * (2 if n.num_classes else 1)
        self.blocks = nn.Sequential(*(_picture_blocks(inputs, n) if n.is_picture else _point_blocks(inputs, n.width)))
        self.out: nn.Module = Doubling(n.width, n.shape[0]) if n.is_picture else nn.Linear(n.width, n.shape[0])
        self.squash = torch.tanh if n.is_picture else nn.Identity()

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """z (B, latent), labels (B,) int64, None without classes -> (B, *shape): pictures in [-1, 1], points as they come."""
        x = z if self.classes is None else torch.cat([z, self.classes(labels)], 1)
        return self.squash(self.out(self.blocks(x)))


class Critic(nn.Module):
    """Samples and class to one score each: w . h + e_label . h + b of the features h."""

    def __init__(self, networks: AdversarialNetworks) -> None:
        super().__init__()
        n = networks
        if n.is_picture:
            self.blocks = nn.Sequential(*(Halving(before, after) for before, after in pairwise((n.shape[0], *n.widths))))
            height, width = n.coarse
            features = n.widths[-1] * height * width
        else:
            self.blocks, features = nn.Sequential(*_point_blocks(n.shape[0], n.width)), n.width
        self.out = nn.Linear(features, 1)
        self.classes = nn.Embedding(n.num_classes, features) if n.num_classes else None
        if self.classes is not None:
            nn.init.zeros_(self.classes.weight)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """x (B, *shape), labels (B,) int64, None without classes -> scores (B,)."""
        x = self.blocks(x)
        features = x.permute(0, 2, 3, 1).flatten(1) if x.dim() == 4 else x  # as they lie in memory
        scores = self.out(features)[:, 0]
        return scores if self.classes is None else scores + (self.classes(labels) * features).sum(1)


class Halving(nn.Module):
    """(B, before, H, W) to (B, after, H / 2, W / 2): a strided 4x4 convolution and a leaky ReLU."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 4, stride=2, padding=1)
        _initialize(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.conv(x).contiguous(memory_format=torch.channels_last), SLOPE)


class Coarse(nn.Module):
    """(B, inputs) to maps (B, channels, H, W)."""

    def __init__(self, inputs: int, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.linear = nn.Linear(inputs, size[0] * size[1] * channels)
        _initialize(self.linear)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).unflatten(1, (*self.size, -1)).permute(0, 3, 1, 2)  # channels last in memory


class Doubling(nn.Module):
    """(B, before, H, W) to (B, after, 2 H, 2 W): normalisation over the whole picture, ReLU, a transposed 4x4 convolution."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, before)
        self.conv = nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)
        nn.init.normal_(self.conv.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.norm(x)))


class Dense(nn.Module):
    """(B, before) to (B, after): a linear layer and a leaky ReLU."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.linear = nn.Linear(before, after)
        _initialize(self.linear)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.linear(x), SLOPE)


def _picture_blocks(inputs: int, networks: AdversarialNetworks) -> list[nn.Module]:
    widths = networks.widths[::-1]
    return [Coarse(inputs, widths[0], networks.coarse), *(Doubling(before, after) for before, after in pairwise(widths))]


def _point_blocks(inputs: int, width: int) -> list[nn.Module]:
    return [Dense(before, width) for before in (inputs, *(width,) * (HIDDEN_LAYERS - 1))]


def _initialize(layer: nn.Linear | nn.Conv2d) -> None:
    """Variance kept from layer to layer (He et al. 2015, arXiv 1502.01852)."""
    nn.init.kaiming_normal_(layer.weight, SLOPE)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
