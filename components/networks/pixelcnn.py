"""PixelCNN (van den Oord et al. 2016, arXiv 1601.06759) and Gated PixelCNN (arXiv 1606.05328): convolutions in raster order.

Both tell every number of a picture from all numbers before it, row by row, from left to right, red before green before blue; PixelCNN from
those in its field of view, in which some on the upper right are missing. Without normalisation over a batch, which would couple pictures.

To draw, a pixel's features are computed at that pixel alone: what earlier ones they need lies in caches (`raster.py`), and what comes from
the rows above is computed for a whole row at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from components.config import Config
from components.networks.autoregressive import AutoregressiveNetwork, Pick
from components.networks.chain import Chain
from components.networks.raster import Mixing, RowsAbove, RowSoFar, colours_of
from components.training.randomness import Draws

Shape = tuple[int, int, int]  # (C, H, W)
Stacks = tuple[Tensor, Tensor]  # vertical and horizontal, (B, width, H, W) each


class RasterConfig(Config):
    """Sizes that both networks have."""

    width: int = Field(32, gt=0, description="channels of a feature map, shared out among the colours")
    blocks: int = Field(6, ge=0, description="after the first layer")
    kernel: int = Field(3, gt=0, description="of a block, in pixels; odd")
    first_kernel: int = Field(7, gt=1, description="of the first layer; odd")
    hidden: int = Field(64, gt=0, description="channels between the two last layers")

    @field_validator("kernel", "first_kernel")
    @classmethod
    def _has_a_centre(cls, size: int) -> int:
        if size % 2 == 0:
            raise ValueError(f"{size} is even, and a kernel with a centre is odd; take {size - 1} or {size + 1}")
        return size


class PixelCNNConfig(RasterConfig):
    """The plain one: residual blocks of 2 `width` channels, `width` of them inside."""

    kind: Literal["pixelcnn"] = "pixelcnn"

    def build(self, shape: Shape, num_classes: int, parameters: int = 1) -> PixelCNN:
        """The network, freshly initialized, for pictures (C, H, W) and `parameters` of each number."""
        return PixelCNN(self, shape, num_classes, parameters)


class GatedPixelCNNConfig(RasterConfig):
    """The one of two stacks, whose field of view has no blind spot."""

    kind: Literal["gated_pixelcnn"] = "gated_pixelcnn"

    def build(self, shape: Shape, num_classes: int, parameters: int = 1) -> GatedPixelCNN:
        """The network, freshly initialized, for pictures (C, H, W) and `parameters` of each number."""
        return GatedPixelCNN(self, shape, num_classes, parameters)


@dataclass
class Cache:
    """What a layer keeps while pictures are drawn."""

    above: Tensor  # rows, for `RowsAbove`
    so_far: Tensor  # places of the row, for `RowSoFar`
    weights: tuple[Tensor, ...]  # visible ones, as places meet them
    bias: Tensor  # (B or 1, channels)
    row: Tensor  # what rows above and biases give to each place of this row, (B, W, channels)


class Layer(nn.Module):
    """A layer or block, as a whole or, with a cache, place by place."""

    def __init__(self, num_classes: int, biased: int) -> None:
        """`biased` channels get a bias, to which each class adds its own: none before training."""
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(biased))
        self.class_bias = nn.Embedding(num_classes, biased) if num_classes else None
        if self.class_bias is not None:
            nn.init.zeros_(self.class_bias.weight)

    above: RowsAbove
    so_far: RowSoFar

    def biases(self, labels: Tensor | None) -> Tensor:
        """(B, channels), or (1, channels) without classes."""
        if self.class_bias is None:
            return self.bias[None]
        assert labels is not None, "a network with classes is told them"
        return self.bias + self.class_bias(labels)

    def new_cache(self, batch: int, width: int, labels: Tensor | None) -> Cache:
        """For pictures of `width`, before the first row."""
        weights = tuple(layer.matrix() for layer in self.modules() if isinstance(layer, RowSoFar))
        above, so_far = self.above.new_cache(batch, width), self.so_far.new_cache(batch, width)
        return Cache(above, so_far, weights, self.biases(labels), above.new_empty(0))


def gate(y: Tensor, dim: int) -> Tensor:
    """tanh(a) sigmoid(b) of the halves a and b of y (eq. 1 of the second paper)."""
    whole = torch.channels_last if dim == 1 and y.ndim == 4 else torch.contiguous_format
    a, b = (half.contiguous(memory_format=whole) for half in y.chunk(2, dim))  # on CPUs far quicker than in stripes
    return a.tanh() * b.sigmoid()


def _plus(y: Tensor, bias: Tensor) -> Tensor:
    """In the precision of y."""
    return y + bias.to(y.dtype)


class GatedBlock(Layer):
    """One step of both stacks: the vertical one sees rows above; the horizontal one its row so far and the vertical one, never reversed.

    The first layer hides from the vertical stack its own row. So all that is in row r of that stack is about rows above r, and the
    horizontal stack may look at it place by place. It sees it after the gate: the paper has it before, at twice the price and no gain.
    """

    def __init__(self, config: GatedPixelCNNConfig, shape: Shape, num_classes: int, first: bool = False) -> None:
        """`first`: it reads pictures, of which it sees earlier numbers alone, and has a bias of each place (section 2.3)."""
        width, colours = config.width, shape[0]
        super().__init__(num_classes, 4 * width)
        size, before = (config.first_kernel, colours) if first else (config.kernel, width)
        seen, made = colours_of(before, colours), colours_of(width, colours)
        self.first, self.width = first, width
        self.places = nn.Parameter(torch.zeros(2 * width, *shape[1:])) if first else None
        self.above = RowsAbove(before, 2 * width, size // 2 + (not first), size, own=not first)
        self.link = nn.Conv2d(width, 2 * width, 1, bias=False)
        self.so_far = RowSoFar(seen, made.repeat(2), size // 2 + 1, own=not first)
        self.outward = Mixing(made, made)

    def forward(self, stacks: Stacks, labels: Tensor | None) -> Stacks:
        vertical, horizontal = stacks
        of_vertical, of_horizontal = (bias[:, :, None, None] for bias in self.biases(labels).chunk(2, 1))
        if self.places is not None:
            of_vertical = of_vertical + self.places
        vertical = gate(_plus(self.above(vertical), of_vertical), 1)
        out = self.outward(gate(_plus(self.so_far(horizontal) + self.link(vertical), of_horizontal), 1))
        return vertical, out if self.first else out + horizontal

    def next_row(self, cache: Cache, vertical: Tensor, number: int) -> Tensor:
        """The vertical stack's next row, which is `number`: (B, W, before) -> (B, W, width)."""
        of_vertical, of_horizontal = cache.bias[:, None].chunk(2, 2)
        if self.places is not None:
            of_vertical = of_vertical + self.places[:, number].T
        vertical = gate(self.above.next_row(cache.above, vertical) + of_vertical, 2)
        cache.row = F.linear(vertical, self.link.weight.flatten(1)) + of_horizontal
        return vertical

    def next_place(self, cache: Cache, horizontal: Tensor, column: int) -> Tensor:
        """The horizontal stack's next place: (B, before) -> (B, width)."""
        to_gates, outward = cache.weights
        self.so_far.put(cache.so_far, horizontal, column)
        y = self.so_far.read(cache.so_far, column, to_gates, cache.row[:, column])
        out = torch.addmm(self.outward.bias, gate(y, 1), outward)
        return out if self.first else out + horizontal


