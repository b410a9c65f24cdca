"""How families read pictures: the column names, what a data set must have, and pixels in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from components.errors import UserError
from components.families.contract import Batch, DataShape

NOISE, IMAGE_FLOAT = "noise", "image_float"  # float32 (B, C, H, W): where a simulated path begins, and its end in [-1, 1]
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


def classes_in_turn(count: int, first: int, num_classes: int, label: int | None = None) -> Tensor | None:
    """The classes (count,) int64 of samples `first` and on: `label`, else 0, 1, ... again and again; None without classes."""
    if not num_classes:
        return None
    return torch.full((count,), label) if label is not None else (first + torch.arange(count)) % num_classes


def known_labels(batch: Batch, num_classes: int) -> Tensor | None:
    """Classes (B,) int64 of a model that knows `num_classes`, none if that is 0; raises UserError for one that it does not know."""
    if not num_classes:
        return None
    labels = batch[LABEL].long()
    if labels.device.type == "cpu":  # elsewhere the look would wait for the device
        require_below(labels, num_classes, LABEL, "num_classes")
    return labels


def require_below(values: Tensor, bound: int, column: str, setting: str) -> None:
    """Raises UserError when a value is not in [0, `bound`), which the config calls `setting`."""
    low, high = values.aminmax()
    if low < 0 or high >= bound:
        worst = int(low if low < 0 else high)
        raise UserError(
            f"the column {column!r} holds {worst}, expected 0 to {bound - 1} for {setting}={bound}; use the data set this model is for"
        )
