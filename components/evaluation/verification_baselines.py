"""Embeddings that a recognition model must beat: raw pixels and principal components, compared by cosine as the model's are."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

MAX_FITTED = 2000  # training pictures, evenly spaced: bounds the time of the decomposition


def pixel_embeddings(images: Tensor) -> Tensor:
    """Unit vectors (N, C*H*W) float32 of images (N, C, H, W): pixels less the picture's own mean, so that cosines are correlations."""
    pixels = images.flatten(1).float()
    return functional.normalize(pixels - pixels.mean(1, keepdim=True), dim=1)


def pca_embeddings(train: Tensor, images: Tensor, components: int) -> Tensor:
    """Unit vectors (N, components) float32 of images (N, C, H, W) on the first principal components of `train` (M, C, H, W)."""
    fitted = train[:: -(-len(train) // MAX_FITTED)].flatten(1).double()
    assert components <= min(fitted.shape), "more components than pictures or pixels"
    centre = fitted.mean(0)
    directions = torch.linalg.svd(fitted - centre, full_matrices=False).Vh[:components]
    return functional.normalize((images.flatten(1).double() - centre) @ directions.T, dim=1).float()