class FirstLayer(Layer):
    """The plain network's first layer: earlier numbers of a picture to 2 width channels, with a bias of each place."""

    def __init__(self, config: PixelCNNConfig, shape: Shape, num_classes: int) -> None:
        size, after, colours = config.first_kernel, 2 * config.width, shape[0]
        super().__init__(num_classes, after)
        self.places = nn.Parameter(torch.zeros(after, *shape[1:]))
        self.above = RowsAbove(colours, after, size // 2, size, own=False)
        self.so_far = RowSoFar(colours_of(colours, colours), colours_of(after, colours), size // 2 + 1, own=False)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        return _plus(self.above(x) + self.so_far(x), self.biases(labels)[:, :, None, None] + self.places)

    def next_row(self, cache: Cache, row_above: Tensor, number: int) -> None:
        """Takes a whole row of pictures, (B, W, C), and gets ready for row `number`."""
        cache.row = self.above.next_row(cache.above, row_above) + (cache.bias[:, None] + self.places[:, number].T)

    def next_place(self, cache: Cache, place: Tensor, column: int) -> Tensor:
        """(B, C) -> (B, 2 width)."""
        self.so_far.put(cache.so_far, place, column)
        return self.so_far.read(cache.so_far, column, cache.weights[0], cache.row[:, column])


class ResidualBlock(Layer):
    """x + body(x): 1x1, then the rows above and the row so far, then 1x1, each after a rectifier (figure 5 of the first paper)."""

    def __init__(self, config: PixelCNNConfig, colours: int, num_classes: int) -> None:
        width, size = config.width, config.kernel
        super().__init__(num_classes, width)
        outer, inner = colours_of(2 * width, colours), colours_of(width, colours)
        self.inward = Mixing(outer, inner)
        self.above = RowsAbove(width, width, size // 2, size, own=False)
        self.so_far = RowSoFar(inner, inner, size // 2 + 1)
        self.outward = Mixing(inner, outer)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        inner = self.inward(x.relu()).relu()
        return x + self.outward(_plus(self.above(inner) + self.so_far(inner), self.biases(labels)[:, :, None, None]).relu())

    def next_row(self, cache: Cache) -> None:
        """Takes the row that has just been drawn from the cache of its places."""
        cache.row = self.above.next_row(cache.above, cache.so_far[:, self.so_far.columns - 1 :]) + cache.bias[:, None]

    def next_place(self, cache: Cache, x: Tensor, column: int) -> Tensor:
        """(B, 2 width) -> (B, 2 width)."""
        inward, middle, outward = cache.weights
        inner = torch.addmm(self.inward.bias, x.relu(), inward).relu()
        self.so_far.put(cache.so_far, inner, column)
        y = self.so_far.read(cache.so_far, column, middle, cache.row[:, column])
        return x + torch.addmm(self.outward.bias, y.relu(), outward)


class PixelHead(nn.Module):
    """Features to P parameters of each number: two 1x1 layers, each after a smooth rectifier.

    Smooth, since all places with nothing around them have equal features: near a kink, a rounding error would turn them all at once.
    """

    def __init__(self, features: int, hidden: int, colours: int, parameters: int) -> None:
        super().__init__()
        self.colours, self.parameters_each = colours, parameters
        between = colours_of(hidden, colours)
        self.inward = Mixing(colours_of(features, colours), between)
        self.outward = Mixing(between, colours_of(colours * parameters, colours))

    def forward(self, x: Tensor) -> Tensor:
        """(B, features, H, W) -> (B, P, C, H, W)."""
        y = F.silu(self.inward(F.silu(x)))
        with torch.autocast(y.device.type, enabled=False):  # bfloat16 would move the mean of a grey value by half a level
            y = self.outward(y.to(self.outward.bias.dtype))
        return y.unflatten(1, (self.colours, self.parameters_each)).transpose(1, 2)

    def place(self, x: Tensor, weights: tuple[Tensor, Tensor], colour: int) -> Tensor:
        """(B, features) -> (B, P) of one colour; `weights` are the two layers' matrices."""
        inward, outward = weights
        own = slice(colour * self.parameters_each, (colour + 1) * self.parameters_each)
        hidden = F.silu(torch.addmm(self.inward.bias, F.silu(x), inward))
        return torch.addmm(self.outward.bias[own], hidden, outward[:, own])


class RasterNetwork(AutoregressiveNetwork):
    """Base of both: a first layer, blocks and a head; `draw` goes through a picture with their caches."""

    recomputed = ("blocks.*",)
    reads_features_above: bool  # whether a row's features are read from the rows below it, too

    def __init__(self, config: RasterConfig, shape: Shape, features: int, parameters: int) -> None:
        super().__init__()
        self.shape = shape
        self.head = PixelHead(features, config.hidden, shape[0], parameters)

    first: GatedBlock | FirstLayer
    blocks: Chain

    def _say(self, parameters: Tensor) -> None:
        """Takes the mean over all places, which share the last layer's biases."""
        self.head.outward.bias.copy_(parameters.mean((2, 3)).T.flatten())

    def layers(self) -> list[Layer]:
        """The first layer and the blocks."""
        return [self.first, *self.blocks]

    def next_row(self, caches: list[Cache], row_above: Tensor, number: int) -> None:
        """Lets all layers take a row of pictures, (B, W, C), and get ready for the places of the next, row `number`."""
        raise NotImplementedError

    @torch.inference_mode()
    def draw(self, uniform: Tensor, labels: Tensor | None, given: Tensor | None, known: Tensor | None, pick: Pick) -> Tensor:
        (colours, _, width), batch = self.shape, len(uniform)
        uniform = uniform.view(batch, *self.shape)
        x, free = torch.zeros_like(uniform), torch.ones(self.shape, dtype=torch.bool)
        if known is not None:
            assert given is not None, "what is known is given"
            x, free = torch.where(known, given, x), ~known.cpu()
        caches = [layer.new_cache(batch, width, labels) for layer in self.layers()]
        weights = self.head.inward.matrix(), self.head.outward.matrix()
        row_above = x.new_zeros(batch, width, colours)
        for row, columns in enumerate(self._columns(free)):
            self.next_row(caches, row_above, row)
            for column in range(columns):
                for colour in range(colours):
                    wanted = bool(free[colour, row, column])
                    if wanted or colour == colours - 1:  # the last colour's turn leaves the features as later places see them
                        features = self._next_place(caches, x[:, :, row, column], column)
                    if wanted:
                        x[:, colour, row, column] = pick(self.head.place(features, weights, colour), uniform[:, colour, row, column])
                self.first.so_far.put(caches[0].so_far, x[:, :, row, column], column)  # as later places see it: the last colour, too
            row_above = x[:, :, row].transpose(1, 2)
        return x

    def _next_place(self, caches: list[Cache], place: Tensor, column: int) -> Tensor:
        for layer, cache in zip(self.layers(), caches, strict=True):
            place = layer.next_place(cache, place, column)  # type: ignore[operator]
        return place

    def _columns(self, free: Tensor) -> list[int]:
        """Of each row down to the last with a free number, how many places must be gone through; `free` is (C, H, W) bool."""
        width = self.shape[2]
        ends = [max(row.nonzero()[:, 0].tolist(), default=-1) + 1 for row in free.any(0)]
        rows = max((number + 1 for number, end in enumerate(ends) if end), default=0)
        return [width if self.reads_features_above and row + 1 < rows else end for row, end in enumerate(ends[:rows])]


class GatedPixelCNN(RasterNetwork):
    """Two stacks of gated convolutions; the horizontal one, which is residual, tells the pixels."""

    reads_features_above = False

    def __init__(self, config: GatedPixelCNNConfig, shape: Shape, num_classes: int, parameters: int) -> None:
        super().__init__(config, shape, config.width, parameters)
        self.first = GatedBlock(config, shape, num_classes, first=True)
        self.blocks = Chain(*(GatedBlock(config, shape, num_classes) for _ in range(config.blocks)))

    def forward(self, x: Tensor, labels: Tensor | None = None, random: Draws | None = None) -> Tensor:
        vertical, horizontal = (stack.contiguous(memory_format=torch.channels_last) for stack in self.first((x, x), labels))
        return self.head(self.blocks((vertical, horizontal), labels)[1])

    def next_row(self, caches: list[Cache], row_above: Tensor, number: int) -> None:
        vertical = row_above
        for layer, cache in zip(self.layers(), caches, strict=True):
            vertical = layer.next_row(cache, vertical, number)  # type: ignore[operator]


class PixelCNN(RasterNetwork):
    """One stack of residual blocks."""

    reads_features_above = True

    def __init__(self, config: PixelCNNConfig, shape: Shape, num_classes: int, parameters: int) -> None:
        super().__init__(config, shape, 2 * config.width, parameters)
        self.first = FirstLayer(config, shape, num_classes)
        self.blocks = Chain(*(ResidualBlock(config, shape[0], num_classes) for _ in range(config.blocks)))

    def forward(self, x: Tensor, labels: Tensor | None = None, random: Draws | None = None) -> Tensor:
        return self.head(self.blocks(self.first(x, labels).contiguous(memory_format=torch.channels_last), labels))

    def next_row(self, caches: list[Cache], row_above: Tensor, number: int) -> None:
        assert isinstance(self.first, FirstLayer)
        self.first.next_row(caches[0], row_above, number)
        for block, cache in zip(self.blocks, caches[1:], strict=True):
            block.next_row(cache)  # type: ignore[operator]
