"""The U-Net of denoising diffusion (Ho et al. 2020, arXiv 2006.11239, appendix B): pictures and a noise level to pictures.

Residual blocks of group norm and SiLU at each resolution, self-attention at some, skips from the way down to the way up. The weights are
those of diffusers' `UNet2DModel` under other names (`components/families/diffusers_export.py`).

    network = UNetConfig(widths=(32, 64), attention=(False, True)).build(image_channels=1, num_classes=10)
    eps = network(x_t, steps, labels)
"""

from __future__ import annotations

import math
from typing import Self, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from components.config import Config
from components.functional.attention import self_attention
from components.networks.dropout import Dropout
from components.training.randomness import Draws

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)

EPS = 1e-5  # of every group norm
TIME_SCALE = 4  # widths[0] times this is the width of time and class embeddings
LONGEST_PERIOD = 10_000.0  # over 2 pi, in steps
FEW_PLACES = 256  # of a batch's pictures, for which it does not pay to make another kernel


class UNetConfig(Config):
    """Shape of a U-Net. Pictures are halved between two of `widths`, and once more for each doubling of `patch`."""

    widths: tuple[int, ...] = Field((32, 64, 64), min_length=1, description="channels at each resolution, fine to coarse")
    blocks: int = Field(2, gt=0, description="residual blocks at each resolution on the way down; one more on the way up")
    attention: tuple[bool, ...] = Field((False, False, True), description="whether blocks attend, for each of widths")
    head_width: int | None = Field(None, gt=0, description="channels of an attention head; none is one head of all")
    groups: int = Field(2, gt=0, description="of each group norm; on a CPU it is fastest where a group has a multiple of 16 channels")
    dropout: float = Field(0.0, ge=0, lt=0.99, description="in residual blocks, in training")
    patch: int = Field(1, gt=0, description="patch x patch pixels become channels first: 2 costs a quarter of the time")

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if len(self.attention) != len(self.widths):
            raise ValueError(f"attention={self.attention} has {len(self.attention)} values, expected one for each of widths={self.widths}")
        for width in self.widths:
            if width < 1 or width % self.groups:
                raise ValueError(f"widths={self.widths}: {width} is no multiple of groups={self.groups}")
            if self.head_width is not None and width % self.head_width:
                raise ValueError(f"widths={self.widths}: {width} is no multiple of head_width={self.head_width}")
        if self.widths[0] % 2 or self.widths[0] < 4:
            raise ValueError(f"widths={self.widths}: the first is {self.widths[0]}, expected an even number of at least 4")
        return self

    @property
    def multiple(self) -> int:
        """Height and width of a picture must be multiples of this."""
        return self.patch * 2 ** (len(self.widths) - 1)

    def require_size(self, height: int, width: int) -> None:
        """Raises ValueError when pictures of this size cannot be cut in patches and halved between resolutions."""
        for size in (height, width):
            if size < 1 or size % self.multiple:
                raise ValueError(
                    f"image_size=({height}, {width}): {size} is no multiple of {self.multiple}, which is patch={self.patch} halved"
                    f" {len(self.widths) - 1} times between the {len(self.widths)} widths; use fewer widths or a smaller patch"
                )

    def build(self, image_channels: int, num_classes: int = 0) -> UNet:
        """The network, freshly initialized."""
        c = self
        return UNet(image_channels, c.widths, c.blocks, c.attention, c.head_width, c.groups, num_classes, c.dropout, c.patch)


