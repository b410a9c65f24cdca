"""A shard as a pure function of its specification: the same bytes on any worker, in any order, as often as one likes.

A shard is named by its specification, so that what is unchanged is found and not made again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from components.config import Config, fingerprint
from components.data.arrow import LABEL, Rows
from components.data.columns import Column
from components.data.index import FORMAT_VERSION, ShardEntry
from components.data.prepare_config import PrepareConfig
from components.data.selection import Keep, words_of
from components.data.sources import READERS
from components.data.sources.folder import SourceFolder
from components.data.sources.reader import RawColumn, as_rows
from components.data.write import write_rows

CODE_VERSION = 1  # raise it when the same specification gives other bytes


class Part(Config):
    """Rows of one group of source files: a range of numbers, of which `keep` takes some."""

    files: tuple[tuple[str, str], ...] = Field(description="path and SHA-256 of each file of the group")
    first: int = Field(0, ge=0)
    count: int = Field(1, ge=0)
    keep: Keep | None = None
    label: int | None = Field(None, description="of all rows, where the folders tell it and not the files")

    def rows(self) -> np.ndarray:
        """Ascending numbers of the rows in the group, int64."""
        rows = np.arange(self.first, self.first + self.count, dtype=np.int64)
        return rows if self.keep is None else rows[self.keep.mask(words_of(self.keep.seed, self.files[0][0], rows))]


class ShardSpec(Config):
    """All that decides the bytes of a shard, and where its inputs lie."""

    source: str
    kind: str
    split: str = Field(description="of the source's files")
    parts: tuple[Part, ...]
    columns: dict[str, Column]
    config: PrepareConfig

    @property
    def fingerprint(self) -> str:
        """Of what decides the bytes: not the place of the source, nor options that only choose or cut."""
        parts = [part.to_json() for part in self.parts]
        content = [FORMAT_VERSION, CODE_VERSION, self.kind, self.split, parts, {name: c.to_json() for name, c in self.columns.items()}]
        return fingerprint([*content, self.config.picture.to_json(), self.config.columns])


def write_shard(spec: ShardSpec, out: str) -> ShardEntry:
    """Reads the inputs of one shard and writes it below `out`; raises UserError naming the file that cannot be used."""
    source = SourceFolder(spec.source, spec.config.checksums)
    blocks = [_read(spec, part, source) for part in spec.parts]
    rows = {name: np.concatenate([block[name] for block in blocks]) for name in spec.columns}
    return write_rows(out, spec.columns, rows, spec.fingerprint)


def _read(spec: ShardSpec, part: Part, source: SourceFolder) -> Rows:
    group = tuple(source.known(path, sha256) for path, sha256 in part.files)
    numbers = part.rows()
    raw: dict[str, Any] = dict(READERS[spec.kind].read(group, spec.split, numbers, spec.config))
    if part.label is not None:
        raw[LABEL] = RawColumn(np.full(len(numbers), part.label), False, group[0].place)
    return as_rows(spec.columns, raw, numbers, spec.config.picture)
