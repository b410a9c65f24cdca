"""Plane maps as 2 x 3 matrices from pixels (x, y) to pixels, counted from the middle of the first one: fitting, inverse, warping."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Border = Literal["zeros", "border"]  # what lies outside an image: black, or its edge going on


def fit_similarity(source: Tensor, target: Tensor) -> Tensor:
    """The similarity (B, 2, 3) that brings points `source` (B, N, 2) nearest to `target` (N, 2) or (B, N, 2) in the least-squares sense.

    It turns, scales and moves, and never mirrors. Umeyama 1991, "Least-squares estimation of transformation parameters between two point
    patterns", eq. 38-43; computed in float64. The points of a source must not all be the same.
    """
    source, target = torch.broadcast_tensors(source.double(), target.double())
    source_mean, target_mean = source.mean(-2, keepdim=True), target.mean(-2, keepdim=True)
    source, target = source - source_mean, target - target_mean
    num_points = source.shape[-2]
    u, d, vt = torch.linalg.svd(target.mT @ source / num_points)  # eq. 38
    signs = torch.ones_like(d)
    signs[..., -1] = torch.where(torch.linalg.det(u) * torch.linalg.det(vt) < 0, -1.0, 1.0)  # eq. 39, 43: a rotation, no reflection
    rotation = u * signs[..., None, :] @ vt  # eq. 40
    variance = source.square().sum((-2, -1)) / num_points
    scale = (d * signs).sum(-1) / variance  # eq. 42
    linear = scale[..., None, None] * rotation
    return torch.cat([linear, target_mean.mT - linear @ source_mean.mT], -1)  # eq. 41


def fit_homography(source: Tensor, target: Tensor) -> Tensor:
    """The perspective map (B, 3, 3), float64, with a last entry of 1, that brings 4 points `source` (B, 4, 2) onto `target` (B, 4, 2).

    No three points of either may lie on a line.
    """
    x, y = source.double().unbind(-1)
    u, v = target.double().unbind(-1)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    # u (gx + hy + 1) = ax + by + c and v (gx + hy + 1) = dx + ey + f, linear in a ... h
    first = torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], -1)
    second = torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], -1)
    entries = torch.linalg.solve(torch.cat([first, second], -2), torch.cat([u, v], -1))
    return torch.cat([entries, one[:, :1]], -1).view(-1, 3, 3)


def apply(matrices: Tensor, points: Tensor) -> Tensor:
    """Points (B, N, 2) mapped by (B, 2, 3)."""
    return points @ matrices[..., :2].mT + matrices[..., None, :, 2]


def warp(images: Tensor, matrices: Tensor, size: tuple[int, int], border: Border = "border") -> Tensor:
    """Float images (B, C, H, W) as seen through `matrices` (B, 2, 3), image pixel to output pixel: (B, C, *size), bilinear.

    An output pixel that shows what lies outside the image is black ("zeros") or like the nearest edge ("border").
    """
    height, width = images.shape[-2:]
    back = torch.linalg.inv(_square(matrices.double()))
    theta = _from_pixels(height, width) @ back @ torch.linalg.inv(_from_pixels(*size))
    grid = F.affine_grid(theta[:, :2].to(images), [len(images), images.shape[1], *size], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=border, align_corners=False)


def _square(matrices: Tensor) -> Tensor:
    last = matrices.new_tensor([0.0, 0.0, 1.0]).expand(*matrices.shape[:-2], 1, 3)
    return torch.cat([matrices, last], -2)


def _from_pixels(height: int, width: int) -> Tensor:
    """Pixels to the coordinates of `grid_sample`: -1 and 1 are the outer edges of the first and last pixel."""
    return torch.tensor([[2 / width, 0, 1 / width - 1], [0, 2 / height, 1 / height - 1], [0, 0, 1]], dtype=torch.float64)
