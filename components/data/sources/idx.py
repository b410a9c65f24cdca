"""IDX files, plain or gzip: `NAME-images-idx3-ubyte[.gz]` beside `NAME-labels-idx1-ubyte[.gz]`; any number of pairs.

Format: two zero bytes, an element type, a number of dimensions, big-endian lengths, then the elements (LeCun, Cortes and Burges, the
MNIST database).
"""

from __future__ import annotations

import gzip
import re
import zlib
from functools import lru_cache

import numpy as np

from components.data.arrow import LABEL
from components.data.columns import Column
from components.data.prepare_config import PrepareConfig
from components.data.sources.folder import SourceFile
from components.data.sources.reader import IMAGE, Group, RawColumn, Scan, largest_label, picture_column, split_of
from components.errors import UserError

UNSIGNED_BYTES = 0x08
_NAME = re.compile(r"(images|labels)([-.]idx\d-ubyte(?:\.gz)?)$")


class IdxReader:
    options = frozenset({"size", "fit", "channels", "class_names"})

    def claims(self, path: str) -> bool:
        return _NAME.search(path) is not None

    def groups(self, files: list[SourceFile]) -> list[Group]:
        """(images, labels) pairs; the two may differ in being compressed."""
        by_stem = {(_NAME.sub("", file.path), "labels" in file.path.rsplit("/", 1)[-1]): file for file in files}
        groups: list[Group] = []
        for stem in sorted({stem for stem, _ in by_stem}):
            images, labels = by_stem.get((stem, False)), by_stem.get((stem, True))
            if images is None or labels is None:
                alone, missing = ("labels", "images") if images is None else ("images", "labels")
                file = by_stem[stem, alone == "labels"]
                raise UserError(f"{file.place} has no file of {missing} beside it; IDX images and labels come in pairs")
            groups.append((images, labels))
        return groups

    def scan(self, group: Group, config: PrepareConfig) -> dict[str, Scan]:
        images, labels = _array(group[0], (3, 4)), _array(group[1], (1,))
        if len(images) != len(labels):
            raise UserError(f"{group[0].place} has {len(images)} images, {group[1].place} has {len(labels)} labels")
        image = picture_column(images[0], config) if len(images) else Column(dtype="uint8", shape=(1, 0, 0))
        columns = {IMAGE: image, LABEL: Column(dtype="int64")}
        return {split_of(group[0].path): Scan(len(images), columns, largest_label(labels, group[1].place))}

    def read(self, group: Group, split: str, rows: np.ndarray, config: PrepareConfig) -> dict[str, RawColumn]:
        images, labels = _array(group[0], (3, 4)), _array(group[1], (1,))
        return {
            IMAGE: RawColumn(list(images[rows]), True, group[0].place),
            LABEL: RawColumn(labels[rows], False, group[1].place),
        }


def _array(file: SourceFile, dimensions: tuple[int, ...]) -> np.ndarray:
    array = _parse(_content(file), file.place)
    if array.ndim not in dimensions or (array.ndim == 4 and array.shape[3] != 3):
        raise UserError(f"{file.place} holds an array of shape {array.shape}, expected {' or '.join(map(str, dimensions))} dimensions")
    return array


def _parse(data: bytes, place: str) -> np.ndarray:
    if len(data) < 4 or data[:2] != b"\0\0":
        raise UserError(f"{place} is no IDX file: it does not begin with two zero bytes")
    if data[2] != UNSIGNED_BYTES:
        raise UserError(f"{place} holds elements of IDX type 0x{data[2]:02x}, expected unsigned bytes (0x08)")
    header = 4 + 4 * data[3]
    shape = tuple(int(length) for length in np.frombuffer(data[4:header], ">u4"))
    if len(shape) != data[3] or len(data) != header + int(np.prod(shape, dtype=np.int64)):
        raise UserError(f"{place} has {len(data)} bytes, its header speaks of an array of shape {shape}; it was cut short or altered")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


@lru_cache(maxsize=4)  # a worker writes several shards of one file
def _content(file: SourceFile) -> bytes:
    data = file.read()
    if not file.path.endswith(".gz"):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file.place} is no whole gzip file: {error}; fetch it again") from None
