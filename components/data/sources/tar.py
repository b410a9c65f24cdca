"""WebDataset tars, plain or gzip: `KEY.png KEY.cls KEY2.png ...`, a sample being neighbours with the same key up to the first dot.

They are read as streams; nothing is ever unpacked to disk. Links, devices and members whose names climb out are refused all the same,
since a tar that has them was not made to be read as data.
"""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, Self, cast

import numpy as np

from components.data.arrow import LABEL
from components.data.columns import Column
from components.data.pictures import SUFFIXES, decode
from components.data.prepare_config import PrepareConfig
from components.data.sources.folder import SourceFile
from components.data.sources.reader import IMAGE, Group, RawColumn, Scan, largest_label, picture_column, split_of
from components.errors import UserError


class TarReader:
    options = frozenset({"size", "fit", "channels", "class_names"})

    def claims(self, path: str) -> bool:
        return path.lower().endswith((".tar", ".tar.gz", ".tgz"))

    def groups(self, files: list[SourceFile]) -> list[Group]:
        return [(file,) for file in files]

    def scan(self, group: Group, config: PrepareConfig) -> dict[str, Scan]:
        (file,) = group
        columns, labels, rows = {IMAGE: Column(dtype="uint8", shape=(1, 0, 0))}, [], 0
        for sample in _samples(file):
            if rows == 0:
                columns[IMAGE] = picture_column(decode(sample.picture, sample.name), config)
            labels += [sample.label] if sample.label is not None else []
            rows += 1
            if len(labels) not in (0, rows):
                raise UserError(f'{sample.name}: some samples have a label (.cls, or "label" in .json) and some have none')
        if labels:
            columns[LABEL] = Column(dtype="int64")
        return {split_of(file.path): Scan(rows, columns, largest_label(np.array(labels, np.int64), file.place))}

    def read(self, group: Group, split: str, rows: np.ndarray, config: PrepareConfig) -> dict[str, RawColumn]:
        (file,) = group
        wanted, pictures, labels = set(rows.tolist()), [], []
        for row, sample in enumerate(_samples(file)):
            if row in wanted:
                pictures.append(decode(sample.picture, sample.name))
                labels += [sample.label] if sample.label is not None else []
            if len(pictures) == len(wanted):
                break
        return {IMAGE: RawColumn(pictures, True, file.place), LABEL: RawColumn(np.array(labels, np.int64), False, file.place)}


@dataclass
class _Sample:
    """The members of one key that are used: a picture, and a label where there is one."""

    name: str  # of the tar and the key, for messages
    pictures: list[bytes] = field(default_factory=list)
    label: int | None = None

    @property
    def picture(self) -> bytes:
        if len(self.pictures) != 1:
            raise UserError(f"{self.name} has {len(self.pictures)} pictures ({', '.join(SUFFIXES)}), expected one in each sample")
        return self.pictures[0]

    def add(self, suffix: str, data: bytes) -> None:
        if suffix in SUFFIXES:
            self.pictures.append(data)
        elif suffix == ".cls":
            self.label = _label(data.decode("utf-8", "replace").strip(), self.name)
        elif suffix == ".json":
            try:
                values = json.loads(data)
            except ValueError as error:
                raise UserError(f"{self.name}.json is no JSON: {error}") from None
            if isinstance(values, dict) and LABEL in values:
                self.label = _label(values[LABEL], self.name)


def _label(value: object, name: str) -> int:
    try:
        label = int(cast(str, value))
    except (TypeError, ValueError):
        label = -1
    if label < 0 or isinstance(value, float):
        raise UserError(f"{name} has the label {value!r}, expected a whole number from 0 on")
    return label


def _samples(file: SourceFile) -> Iterator[_Sample]:
    key, sample = "", None
    for path, data in _members(file):
        stem, dot, suffixes = path.name.partition(".")
        this = str(path.with_name(stem))
        if sample is None or this != key:
            if sample is not None:
                yield sample
            key, sample = this, _Sample(f"{file.place}: sample {this}")
        sample.add(f".{suffixes.rpartition('.')[2].lower()}" if dot else "", data)
    if sample is not None:
        yield sample


def _members(file: SourceFile) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Names and bytes of the files in a tar, hidden ones left out."""
    try:
        with file.open() as source, tarfile.open(None, "r|*", cast(IO[bytes], source), tarinfo=_StrictHeader) as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts:
                    raise UserError(f"{file.place}: member {member.name!r} climbs out of its folder; do not use this tar")
                if member.isdir():
                    continue
                if not member.isfile():
                    raise UserError(f"{file.place}: member {member.name!r} is a link or device, expected plain files only")
                data = cast(IO[bytes], archive.extractfile(member)).read()
                if not path.name.startswith("."):
                    yield path, data
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise UserError(f"{file.place} is no whole tar: {error}; fetch it again") from None


class _StrictHeader(tarfile.TarInfo):
    """Takes only a block of zeros for the end: tarfile by itself also ends, silently, at a header that is cut short or damaged."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise
            raise tarfile.ReadError("it ends or is damaged before its end mark") from None
