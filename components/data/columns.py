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
    """What a family may know of its data before it is built: columns by name, and class names (empty when unlabelled).

    `rows_by_class` has the rows of each class by split, in the order of the class names: a class that a split lacks has 0 there.
    """

    columns: dict[str, Column]
    class_names: tuple[str, ...] = ()
    rows_by_class: dict[str, tuple[int, ...]] = Field(default_factory=dict)
