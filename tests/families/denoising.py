"""Small denoising families for tests: pictures of 8 x 8 pixels, weights that matter, networks that know a Gaussian exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from components.families.denoising import Denoising
from components.functional.oracles import GaussianOracle
from components.training.communication import Communication
from components.training.context import Context
from components.training.randomness import Draws

SIZE = 8
CLASSES = 3
NETWORK = {"widths": (8, 16), "attention": (False, True), "blocks": 1, "groups": 4}
CPU = torch.device("cpu")


def make(cls: type[Denoising], network: dict[str, Any] | None = None, **values: Any) -> Denoising:
    """A small family in evaluation mode whose weights are large enough that time and class matter."""
    torch.manual_seed(0)
    values = {"image_size": (SIZE, SIZE), "num_classes": CLASSES, "network": NETWORK | (network or {})} | values
    family = cls(cls.Config.parse(values, "test"))
    with torch.no_grad():
        for parameter in family.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return family.eval()


def batch_of(rows: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (rows, 1, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    return {"image": images, "label": torch.arange(rows) % CLASSES}


def context(rows: int, first_row: int = 0, global_rows: int | None = None) -> Context:
    return Context(0, "denoiser", Draws(0, 0, "denoiser", first_row, CPU), rows, global_rows or rows, Communication())


class GaussianNetwork(nn.Module):
    """In the place of a network: the exact prediction for data of which every pixel is N(mean, std^2)."""

    def __init__(self, family: Denoising, mean: float, std: float, unscaled: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        """`unscaled(x, t)` undoes what the family does to the network's input."""
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))  # its device is the family's
        oracle = GaussianOracle(torch.tensor(mean), torch.tensor(std), family.schedule)
        self.exact = oracle.denoiser(family.prediction)
        self.scale = float(family.network_steps(torch.ones((), dtype=torch.float64)))
        self.unscaled = unscaled or (lambda x, t: x)

    def forward(self, x: Tensor, steps: Tensor, labels: Tensor | None, random: Draws | None) -> Tensor:
        t = steps.double() / self.scale
        return self.exact.model(self.unscaled(x.double(), t), t).to(x.dtype)
