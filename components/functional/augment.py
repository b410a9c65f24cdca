"""Random changes of pictures that keep their class, as functions of given draws.

`flip` and `shift` take images of any type; the others take float ones. Strength zero is always no change.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from components.functional.geometry import Border, fit_homography, warp


def flip(images: Tensor, chosen: Tensor) -> Tensor:
    """Mirrors left and right the images (B, C, H, W) whose entry in `chosen` (B,) bool is set."""
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


def shift(images: Tensor, offsets: Tensor, reach: int) -> Tensor:
    """Moves each of (B, C, H, W) by its row of `offsets` (B, 2), integers in [0, 2 reach] of which `reach` is no move; zeros come in."""
    batch, channels, height, width = images.shape
    padded = F.pad(images, (reach,) * 4)
    rows = offsets[:, 0, None] + torch.arange(height, device=images.device)
    columns = offsets[:, 1, None] + torch.arange(width, device=images.device)
    index = (
        torch.arange(batch, device=images.device)[:, None, None, None],
        torch.arange(channels, device=images.device)[None, :, None, None],
    )
    return padded[index[0], index[1], rows[:, None, :, None], columns[:, None, None, :]]


def jitter(images: Tensor, draws: Tensor, degrees: float, zoom: float, reach: float, border: Border = "border") -> Tensor:
    """Turns, scales and moves float images (B, C, H, W) by `draws` (B, 4), standard normal: angle, log size, right, down.

    `degrees` and `zoom` (of the natural logarithm) are standard deviations, `reach` is one in units of the height and width.
    """
    height, width = images.shape[-2:]
    draws = draws.double()
    angle, size = torch.deg2rad(degrees * draws[:, 0]), (zoom * draws[:, 1]).exp()
    cos, sin = size * angle.cos(), size * angle.sin()
    linear = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    centre = draws.new_tensor([(width - 1) / 2, (height - 1) / 2])
    offset = centre + reach * draws[:, 2:] * draws.new_tensor([width, height]) - linear @ centre
    return warp(images, torch.cat([linear, offset[..., None]], -1), (height, width), border)


def perspective(images: Tensor, draws: Tensor, strength: float, border: Border = "border") -> Tensor:
    """Looks at float images (B, C, H, W) from aside: each corner comes from up to `strength` of a side away, by `draws` (B, 8) in [0, 1).

    The draws are of x and y of the corners top left, top right, bottom left and bottom right; 1/2 is no move. `strength` is below 1/2.
    """
    assert 0 <= strength < 0.5, f"strength={strength}: corners would pass each other"
    corners = draws.new_tensor([[-1, -1], [1, -1], [-1, 1], [1, 1]], dtype=torch.float64)  # in the coordinates of grid_sample
    moved = corners + 2 * strength * (2 * draws.double().view(-1, 4, 2) - 1)
    homography = fit_homography(corners.expand_as(moved), moved)
    grid = F.affine_grid(homography.new_tensor([[[1, 0, 0], [0, 1, 0]]]), [1, 1, *images.shape[-2:]], align_corners=False)
    x, y, w = (F.pad(grid, (0, 1), value=1) @ homography.mT[:, None]).unbind(-1)
    places = torch.stack([x / w, y / w], -1).to(images)
    return F.grid_sample(images, places, mode="bilinear", padding_mode=border, align_corners=False)


def illuminate(images: Tensor, draws: Tensor, strength: float) -> Tensor:
    """Lights images (B, C, H, W) in [0, 1] from one side: multiplied by 1 at the centre, by up to 1 +- `strength` at the edges.

    `draws` (B, 2) in [0, 1): the direction of the light, and its strength as a share of `strength`, which is at most 1.
    """
    height, width = images.shape[-2:]
    x = torch.linspace(-1, 1, width, dtype=images.dtype, device=images.device)
    y = torch.linspace(-1, 1, height, dtype=images.dtype, device=images.device)
    angle, share = 2 * math.pi * draws[:, 0, None, None], draws[:, 1, None, None]
    slope = (angle.cos() * x + angle.sin() * y[:, None]) / math.sqrt(2)  # within [-1, 1] at the corners
    return (images * (1 + strength * share * slope)[:, None]).clamp(0, 1)


def erase(images: Tensor, draws: Tensor, largest: float) -> Tensor:
    """Covers a rectangle of float images (B, C, H, W) with their mean colour: random erasing, Zhong et al. 2017, arXiv 1708.04896.

    `draws` (B, 4) in [0, 1): the covered area as a share of `largest` (a share of the image), the shape between 1 : 3 and 3 : 1, and the
    place of its top and left edge. Sides longer than the image are cut to it.
    """
    height, width = images.shape[-2:]
    area, shape = largest * draws[:, 0] * height * width, 3 ** (2 * draws[:, 1] - 1)
    tall, wide = (area * shape).sqrt().clamp(max=height).round(), (area / shape).sqrt().clamp(max=width).round()
    top, left = (draws[:, 2] * (height - tall + 1)).floor(), (draws[:, 3] * (width - wide + 1)).floor()
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    covered_rows = (rows >= top[:, None]) & (rows < (top + tall)[:, None])
    covered_columns = (columns >= left[:, None]) & (columns < (left + wide)[:, None])
    covered = (covered_rows[:, :, None] & covered_columns[:, None, :])[:, None]
    return torch.where(covered, images.mean((-2, -1), keepdim=True), images)
