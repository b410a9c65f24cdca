"""How families read points: the column's name, what a data set must have, and the shape of a row of either kind, point or picture."""

from __future__ import annotations

from components.errors import UserError
from components.families.contract import DataShape
from components.families.images import IMAGE, image_shape

POINT = "point"  # float32 (B, D)


def point_width(data: DataShape) -> int:
    """D of the data set's points; raises UserError when it has none."""
    column = data.columns.get(POINT)
    if column is None:
        raise UserError(f"the data set has columns {sorted(data.columns)}, expected {POINT!r}; prepare it from an array {POINT!r} (N, D)")
    if column.dtype != "float32" or len(column.shape) != 1 or column.shape[0] < 1:
        raise UserError(f"column {POINT!r} is {column.dtype} {column.shape}, expected float32 (numbers of a point,); prepare it again")
    return column.shape[0]


def data_shape(data: DataShape) -> tuple[int, ...]:
    """(C, H, W) of the data set's pictures if it has some, else (D,) of its points; raises UserError when it has neither."""
    if IMAGE in data.columns:
        return image_shape(data)
    if POINT in data.columns:
        return (point_width(data),)
    raise UserError(f"the data set has columns {sorted(data.columns)}, expected {IMAGE!r} or {POINT!r}; prepare it from pictures or points")
