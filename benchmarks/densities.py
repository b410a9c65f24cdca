"""Densities of points in the plane that are known, with their entropy, for what is trained on points drawn from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from components.training.randomness import generator

REACH, PLACES = 6.0, 1201  # of the grid on which entropies are summed: of smooth densities the sum converges faster than any power


@dataclass(frozen=True)
class Petals:
    """Equal Gaussians around 0, at angles 2 pi k / `count` and distance `radius`, as wide as `stds` along the radius and across it.

    With `twist` points at distance r are turned by twist * r: that keeps areas, and so the entropy, and makes a ring of petals a pinwheel.
    """

    count: int
    radius: float
    stds: tuple[float, float]
    twist: float = 0.0

    def sample(self, count: int, seed: int) -> Tensor:
        """Points (count, 2) float32."""
        g = generator("petals", seed)
        along, across = (std * torch.randn(count, generator=g, dtype=torch.float64) for std in self.stds)
        angle = 2 * math.pi / self.count * torch.randint(self.count, (count,), generator=g)
        return _turned(_turned(torch.stack([self.radius + along, across], 1), angle), self.twist).float()

    def log_prob(self, x: Tensor) -> Tensor:
        """Nats of points x (B, 2): (B,) float64."""
        x = _turned(x.double(), -self.twist)
        angles = 2 * math.pi / self.count * torch.arange(self.count, dtype=torch.float64)
        parts = torch.stack([_turned(x, -angle.expand(len(x))) for angle in angles])
        along, across = (parts[..., 0] - self.radius) / self.stds[0], parts[..., 1] / self.stds[1]
        exponents = -(along.square() + across.square()) / 2
        return exponents.logsumexp(0) - math.log(self.count * 2 * math.pi * self.stds[0] * self.stds[1])

    def entropy(self) -> float:
        """Nats, by a sum over a grid."""
        places = torch.linspace(-REACH, REACH, PLACES, dtype=torch.float64)
        nats = self.log_prob(torch.cartesian_prod(places, places))
        return -float((nats.exp() * nats).sum() * (places[1] - places[0]).square())


def _turned(x: Tensor, by: Tensor | float) -> Tensor:
    """x (B, 2) turned around 0 by angles (B,), or by so much for each unit of its distance from there."""
    angle = by if isinstance(by, Tensor) else by * x.norm(dim=1)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos * x[:, 0] - sin * x[:, 1], sin * x[:, 0] + cos * x[:, 1]], 1)


RING = Petals(8, 2.0, (0.2, 0.2))
PINWHEEL = Petals(5, 1.5, (0.45, 0.12), twist=1.2)
