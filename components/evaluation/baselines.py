"""What a learned model must beat: linear reconstruction, codes counted by position, Gaussians in pixel space, noise."""

from __future__ import annotations

import torch
from torch import Tensor


def pca_error(train: Tensor, test: Tensor, components: int) -> float:
    """Mean squared error of `test` (N, ...) after projection on the first principal components of `train` (M, ...), by value."""
    known, held_out = train.flatten(1).double(), test.flatten(1).double()
    centre = known.mean(0)
    centred = known - centre
    _, vectors = torch.linalg.eigh(centred.T @ centred)  # ascending
    rest = held_out - centre
    kept = vectors[:, -components:]
    return (rest - rest @ kept @ kept.T).square().mean().item()


def unigram_bits(train: Tensor, test: Tensor, num_codes: int) -> float:
    """Bits per code of `test` (N, L) int64 when each position has its own distribution, counted in `train` (M, L) plus one each."""
    length = train.shape[1]
    places = torch.arange(length) * num_codes
    counts = torch.bincount((train + places).flatten(), minlength=length * num_codes).view(length, num_codes).double() + 1
    bits = -(counts / counts.sum(1, keepdim=True)).log2()
    return bits.flatten()[(test + places).flatten()].mean().item()


def class_gaussians(images: Tensor, labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` images (count, C, H, W) in [0, 1]: classes in turn, each from a Gaussian with the mean and covariance of its pixels.

    `images` (N, C, H, W) in [0, 1] with `labels` (N,) are what the Gaussians are fitted to; values outside [0, 1] are cut off.
    """
    classes = labels.unique()
    drawn = torch.empty(count, images[0].numel())
    for place, label in enumerate(classes):
        known = images[labels == label].flatten(1).double()
        centre = known.mean(0)
        eigenvalues, vectors = torch.linalg.eigh((known - centre).T @ (known - centre) / max(len(known) - 1, 1))
        rows = len(range(place, count, len(classes)))
        noise = torch.randn(rows, len(centre), generator=generator, dtype=torch.float64)
        drawn[place :: len(classes)] = (centre + noise * eigenvalues.clamp(min=0).sqrt() @ vectors.T).float()
    return drawn.clamp(0, 1).view(count, *images.shape[1:])
