"""A small diffusion model, its samplers with few steps, and batches for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from components.families.denoising_sampler import DenoisingSampler
from components.families.diffusion import Diffusion, DiffusionConfig
from components.training.communication import Communication
from components.training.context import Context
from components.training.randomness import Draws

CPU = torch.device("cpu")


CLASSES, SIZE, LEVELS = 3, (8, 8), 40


NETWORK = {"widths": (8, 16), "attention": (False, True), "blocks": 1}


QUICK = {"dopri5": {"rtol": 1e-4, "atol": 1e-4}, "rk4": {"steps": 3}}  # of samplers that would take long


def make(**changes: Any) -> Diffusion:
    """A small model whose weights are large enough that time, class and picture matter."""
    torch.manual_seed(0)
    values = {"image_size": SIZE, "num_classes": CLASSES, "levels": LEVELS, "prediction": "v", "network": NETWORK} | changes
    family = Diffusion(DiffusionConfig.parse(values, "test"))
    with torch.no_grad():
        for parameter in family.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return family.eval()


def sampler(**values: Any) -> DenoisingSampler:
    return DenoisingSampler.parse(values, "test")


def named(name: str, **values: Any) -> DenoisingSampler:
    """A sampler with few steps."""
    return sampler(**({"sampler": name, "steps": 5} if name != "dopri5" else {"sampler": name}) | QUICK.get(name, {}) | values)


def context(rows: int, step: int = 0, first_row: int = 0) -> Context:
    return Context(step, "denoiser", Draws(0, step, "denoiser", first_row, CPU), rows, rows, Communication())


def make_batch(rows: int = 16) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (rows, 1, *SIZE), generator=generator).to(torch.uint8)
    return {"image": images, "label": torch.arange(rows) % CLASSES}
