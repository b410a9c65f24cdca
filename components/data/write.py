"""Writes data that a program computes (codes, features) as a data set, block by block.

Smallest use: `write_dataset("out", {"train": [{"codes": codes, "label": labels}]}, columns, class_names, {"made": "by hand"})`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from components import storage
from components.config import fingerprint
from components.data.arrow import Rows, encode, sums_of
from components.data.columns import Column
from components.data.index import DatasetIndex, ShardEntry, make_index, write_index

ROWS_PER_SHARD = 16_384


def write_dataset(
    folder_url: str,
    splits: Mapping[str, Iterable[Rows]],
    columns: Mapping[str, Column],
    class_names: tuple[str, ...] = (),
    made_by: Mapping[str, Any] | None = None,
    rows_per_shard: int = ROWS_PER_SHARD,
) -> DatasetIndex:
    """Cuts each split's blocks of rows (N, *shape) into shards, writes them and commits the index; equal rows give equal bytes.

    Raises UserError when storage cannot be written to.
    """
    columns = dict(columns)
    entries = {
        split: tuple(write_rows(folder_url, columns, rows) for rows in _regroup(columns, blocks, rows_per_shard))
        for split, blocks in splits.items()
    }
    index = make_index(columns, class_names, entries, dict(made_by or {}))
    write_index(folder_url, index)
    return index


def write_rows(folder_url: str, columns: dict[str, Column], rows: Rows, spec: str | None = None) -> ShardEntry:
    """Writes one shard, named by `spec`, the fingerprint of what it is a function of; without one, by its own content."""
    data = encode(columns, rows)
    sha256 = hashlib.sha256(data).hexdigest()
    spec = spec or fingerprint(sha256)
    file = shard_file(spec)
    storage.write_bytes(storage.join(folder_url, file), data)
    num_rows = len(next(iter(rows.values())))
    return ShardEntry(file=file, rows=num_rows, bytes=len(data), sha256=sha256, spec=spec, sums=sums_of(columns, rows))


def shard_file(spec: str) -> str:
    """The name of a shard says what it is a function of, not where it stands, so that it stays when others come before it."""
    return f"shard-{spec}.arrow"


def _regroup(columns: dict[str, Column], blocks: Iterable[Rows], rows_per_shard: int) -> Iterator[Rows]:
    """The same rows in the same order, in blocks of `rows_per_shard`, the last one shorter."""
    waiting: list[Rows] = []
    count = 0
    for block in blocks:
        assert set(block) == set(columns), f"a block has columns {sorted(block)}, expected {sorted(columns)}"
        waiting.append(block)
        count += len(next(iter(block.values())))
        while count >= rows_per_shard:
            joined = {name: np.concatenate([part[name] for part in waiting]) for name in columns}
            yield {name: values[:rows_per_shard] for name, values in joined.items()}
            waiting = [{name: values[rows_per_shard:] for name, values in joined.items()}]
            count -= rows_per_shard
    if count:
        yield {name: np.concatenate([part[name] for part in waiting]) for name in columns}
