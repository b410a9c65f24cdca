"""How families read pictures: the column names, what a data set must have, and pixels in [0, 1]."""

from __future__ import annotations

from torch import Tensor

from components.errors import UserError
from components.families.contract import Batch, DataShape

IMAGE, LABEL = "image", "label"  # uint8 (B, C, H, W) and int64 (B,)


def image_shape(data: DataShape) -> tuple[int, int, int]:
    """(C, H, W) of the data set's pictures; raises UserError when it has none."""
    column = data.columns.get(IMAGE)
    if column is None:
        raise UserError(f"the data set has columns {sorted(data.columns)}, expected {IMAGE!r}; prepare it from pictures")
    if column.dtype != "uint8" or len(column.shape) != 3:
        raise UserError(f"column {IMAGE!r} is {column.dtype} {column.shape}, expected uint8 (channels, height, width); prepare it again")
    channels, height, width = column.shape
    return channels, height, width


def pixels(batch: Batch) -> Tensor:
    """The batch's pictures as float32 (B, C, H, W) in [0, 1]."""
    return batch[IMAGE].float() / 255
