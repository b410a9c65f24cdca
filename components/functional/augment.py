"""Random changes of pictures that keep their class, as functions of given draws."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
