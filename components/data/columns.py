"""What a row of a data set holds: columns by name, each of one element type and one shape."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from components.config import Config


class Column(Config):
    """One column of a data set: element type and the shape of one row."""

    dtype: Literal["uint8", "uint16", "int32", "int64", "float32"]
    shape: tuple[int, ...] = ()


class DataShape(Config):
    """What a family may know of its data before it is built: columns by name, and class names (empty when unlabelled)."""

    columns: dict[str, Column]
    class_names: tuple[str, ...] = ()
    rows_by_class: dict[str, tuple[int, ...]] = Field(default_factory=dict, description="split -> rows of each class, as named")
