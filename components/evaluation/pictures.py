"""Pictures for people: grids of small images as PNG."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

GAP_PIXELS = 2


def grid(rows: list[np.ndarray], scale: int = 1) -> Image.Image:
    """A grid with one row for each array (N, C, H, W) uint8 of equal shape, C 1 (grey) or 3 (colour); pixels enlarged `scale` times.

    Every row has the same height, gaps included, so that names beside the picture can be spaced evenly. The gaps are transparent.
    """
    cells = np.stack([np.asarray(row) for row in rows])  # (R, N, C, H, W)
    assert cells.dtype == np.uint8, cells.dtype
    assert cells.ndim == 5, cells.shape
    assert cells.shape[2] in (1, 3), cells.shape
    colours = np.broadcast_to(cells, (*cells.shape[:2], 3, *cells.shape[3:])) if cells.shape[2] == 1 else cells
    opaque = np.full((*cells.shape[:2], 1, *cells.shape[3:]), 255, np.uint8)
    enlarged = np.concatenate([colours, opaque], axis=2).repeat(scale, axis=3).repeat(scale, axis=4)
    half = GAP_PIXELS // 2
    framed = np.pad(enlarged, ((0, 0), (0, 0), (0, 0), (half, half), (half, half)))  # zeros: transparent
    num_rows, num_columns, channels, height, width = framed.shape
    return Image.fromarray(framed.transpose(0, 3, 1, 4, 2).reshape(num_rows * height, num_columns * width, channels), "RGBA")


def png(image: Image.Image) -> bytes:
    """The PNG file of an image; equal images give equal bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