def time_embedding(steps: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of (B,) times at width / 2 frequencies from 1 to 1e-4: (B, width) float32."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32, device=steps.device) * -math.log(LONGEST_PERIOD) / (half - 1))
    angles = steps.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


class Convolution(nn.Conv2d):
    """`nn.Conv2d` of odd size that keeps, or with `stride` 2 halves, height and width."""

    bias: Tensor

    def __init__(self, before: int, after: int, size: int = 3, stride: int = 1) -> None:
        super().__init__(before, after, size, stride, padding=size // 2)
        nn.init.xavier_uniform_(self.weight)  # appendix B's code: uniform, variance 2 / (inputs + outputs)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """Adds `shift` (B, after) or (1, after) to all places."""
        if shift is None:
            return self._conv_forward(x, self.weight, self.bias)
        if shift.shape[0] == 1:
            return self._conv_forward(x, self.weight, self.bias + shift[0])
        return self._conv_forward(x, self.weight, self.bias).add_(shift[:, :, None, None])


class Attention(nn.Module):
    """x + attention(norm(x)) over all places of a picture; the last layer is zero-initialised."""

    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(groups, width, EPS)
        self.inward = nn.Linear(width, 3 * width)
        self.outward = nn.Linear(width, width)
        for part in self.inward.weight.data.chunk(3):
            nn.init.xavier_uniform_(part)
        nn.init.zeros_(self.inward.bias)
        _zero(self.outward)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        places = self.norm(x).flatten(2).transpose(1, 2)  # (B, H W, C)
        attended = self.outward(self_attention(self.inward(places), self.heads))
        return x + attended.transpose(1, 2).view(x.shape)


class ResidualBlock(nn.Module):
    """Two convolutions, each after group norm and SiLU, added to their input, with a shift by time and class between them.

    With `skip` channels, a second input of that many is laid beside the first. `name` is unique in the model.
    """

    def __init__(self, before: int, after: int, groups: int, heads: int, dropout: float, name: str, skip: int = 0) -> None:
        """`heads` of 0 is no attention after the block."""
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, before + skip, EPS)
        self.conv1 = Convolution(before + skip, after)
        self.norm2 = nn.GroupNorm(groups, after, EPS)
        self.dropout = Dropout(dropout, name)
        self.conv2 = _zero(Convolution(after, after))
        self.shortcut = Convolution(before + skip, after, 1) if before + skip != after else nn.Identity()
        self.attention = Attention(after, heads, groups) if heads else nn.Identity()

    def forward(self, x: Tensor, shift: Tensor, random: Draws | None, skip: Tensor | None = None) -> Tensor:
        """x (B, before, H, W), shift (B, after) or (1, after) for all rows, skip (B, skip, H, W) -> (B, after, H, W)."""
        if skip is not None:
            x = torch.cat([x, skip], 1)
        hidden = _activate(self.norm1(x))
        hidden = self.conv1(hidden, shift)
        hidden = self.dropout(_activate(self.norm2(hidden)).permute(0, 2, 3, 1), random)  # in the order in which it lies
        return self.attention(self.conv2(hidden.permute(0, 3, 1, 2)).add_(self.shortcut(x)))


class Grow(nn.Module):
    """Twice the size by repetition of pixels, then a 3x3 convolution.

    Repeated pixels meet neighbouring weights: both are one transposed convolution whose 4x4 kernel holds their sums, at 4/9 of the price.
    """

    sums: Tensor  # (9, 16): which of a kernel's 3x3 weights each of the 4x4 sums, seen from the input

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = Convolution(width, width)
        side = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
        self.register_buffer("sums", torch.kron(side, side).T.contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2 H, 2 W)."""
        if x.numel() < FEW_PLACES * x.shape[1]:
            return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        kernel = (self.conv.weight.flatten(2) @ self.sums).unflatten(2, (4, 4)).transpose(0, 1)
        return F.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)


class UNet(nn.Module):
    """Pictures, their noise level and perhaps their class to a prediction of the pictures' shape, 0 before training."""

    def __init__(
        self,
        image_channels: int,
        widths: tuple[int, ...],
        blocks: int,
        attention: tuple[bool, ...],
        head_width: int | None,
        groups: int,
        num_classes: int = 0,
        dropout: float = 0.0,
        patch: int = 1,
    ) -> None:
        super().__init__()
        self.image_channels, self.num_classes, self.patch = image_channels, num_classes, patch
        self.widths, self.blocks, self.attention, self.head_width = widths, blocks, attention, head_width
        self.conv_in = Convolution(image_channels * patch**2, widths[0])
        self._embed(widths[0])
        self._build_blocks(groups, dropout)
        self.norm_out = nn.GroupNorm(groups, widths[0], EPS)
        self.conv_out = _zero(Convolution(widths[0], image_channels * patch**2))

    def _embed(self, width: int) -> None:
        inner = TIME_SCALE * width
        self.time_in, self.time_out = _linear(width, inner), _linear(inner, inner)
        self.class_embedding = nn.Embedding(self.num_classes + 1, inner) if self.num_classes else None

    def _build_blocks(self, groups: int, dropout: float) -> None:
        def block(place: str, level: int, before: int, skip: int = 0, attends: bool = True) -> ResidualBlock:
            width = self.widths[level]
            heads = width // (self.head_width or width) if attends else 0
            return ResidualBlock(before, width, groups, heads, dropout, place, skip)

        levels, skips, width = range(len(self.widths)), [self.widths[0]], self.widths[0]
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        for level in levels:
            if level:
                self.shrink.append(Convolution(width, width, stride=2))
                skips.append(width)
            for _ in range(self.blocks):
                self.down.append(block(f"down.{len(self.down)}", level, width, attends=self.attention[level]))
                width = self.widths[level]
                skips.append(width)
        self.middle = nn.ModuleList([block("middle.0", -1, width), block("middle.1", -1, width, attends=False)])
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for level in reversed(levels):
            for _ in range(self.blocks + 1):
                self.up.append(block(f"up.{len(self.up)}", level, width, skips.pop(), self.attention[level]))
                width = self.widths[level]
            if level:
                self.grow.append(Grow(width))
        outputs = [b.conv1.out_channels for b in self.residual_blocks()]
        self.shift = _linear(self.time_out.out_features, sum(outputs))  # of all blocks in one product
        for part in self.shift.weight.data.split(outputs):
            nn.init.xavier_uniform_(part)

    def residual_blocks(self) -> list[ResidualBlock]:
        """All of them, in the order of their rows in `shift`."""
        return [*self.down, *self.middle, *self.up]

    def forward(self, x: Tensor, steps: Tensor, labels: Tensor | None = None, random: Draws | None = None) -> Tensor:
        """x (B, C, H, W), steps (B,) or () for all rows, in [0, 1000), labels (B,) int64 -> (B, C, H, W).

        With classes there are num_classes + 1 labels: the last, and None, is "no class". `random` turns dropout on.
        """
        if self.patch > 1:
            x = F.pixel_unshuffle(x, self.patch)
        shifts = iter(self._shifts(steps, labels).split([block.conv1.out_channels for block in self.residual_blocks()], 1))
        # The second time for one channel alone, which lies the same in both ways.
        x = self.conv_in(x.contiguous(memory_format=torch.channels_last)).contiguous(memory_format=torch.channels_last)
        skips = [x]
        for number, block in enumerate(self.down):
            if number and number % self.blocks == 0:
                x = self.shrink[number // self.blocks - 1](x)
                skips.append(x)
            x = block(x, next(shifts), random)
            skips.append(x)
        for block in self.middle:
            x = block(x, next(shifts), random)
        for number, block in enumerate(self.up):
            if number and number % (self.blocks + 1) == 0:
                x = self.grow[number // (self.blocks + 1) - 1](x)
            x = block(x, next(shifts), random, skips.pop())
        x = self.conv_out(_activate(self.norm_out(x)))
        return F.pixel_shuffle(x, self.patch) if self.patch > 1 else x

    def _shifts(self, steps: Tensor, labels: Tensor | None) -> Tensor:
        """(B, all widths) or (1, all widths), those of the residual blocks side by side: time and class through one hidden layer."""
        embedded = time_embedding(steps.reshape(-1), self.time_in.in_features).to(self.time_in.weight.dtype)
        embedded = self.time_out(F.silu(self.time_in(embedded)))
        if self.class_embedding is not None:
            none = self.num_classes
            embedded = embedded + (self.class_embedding.weight[none] if labels is None else self.class_embedding(labels))
        else:
            assert labels is None, "a network without classes takes no labels"
        return self.shift(F.silu(embedded))


def _activate(x: Tensor) -> Tensor:
    return F.silu(x, inplace=not torch.is_grad_enabled())


def _linear(before: int, after: int) -> nn.Linear:
    layer = nn.Linear(before, after)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _zero(layer: Layer) -> Layer:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer
