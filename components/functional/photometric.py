"""Takes the light out of pictures, so that many pictures of one face become alike. Images are float (B, C, H, W) in [0, 1], and stay so."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 256


def standardise(images: Tensor) -> Tensor:
    """Mean 1/2 and standard deviation 1/6 for each image, cut at three standard deviations; an image of one colour becomes 1/2."""
    mean = images.mean((1, 2, 3), keepdim=True)
    deviation = images.std((1, 2, 3), keepdim=True, correction=0).clamp(min=1e-6)
    return ((images - mean) / deviation / 6 + 0.5).clamp(0, 1)


def equalise(images: Tensor) -> Tensor:
    """Histogram equalisation of each channel: a pixel becomes the share of the image's pixels that are not brighter, in 256 levels."""
    levels = (images * (LEVELS - 1)).round().long().flatten(2)
    histogram = torch.zeros(*levels.shape[:2], LEVELS, dtype=images.dtype, device=images.device)
    histogram.scatter_add_(2, levels, torch.ones_like(levels, dtype=images.dtype))
    return (histogram.cumsum(2) / levels.shape[2]).gather(2, levels).view_as(images)


def difference_of_gaussians(images: Tensor, inner: float = 1.0, outer: float = 2.0) -> Tensor:
    """Keeps the detail between two widths (standard deviations in pixels), standardised: Tan & Triggs 2010, "Enhanced local texture
    feature sets for face recognition under difficult lighting conditions", which takes the square root of the pixels first."""
    assert inner < outer, f"inner={inner} is not below outer={outer}"
    rooted = images.sqrt()
    return standardise(_blur(rooted, inner) - _blur(rooted, outer))


def self_quotient(images: Tensor, sigma: float = 4.0) -> Tensor:
    """Each pixel as a share of the light around it, standardised: Wang et al. 2004, "Face recognition under varying lighting conditions
    using self quotient image", with a plain Gaussian (`sigma` in pixels)."""
    return standardise(images / (_blur(images, sigma) + 1 / LEVELS))


PHOTOMETRIC: dict[str, Callable[[Tensor], Tensor]] = {
    "standardise": standardise,
    "equalise": equalise,
    "difference_of_gaussians": difference_of_gaussians,
    "self_quotient": self_quotient,
}


def _blur(images: Tensor, sigma: float) -> Tensor:
    """A Gaussian of three standard deviations to each side; outside an image its edge goes on."""
    radius = int(3 * sigma + 0.5)
    x = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = (-(x**2) / (2 * sigma**2)).exp()
    kernel = kernel / kernel.sum()
    batch, channels, height, width = images.shape
    planes = F.pad(images, (radius,) * 4, mode="replicate").view(batch * channels, 1, height + 2 * radius, width + 2 * radius)
    return F.conv2d(F.conv2d(planes, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1)).view_as(images)
