"""RealNVP: affine couplings by checkerboard and by channel, over several scales (Dinh et al. 2017, arXiv 1605.08803).

After a squeeze the colours of a checkerboard are channels: 0 and 3 of the four that a channel becomes, against 1 and 2. So all couplings
run on squeezed pictures, at a quarter of the cost. Activation normalization stands in the place of batch normalization, which would tie the
rows of a batch together. On points couplings keep odd and even numbers in turn.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from components.networks.actnorm import ActNorm
from components.networks.bijection import Bijection, BijectionChain
from components.networks.coupling import Permutation, coupling, inverse_order
from components.networks.multiscale import MultiScaleConfig, MultiScaleFlow


class RealNVPConfig(MultiScaleConfig):
    """Couplings, levels and the size of their networks."""

    kind: Literal["realnvp"] = "realnvp"
    couplings: int = Field(4, gt=1, description="of each level by checkerboard, and as many by channel; of points in all")

    def require_shape(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError as the base, and for squares of an odd side, whose channels are no colours of one checkerboard."""
        super().require_shape(shape)
        if odd := [squeeze for squeeze in self.squeezes if squeeze > 1 and squeeze % 2 and len(shape) == 3]:
            raise ValueError(
                f"squeezes={list(self.squeezes)}: squares of side {odd[0]} have no checkerboard; choose even sides, or kind=glow"
            )

    def build(self, shape: tuple[int, ...], start: BijectionChain) -> MultiScaleFlow:
        """The flow of rows (B, *shape), which `start` prepares."""
        return MultiScaleFlow(self, shape, start)

    def level(self, shape: tuple[int, ...], squeeze: int) -> list[Bijection | BijectionChain]:
        channels = shape[0]
        if len(shape) == 1:
            return self._between([*range(0, channels, 2), *range(1, channels, 2)], shape)
        by_channel = self._steps((channels // 2, channels - channels // 2), shape)
        if squeeze == 1:  # no square has become channels
            return by_channel
        colours = sorted(range(channels), key=lambda channel: (channel // squeeze + channel) % 2)
        return [*self._between(colours, shape), *by_channel]

    def _between(self, order: list[int], shape: tuple[int, ...]) -> list[Bijection | BijectionChain]:
        """Steps on the two halves of the channels in this order."""
        parts = len(order) - len(order) // 2, len(order) // 2
        return [Permutation(order), *self._steps(parts, shape), Permutation(inverse_order(order))]

    def _steps(self, parts: tuple[int, int], shape: tuple[int, ...]) -> list[Bijection | BijectionChain]:
        """Normalizations and couplings; both parts stay in turn."""
        return [
            BijectionChain(ActNorm(shape[0]), coupling(shape, parts, number % 2 == 0, "exp", self.width))
            for number in range(self.couplings)
        ]
