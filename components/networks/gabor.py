"""Embeddings from a frozen bank of Gabor filters and one learned linear map: for so few identities that learned filters would overfit.

Magnitudes of quadrature pairs at two scales, averaged over a coarse grid, as in the Gabor-Fisher classifier of Liu and Wechsler 2002
("Gabor feature based classification using the enhanced Fisher linear discriminant model for face recognition"); a margin-softmax loss
learns the map in the place of Fisher's discriminant.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.networks.dropout import Dropout
from components.training.randomness import Draws

SIDE = 56  # larger pictures are averaged until their shorter side has about so many pixels
WAVELENGTHS, ORIENTATIONS = (3.0, 4.25), 8  # in those pixels
LEVELS, GRID = 2, 10
FEATURES = LEVELS * len(WAVELENGTHS) * ORIENTATIONS * GRID * GRID


class GaborEmbedder(nn.Module):
    """Grey images (B, 1, H, W) to embeddings (B, D), of any length. Features are centred by their mean over training pictures."""

    kernels: Tensor
    mean: Tensor
    spread: Tensor

    def __init__(self, image_size: tuple[int, int], embedding_dim: int, dropout: float) -> None:
        super().__init__()
        self.pooled = max(1, min(image_size) // SIDE)
        self.register_buffer("kernels", gabor_bank(), persistent=False)
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("spread", torch.ones(()))  # the root of the features' mean variance
        self.dropout = Dropout(dropout, "embedding")
        self.out = nn.Linear(FEATURES, embedding_dim)
        nn.init.zeros_(self.out.bias)

    def features(self, images: Tensor) -> Tensor:
        """(B, FEATURES), not negative: the roots of Gabor magnitudes of the standardised picture and of its halves."""
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            x = F.avg_pool2d(images.float(), self.pooled)
            x = (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + 1e-3)
            reach, maps = self.kernels.shape[-1] // 2, []
            for level in range(LEVELS):
                answers = F.conv2d(F.pad(x, (reach,) * 4, mode="reflect"), self.kernels, stride=1 if level else 2)
                power = answers[:, 0::2].square() + answers[:, 1::2].square()
                maps.append(F.adaptive_avg_pool2d((power + 1e-4) ** 0.25, GRID))
                x = F.avg_pool2d(x, 2)
            return torch.cat(maps, 1).flatten(1)

    def read(self, features: Tensor, random: Draws | None = None) -> Tensor:
        return self.out(self.dropout((features - self.mean) / self.spread, random))

    def centre(self, batches: Iterable[Tensor]) -> None:
        """Takes the mean and the spread over many pictures and their mirror images. Bent ones have another mean, which would cost much."""
        features = torch.cat([self.features(torch.cat([images, images.flip(-1)])) for images in batches]).double()
        self.mean.copy_(features.mean(0))
        self.spread.copy_(features.var(0, correction=0).mean().clamp(min=1e-12).sqrt())


def gabor_bank() -> Tensor:
    """Even and odd filters in turn, (2 x wavelengths x orientations, 1, K, K): no answer to a constant, absolute values that sum to 2."""
    reach = int(max(WAVELENGTHS) * 1.25)
    y, x = torch.meshgrid(torch.arange(-reach, reach + 1.0), torch.arange(-reach, reach + 1.0), indexing="ij")
    bank = []
    for wavelength in WAVELENGTHS:
        envelope = torch.exp(-(x.square() + y.square()) / (2 * (wavelength / 2) ** 2))
        for number in range(ORIENTATIONS):
            angle = math.pi * number / ORIENTATIONS
            phase = 2 * math.pi * (x * math.cos(angle) + y * math.sin(angle)) / wavelength
            even = phase.cos() * envelope
            bank += [even - envelope * even.sum() / envelope.sum(), phase.sin() * envelope]
    kernels = torch.stack(bank)[:, None]
    return 2 * kernels / kernels.abs().sum((1, 2, 3), keepdim=True)
