"""MADE: a masked autoencoder for distribution estimation (Germain et al. 2015, arXiv 1502.03509).

Every unit has a degree: inputs 1 ... D by place, hidden units 1 ... D - 1, the output of place i has i. A hidden unit sees units of at most
its degree, an output those of a smaller one, so an output depends on earlier pixels alone. Degrees are spread evenly, so that no pixel is
left unconnected however few the units are.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from components.networks.autoregressive import DenseNetwork, OrderedConfig, Steps
from components.training.randomness import Draws, generator


class MADEConfig(OrderedConfig):
    """Widths, and how many masks training takes in turn; likelihoods and samples are those of the first."""

    kind: Literal["made"] = "made"
    hidden: tuple[int, ...] = Field((1000,), min_length=1, description="units of each hidden layer")
    direct: bool = Field(True, description="connect outputs with earlier pixels directly, too")
    masks: int = Field(1, gt=0, description="masks, which steps take in turn")
    order_agnostic: bool = Field(False, description="each further mask has an order of its own, drawn by order_seed")

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        if min(self.hidden) < 1:
            raise ValueError(f"hidden={self.hidden} must have at least one unit in each layer")
        if self.order_agnostic and self.masks == 1:
            raise ValueError("order_agnostic=true has no effect with masks=1; raise masks, or leave it out")
        return self

    @property
    def _draws_by_seed(self) -> bool:
        return self.order == "random" or self.masks > 1

    def build(self, shape: tuple[int, int, int], num_classes: int, parameters: int = 1) -> MADE:
        """The network, freshly initialized, for pictures (C, H, W)."""
        assert parameters == 1, "of binary pixels"
        return MADE(self, shape, num_classes)

    def degrees(self, pixels: int) -> list[list[Tensor]]:
        """Of each mask, the degrees of the inputs and of each hidden layer; the first mask's all rise."""
        even = [torch.linspace(1, max(1, pixels - 1), width).round().long() for width in self.hidden]
        found = [[torch.arange(1, pixels + 1), *even]]
        for number in range(1, self.masks):
            draw = generator(self.order_seed, "mask", number)
            inputs = torch.randperm(pixels, generator=draw) + 1 if self.order_agnostic else found[0][0]
            found.append([inputs, *(each[torch.randperm(len(each), generator=draw)] for each in even)])
        return found


class MaskedLinear(nn.Module):
    """x (W * mask)^T + b: `weight` is multiplied each time, so that no optimizer revives what the mask hides."""

    def __init__(self, before: int, after: int, bias: bool = True) -> None:
        super().__init__()
        drawn = nn.Linear(before, after)
        self.weight = drawn.weight
        self.bias = drawn.bias if bias else None

    def forward(self, x: Tensor, sees: Tensor, shift: Tensor | None = None, relu: bool = False) -> Tensor:
        """(B, I) -> (B, O), where `sees` (O, I) bool; adds `shift` (B, O) before the rectifier."""
        y = F.linear(x, self.weight * sees, self.bias)
        y = y if shift is None else y + shift
        return y.relu() if relu else y

    def part(self, x: Tensor, units: slice) -> Tensor:
        """Of these units, which see the first inputs alone, x (B, <= I): (B, units)."""
        bias = None if self.bias is None else self.bias[units]
        return F.linear(x, self.weight[units, : x.shape[1]], bias)


class MADE(DenseNetwork):
    """A masked multi-layer perceptron with rectifiers."""

    def __init__(self, config: MADEConfig, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(config, shape, num_classes)
        widths = (self.pixels, *config.hidden)
        self.masks = config.masks
        self.recomputed = ("hidden.*",) if len(config.hidden) > 1 else ()  # of one layer nothing is kept but what the output needs
        self.hidden = nn.ModuleList(MaskedLinear(before, after) for before, after in zip(widths, config.hidden, strict=False))
        self.class_hidden = nn.Embedding(num_classes, config.hidden[0]) if num_classes else None
        self.output = MaskedLinear(widths[-1], self.pixels, bias=False)
        self.direct = MaskedLinear(self.pixels, self.pixels, bias=False) if config.direct else None
        for number, degrees in enumerate(config.degrees(self.pixels)):
            for layer, values in enumerate(degrees):
                self.register_buffer(f"degrees_{number}_{layer}", values.to(torch.int32), persistent=False)
        zeros = [self.output, *(each for each in (self.direct, self.class_hidden) if each is not None)]
        for each in zeros:  # so that an untrained network says its biases alone
            nn.init.zeros_(each.weight)

    def degrees(self, mask: int) -> list[Tensor]:
        """Of the inputs and of each hidden layer."""
        return [self.get_buffer(f"degrees_{mask}_{layer}") for layer in range(len(self.hidden) + 1)]

    def logits(self, x: Tensor, labels: Tensor | None, random: Draws | None) -> Tensor:
        return self.logits_of_mask(x, labels, random.step % self.masks if random is not None else 0)

    def parameters_of_mask(self, x: Tensor, labels: Tensor | None, mask: int) -> Tensor:
        """What `forward` gives with mask number `mask`, in the same order of pixels."""
        logits = self.logits_of_mask(x.flatten(1)[:, self.order], labels, mask) + self.visible_bias(labels)
        return logits[:, self.place].view(len(x), 1, *self.shape)

    def logits_of_mask(self, x: Tensor, labels: Tensor | None, mask: int) -> Tensor:
        """`logits` with mask number `mask`."""
        degrees = self.degrees(mask)
        inputs, last = degrees[0][:, None], degrees[-1]
        shift = self.class_hidden(labels) if self.class_hidden is not None else None
        h = x
        for layer, below, own in zip(self.hidden, degrees, degrees[1:], strict=False):
            h = layer(h, own[:, None] >= below, shift, relu=True)
            shift = None
        y = self.output(h, inputs > last)
        if self.direct is not None:
            y = y + self.direct(x, inputs > degrees[0])
        return y

    def steps(self, rows: int, labels: Tensor | None) -> Steps:
        """Computes a hidden unit once, when the last pixel that it sees is there, so that a whole picture costs one pass.

        With the first mask degrees rise: the units that a pixel completes lie side by side, and so does all that they see.
        """
        counts = [torch.arange(self.pixels + 1), *(self._units_by_degree(each) for each in self.degrees(0)[1:])]
        ends = [each.tolist() for each in counts]  # of inputs and of each layer: how many have a degree of at most 0, 1, ..., D
        values = [self.bias.new_zeros(rows, end[-1]) for end in ends]
        shift = self.class_hidden(labels) if self.class_hidden is not None else None
        logits = self.bias.new_zeros(rows)
        for place in range(self.pixels):
            values[0][:, place] = yield logits
            degree = place + 1
            for number, layer in enumerate(self.hidden):
                assert isinstance(layer, MaskedLinear)
                new, seen = slice(ends[number + 1][place], ends[number + 1][degree]), ends[number][degree]
                if new.start < new.stop:
                    y = layer.part(values[number][:, :seen], new)
                    values[number + 1][:, new] = (y + shift[:, new] if shift is not None and number == 0 else y).relu()
            if degree < self.pixels:
                own = slice(degree, degree + 1)
                logits = self.output.part(values[-1][:, : ends[-1][degree]], own)[:, 0]
                if self.direct is not None:
                    logits = logits + self.direct.part(values[0][:, :degree], own)[:, 0]

    def _units_by_degree(self, degrees: Tensor) -> Tensor:
        """Of rising degrees, how many are at most 0, 1, ..., D."""
        return torch.searchsorted(degrees.cpu(), torch.arange(self.pixels + 1, dtype=degrees.dtype), right=True)
