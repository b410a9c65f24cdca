"""NumPy's `.npz` archives: arrays with one row count, named as usual (`x_train`, `train_images`, `images`, `labels` ...).

Arrays of Python objects are pickles; they are refused, never read.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from functools import lru_cache

import numpy as np

from components.data.arrow import LABEL
from components.data.columns import Column
from components.data.prepare_config import PrepareConfig
from components.data.sources.folder import SourceFile
from components.data.sources.reader import (
    IMAGE,
    Group,
    RawColumn,
    Scan,
    column_of,
    largest_label,
    picture_column,
    split_and_name,
    split_of,
)
from components.errors import UserError, did_you_mean


class NpzReader:
    options = frozenset({"size", "fit", "channels", "class_names", "columns"})

    def claims(self, path: str) -> bool:
        return path.lower().endswith(".npz")

    def groups(self, files: list[SourceFile]) -> list[Group]:
        return [(file,) for file in files]

    def scan(self, group: Group, config: PrepareConfig) -> dict[str, Scan]:
        place, scans = group[0].place, {}
        for split, arrays in _splits(group[0], config.columns).items():
            counts = {name: len(values) for name, values in arrays.items()}
            if len(set(counts.values())) > 1:
                raise UserError(f"{place}: arrays of split {split!r} have different numbers of rows: {counts}")
            columns = {name: _column(name, values, config, place) for name, values in arrays.items()}
            largest = largest_label(arrays[LABEL].reshape(-1), place) if LABEL in arrays else -1
            scans[split] = Scan(next(iter(counts.values())), columns, largest)
        return scans

    def read(self, group: Group, split: str, rows: np.ndarray, config: PrepareConfig) -> dict[str, RawColumn]:
        arrays, place = _splits(group[0], config.columns)[split], group[0].place
        raw = {}
        for name, values in arrays.items():
            pixels = _pixels(values) if name == IMAGE else None
            raw[name] = RawColumn(list(pixels[rows]), True, place) if pixels is not None else RawColumn(values[rows], False, place)
        return raw


def _column(name: str, values: np.ndarray, config: PrepareConfig, place: str) -> Column:
    pixels = _pixels(values) if name == IMAGE else None
    if pixels is not None and len(pixels):
        return picture_column(pixels[0], config)
    return column_of(name, values.dtype, values.shape[1:], place)


def _pixels(values: np.ndarray) -> np.ndarray | None:
    """Pictures among arrays as (N, H, W) or (N, H, W, 3): uint8 (N, H, W), (N, H, W, C) or (N, C, H, W) with one or three channels."""
    if values.dtype != np.uint8 or values.ndim not in (3, 4):
        return None
    if values.ndim == 4 and values.shape[3] not in (1, 3):
        if values.shape[1] not in (1, 3):
            return None
        values = np.ascontiguousarray(np.moveaxis(values, 1, 3))
    return values[..., 0] if values.ndim == 4 and values.shape[3] == 1 else values


def _splits(file: SourceFile, columns: tuple[str, ...]) -> dict[str, dict[str, np.ndarray]]:
    """Arrays by split and column; `columns` picks some by their name in the file."""
    arrays = _arrays(file)
    for name in columns:
        if name not in arrays:
            raise UserError(f"{file.place} has no array {name!r}, which columns names; {did_you_mean(name, arrays)}")
    splits: dict[str, dict[str, np.ndarray]] = {}
    for key in sorted(columns or arrays):
        split, name = split_and_name(key)
        into = splits.setdefault(split or split_of(file.path), {})
        if name in into:
            raise UserError(f"{file.place}: two arrays would be column {name!r}, one is {key!r}; choose with columns=[...]")
        into[name] = arrays[key]
    return splits


@lru_cache(maxsize=2)  # a worker writes several shards of one archive
def _arrays(file: SourceFile) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(file.read()), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{file.place} is no whole .npz archive: {error}; fetch it again") from None
    except ValueError as error:
        cause = "it holds Python objects, and pickles are never read" if "pickle" in str(error) else str(error)
        raise UserError(f"{file.place} cannot be used: {cause}") from None
    if not arrays:
        raise UserError(f"{file.place} holds no arrays")
    for name, values in arrays.items():
        if values.ndim == 0:
            raise UserError(
                f"{file.place}: array {name!r} is a single value, expected one row after another; choose others with columns=[...]"
            )
    return arrays
