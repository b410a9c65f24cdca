"""What every kind of source file has in common: it says what its rows are before they are read, and reads some of them.

A reader looks at *groups*: files that make sense only together (images and their labels), mostly one file alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from components.data.arrow import LABEL, Rows
from components.data.columns import Column
from components.data.pictures import shape_of, to_row
from components.data.prepare_config import PictureConfig, PrepareConfig
from components.data.sources.folder import SourceFile
from components.errors import UserError

IMAGE = "image"
MAX_CLASSES = 100_000
SCAN_VERSION = 1  # raise it when a reader finds something else in the same file
_NAMES = {IMAGE: {"image", "images", "img", "imgs", "picture", "x"}, LABEL: {"label", "labels", "target", "targets", "y"}}
SPLIT_WORDS = {"train": "train", "training": "train", "test": "test", "t10k": "test", "val": "validation", "valid": "validation"}
SPLIT_WORDS |= {"validation": "validation"}

Group = tuple[SourceFile, ...]  # files that are read together; the first one names the group


@dataclass(frozen=True)
class Scan:
    """What one split of a group holds: rows, the columns they become, and the largest label (-1 when unlabelled)."""

    rows: int
    columns: dict[str, Column]
    largest_label: int


class Reader(Protocol):
    """One kind of source file."""

    options: frozenset[str]  # names of the PrepareConfig options that only some kinds know, and this one does

    def claims(self, path: str) -> bool:
        """Whether a file of this name is of this kind."""

    def groups(self, files: list[SourceFile]) -> list[Group]:
        """The files in groups, sorted; raises UserError when a part of a group is missing."""

    def scan(self, group: Group, config: PrepareConfig) -> dict[str, Scan]:
        """What the group holds, by split; raises UserError naming the file that is damaged or cannot be used."""

    def read(self, group: Group, split: str, rows: np.ndarray, config: PrepareConfig) -> Mapping[str, RawColumn]:
        """Some rows, by their ascending numbers in the group's split, as they are in the file."""


@dataclass(frozen=True)
class RawColumn:
    """Values as a file holds them: pictures as (H, W) or (H, W, 3) arrays, anything else as one array (N, ...)."""

    values: list[np.ndarray] | np.ndarray
    is_picture: bool
    name: str  # of the file, for messages


def split_of(path: str) -> str:
    """The split that the words of a path name (train, test, t10k, val ...); train when there is none."""
    words = re.split(r"[^a-z0-9]+", path.lower())
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), "train")


def split_and_name(key: str) -> tuple[str | None, str]:
    """The split and the column that an array's name speaks of: `x_train` is the train split's image."""
    words = [word for word in re.split(r"[^a-z0-9]+", key.lower()) if word]
    splits = [SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS]
    rest = "_".join(word for word in words if word not in SPLIT_WORDS) or key
    return (splits[0] if splits else None), column_name(rest if splits else key)


def column_name(name: str) -> str:
    """`image` and `label` for the usual names of pictures and classes, any other name as it is."""
    return next((ours for ours, theirs in _NAMES.items() if name.lower() in theirs), name)


def column_of(name: str, dtype: np.dtype, shape: tuple[int, ...], place: str) -> Column:
    """The column that numbers of this kind become; raises UserError naming `place` for what is not numbers."""
    if name == LABEL:
        if dtype.kind not in "iu" or int(np.prod(shape)) != 1:
            raise UserError(f"{place}: labels are {dtype} of shape {shape}, expected one whole number a row")
        return Column(dtype="int64")
    return Column(dtype=_stored_type(name, dtype, place), shape=shape)


def as_rows(columns: Mapping[str, Column], raw: Mapping[str, RawColumn], numbers: np.ndarray, picture: PictureConfig) -> Rows:
    """Raw columns as rows of the data set; raises UserError naming file and row for what does not fit (sizes, NaN, infinity).

    `numbers` (N,) are those of the rows in the file.
    """
    return {name: _finish(name, column, raw[name], numbers, picture) for name, column in columns.items()}


def picture_column(pixels: np.ndarray, config: PictureConfig) -> Column:
    return Column(dtype="uint8", shape=shape_of(pixels, config))


def largest_label(labels: np.ndarray, place: str) -> int:
    """The largest label, -1 when there is none; raises UserError naming the first row with one that cannot be."""
    if labels.size == 0:
        return -1
    bad = np.flatnonzero((labels < 0) | (labels >= MAX_CLASSES))
    if bad.size:
        raise UserError(f"{place}: row {bad[0]} has the label {labels[bad[0]]}, expected 0 to {MAX_CLASSES - 1}")
    return int(labels.max())


def _finish(name: str, column: Column, raw: RawColumn, numbers: np.ndarray, picture: PictureConfig) -> np.ndarray:
    if raw.is_picture:
        named = zip(raw.values, numbers, strict=True)
        rows = [to_row(pixels, picture, column.shape, f"{raw.name}, row {number},") for pixels, number in named]
        return np.stack(rows) if rows else np.empty((0, *column.shape), np.uint8)
    values = np.asarray(raw.values)
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what overflows becomes infinite, and is named
            values = values.astype(np.float32)
        bad = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
        if bad.size:
            raise UserError(f"{raw.name}: column {name!r} has NaN or infinity in row {numbers[bad[0]]}; mend or remove the row")
    elif values.dtype == np.uint64 and values.size and values.max() > np.iinfo(np.int64).max:
        raise UserError(f"{raw.name}: column {name!r} has {values.max()}, which does not fit 64 bits with a sign")
    return values.astype(column.dtype).reshape(len(values), *column.shape)


def _stored_type(name: str, dtype: np.dtype, place: str) -> Literal["uint8", "uint16", "int32", "int64", "float32"]:
    if dtype.kind == "f":
        return "float32"
    if dtype.kind == "b" or dtype == np.uint8:
        return "uint8"
    if dtype == np.uint16:
        return "uint16"
    if dtype in (np.int8, np.int16, np.int32):
        return "int32"
    if dtype.kind in "iu":
        return "int64"
    raise UserError(f"{place}: column {name!r} holds {dtype}, expected numbers; choose others with columns=[...]")
