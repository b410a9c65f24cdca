"""Turns, scales and moves a face so that its five landmarks come to lie where they lie in every aligned picture.

The template is that of Deng et al. 2019, ArcFace, arXiv 1801.07698: a face of 112 x 112 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from components.functional.geometry import Border, fit_similarity, warp

TEMPLATE_SIZE = 112
TEMPLATE = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))
MIRRORED = (1, 0, 2, 4, 3)  # the order of landmarks in which left and right have changed places

Points = Sequence[tuple[float, float]]


def template(size: int) -> Tensor:
    """The landmarks (5, 2), float64, in aligned pictures of `size` x `size` pixels."""
    return (torch.tensor(TEMPLATE, dtype=torch.float64) + 0.5) * (size / TEMPLATE_SIZE) - 0.5


def mirror_landmarks(landmarks: Tensor, width: int) -> Tensor:
    """The landmarks (..., 5, 2) of the mirror image of a picture `width` pixels wide: the left eye becomes the right one."""
    x, y = landmarks[..., list(MIRRORED), :].unbind(-1)
    return torch.stack([width - 1 - x, y], -1)


def align(image: Tensor, landmarks: Points | Tensor, size: int = TEMPLATE_SIZE, border: Border = "border") -> Tensor:
    """The face with these landmarks (5, 2) in a uint8 image (C, H, W), as uint8 (C, size, size)."""
    points = torch.as_tensor(landmarks, dtype=torch.float64)
    pixels = image[None].float()
    # bilinear sampling skips pixels when it shrinks a picture to less than half, so that is done by averaging first
    shrink = max(1, int(1 / _scale(points, size)))
    if shrink > 1:
        pixels = F.avg_pool2d(pixels, shrink, ceil_mode=True, count_include_pad=False)
        points = (points + 0.5) / shrink - 0.5
    aligned = warp(pixels, fit_similarity(points[None], template(size)), (size, size), border)
    return aligned[0].round().clamp(0, 255).to(torch.uint8)


def _scale(points: Tensor, size: int) -> float:
    """How many aligned pixels one pixel of the picture becomes."""
    return float(torch.linalg.det(fit_similarity(points[None], template(size))[0, :, :2]).sqrt())
