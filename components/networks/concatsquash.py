"""Fields of continuous flows: a velocity that depends on time, and its derivative along given tangents, in one pass.

Each layer is y = W x sigmoid(g t + c) + s t + b, "concatsquash" (Grathwohl et al. 2019, arXiv 1810.01367, appendix B.1), and what follows
is smooth, since a solver needs derivatives. Tangents ride along as more rows, through W alone: an exact trace costs one pass of D + 1 times
the rows, and neither it nor the estimate needs a second derivative in training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["tanh", "softplus"]
# Of each activation itself and its derivative, from its argument and its value.
ACTIVATIONS: dict[Activation, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "tanh": (torch.tanh, lambda argument, value: 1 - value.square()),
    "softplus": (F.softplus, lambda argument, value: argument.sigmoid()),
}


class ConcatSquashField(nn.Module):
    """x (B, C) of points or (B, C, H, W) of pictures to a velocity of the same shape, through hidden layers of `widths`.

    Layers are linear, of pictures 3 x 3 convolutions. What the last adds begins at zero, so that the flow begins as the identity. Computes
    in the precision of x, under autocast too: a solver cannot meet a tolerance that the field's rounding hides.
    """

    def __init__(self, channels: int, widths: Sequence[int], activation: Activation, pictures: bool) -> None:
        super().__init__()
        sizes = [channels, *widths, channels]
        self.layers = nn.ModuleList(
            nn.Conv2d(*pair, 3, padding=1, bias=False) if pictures else nn.Linear(*pair, bias=False) for pair in pairwise(sizes)
        )
        self.outputs, self.pictures = sizes[1:], pictures
        self.time = nn.Linear(1, 2 * sum(self.outputs))  # of all layers the gates, then of all the shifts
        self.activation, self.derivative = ACTIVATIONS[activation]
        with torch.no_grad():
            for tensor in (*self.layers[-1].parameters(), self.time.weight[-channels:], self.time.bias[-channels:]):
                tensor.zero_()

    def forward(self, t: Tensor, x: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
        """At time t () and rows x (B, ...), with tangents (K, B, ...): the velocity (B, ...) and its derivatives along them (K, B, ...)."""
        with torch.autocast(x.device.type, enabled=False):
            times = self.time(t.to(x).view(1))
            gates, shifts = (part.split(self.outputs) for part in (times[: len(times) // 2].sigmoid(), times[len(times) // 2 :]))
            first, *others = zip(self.layers, gates, shifts, strict=True)
            argument, pushed = self._through(torch.cat([x.unsqueeze(0), tangents]), *first)
            for parts in others:
                value = self.activation(argument)
                rows = torch.cat([value.unsqueeze(0), pushed * self.derivative(argument, value)])
                argument, pushed = self._through(rows, *parts)
            return argument, pushed

    def _through(self, rows: Tensor, layer: nn.Module, gate: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's value (B, ...) for the first of rows (1 + K, B, ...), and for the others its derivatives along them (K, B, ...)."""
        y = layer(rows.flatten(0, 1)).unflatten(0, rows.shape[:2]) * self._broadcast(gate)
        value, pushed = y.split([1, len(y) - 1])
        return value.squeeze(0) + self._broadcast(shift), pushed

    def _broadcast(self, channels: Tensor) -> Tensor:
        return channels.view(-1, 1, 1) if self.pictures else channels
