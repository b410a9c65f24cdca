"""What autoregressive networks have in common: each pixel's distribution given those before it, in an order of the network's own.

p(x) = prod_k p(x_k | x_1 ... x_{k-1}), where x_k is the k-th pixel in that order. The dense ones (`fvsbn`, `nade`, `made`) know binary
pixels, and any order; they see a picture as a row of numbers that already stand in it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from components.config import Config
from components.errors import UserError
from components.training.randomness import Draws, generator

Pick = Callable[[Tensor, Tensor], Tensor]  # parameters (B, P, ...) and numbers in [0, 1) (B, ...) -> values (B, ...)
Steps = Generator[Tensor, Tensor, None]  # yields the logits (B,) of each pixel in turn, is sent its values (B,)


class AutoregressiveNetwork(nn.Module):
    """Pictures to P parameters of each of their numbers' distribution, given the numbers before it."""

    recomputed: tuple[str, ...] = ()  # patterns of modules for activation checkpointing
    initialized: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))  # saved: a trained network must not begin anew

    def forward(self, x: Tensor, labels: Tensor | None = None, random: Draws | None = None) -> Tensor:
        """(B, C, H, W) and classes (B,) int64, where it knows some, to (B, P, C, H, W); `random` is given in training alone."""
        raise NotImplementedError

    @torch.no_grad()
    def begin(self, parameters: Tensor) -> None:
        """Lets an untrained network say `parameters` (P, C, H, W), those of independent pixels, or what of them its biases can."""
        if not self.initialized:
            self._say(parameters)
            self.initialized.fill_(True)

    def _say(self, parameters: Tensor) -> None:
        raise NotImplementedError

    def draw(self, uniform: Tensor, labels: Tensor | None, given: Tensor | None, known: Tensor | None, pick: Pick) -> Tensor:
        """Draws pixel after pixel: (B, C, H, W), decided by `uniform` (B, C H W), whose columns are pixels in raster order.

        Where `known` (C, H, W) bool says so, a pixel is that of `given` (B, C, H, W): exactly p(rest | known) when all that is known
        comes first in the network's order; else a pixel heeds only what is before it.
        """
        raise NotImplementedError


class OrderedConfig(Config):
    """The order in which pixels are told."""

    order: Literal["raster", "random"] | tuple[int, ...] = Field(
        "raster", description="of the pixels: by rows, drawn by order_seed, or their numbers by rows in the order in which they come"
    )
    order_seed: int = Field(0, ge=0, description="of order=random")

    @field_validator("order", mode="before")
    @classmethod
    def _order_is_known(cls, order: Any) -> Any:
        if order not in ("raster", "random") and not isinstance(order, (list, tuple)):
            raise ValueError("expected raster, random or a list of the pixels' numbers")
        return order

    @model_validator(mode="after")
    def _order_is_a_permutation(self) -> Self:
        if not isinstance(self.order, str) and sorted(self.order) != list(range(len(self.order))):
            raise ValueError(f"order has {len(self.order)} numbers, which are not each of 0 to {len(self.order) - 1} once")
        if self.order_seed and not self._draws_by_seed:
            raise ValueError(f"order_seed={self.order_seed} has no effect with order={_told(self.order)}; leave it out")
        return self

    @property
    def _draws_by_seed(self) -> bool:
        return self.order == "random"

    def require_size(self, shape: tuple[int, int, int]) -> None:
        """Raises UserError when a listed order is not one of pictures (C, H, W)."""
        channels, height, width = shape
        pixels = channels * height * width
        if not isinstance(self.order, str) and len(self.order) != pixels:
            raise UserError(
                f"model.network.order has {len(self.order)} numbers, pictures of {channels} x {height} x {width} have {pixels} pixels; "
                f"give each of 0 to {pixels - 1} once, or order=raster"
            )

    def pixel_order(self, pixels: int) -> Tensor:
        """The pixels (D,) int64 in the order in which they come."""
        if self.order == "raster":
            return torch.arange(pixels)
        if self.order == "random":
            return torch.randperm(pixels, generator=generator(self.order_seed, "order"))
        return torch.tensor(self.order)


class DenseNetwork(AutoregressiveNetwork):
    """Base of networks on rows of binary pixels that stand in the order; each has biases, and for each class others added to them."""

    def __init__(self, config: OrderedConfig, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        config.require_size(shape)
        self.shape, self.pixels = shape, shape[0] * shape[1] * shape[2]
        order = config.pixel_order(self.pixels)
        self.register_buffer("order", order, persistent=False)  # place -> pixel
        self.register_buffer("place", order.argsort(), persistent=False)  # pixel -> place
        self.bias = nn.Parameter(torch.zeros(self.pixels))  # by place
        self.class_bias = nn.Embedding(num_classes, self.pixels) if num_classes else None
        if self.class_bias is not None:
            nn.init.zeros_(self.class_bias.weight)

    order: Tensor
    place: Tensor

    def logits(self, x: Tensor, labels: Tensor | None, random: Draws | None) -> Tensor:
        """Logits (B, D) of pixels x (B, D), both by place; without the biases of `visible_bias`."""
        raise NotImplementedError

    def steps(self, rows: int, labels: Tensor | None) -> Steps:
        """The same one place after another, for `rows` rows."""
        raise NotImplementedError

    def visible_bias(self, labels: Tensor | None) -> Tensor:
        """(D,), or (B, D) with classes, by place."""
        if self.class_bias is None:
            return self.bias
        assert labels is not None, "a network with classes is told them"
        return self.bias + self.class_bias(labels)

    def forward(self, x: Tensor, labels: Tensor | None = None, random: Draws | None = None) -> Tensor:
        logits = self.logits(x.flatten(1)[:, self.order], labels, random) + self.visible_bias(labels)
        return logits[:, self.place].view(len(x), 1, *self.shape)

    def _say(self, parameters: Tensor) -> None:
        self.bias.copy_(parameters.flatten()[self.order])

    @torch.inference_mode()
    def draw(self, uniform: Tensor, labels: Tensor | None, given: Tensor | None, known: Tensor | None, pick: Pick) -> Tensor:
        rows, order = len(uniform), self.order.tolist()
        settled = torch.zeros(self.pixels, dtype=torch.bool) if known is None else known.flatten().cpu()
        there = None if given is None else given.flatten(1)
        x = uniform.new_empty(rows, self.pixels)
        bias = self.visible_bias(labels).expand(rows, -1)
        steps = self.steps(rows, labels)
        logits = next(steps)
        for place, pixel in enumerate(order):
            if settled[pixel]:
                assert there is not None, "what is known is given"
                x[:, pixel] = there[:, pixel]
            else:
                x[:, pixel] = pick((logits + bias[:, place])[:, None], uniform[:, pixel])
            if place + 1 < self.pixels:
                logits = steps.send(x[:, pixel])
        return x.view(rows, *self.shape)


def _told(order: str | tuple[int, ...]) -> str:
    return order if isinstance(order, str) else "a list"
