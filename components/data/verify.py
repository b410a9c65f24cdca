"""Full check of a data set: every byte against its checksum, every shard against its index, every figure computed again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from components import storage
from components.data.arrow import decode, sums_of
from components.data.index import DatasetIndex, ShardEntry, ShardSums, make_index, read_whole_index
from components.errors import UserError


@dataclass(frozen=True)
class Verified:
    """What was found to be as the index says."""

    fingerprint: str
    shards: int
    rows: int
    bytes: int


def verify_dataset(url: str, on_progress: Callable[[int, int], None] | None = None) -> Verified:
    """Checks all of the data set at `url`; `on_progress(done, total)` counts shards.

    Raises UserError naming the first shard that is missing, short, altered (with both checksums) or not as its index says.
    """
    index = read_whole_index(url)
    entries = [entry for split in index.splits.values() for entry in split]
    for done, entry in enumerate(entries, start=1):
        _verify_shard(storage.join(url, entry.file), entry, index)
        if on_progress is not None:
            on_progress(done, len(entries))
    if make_index(index.columns, index.class_names, index.splits, index.made_by).statistics != index.statistics:
        raise UserError(f"{url}: the statistics in index.json do not follow from its shards; the index was altered, make it again")
    return Verified(index.fingerprint, len(entries), sum(entry.rows for entry in entries), sum(entry.bytes for entry in entries))


def _verify_shard(place: str, entry: ShardEntry, index: DatasetIndex) -> None:
    data = storage.read_bytes(place)
    found = hashlib.sha256(data).hexdigest()
    if len(data) != entry.bytes or found != entry.sha256:
        raise UserError(
            f"shard {place} has {len(data)} bytes with sha256 {found}, its index says {entry.bytes} with {entry.sha256}; "
            "it was cut short or altered, make the data set again with raymill prepare"
        )
    rows = decode(pa.py_buffer(data), index.columns, entry.rows, place)
    if not _agree(sums_of(index.columns, rows), entry.sums):
        raise UserError(f"shard {place}: its sums are not those of its rows; they were altered, make it again")


def _agree(found: ShardSums, recorded: ShardSums) -> bool:
    """Equal up to the rounding of sums of fractions, whose order of addition differs between processors."""
    if found.classes != recorded.classes or found.columns.keys() != recorded.columns.keys():
        return False
    pairs = [(sums, recorded.columns[name]) for name, sums in found.columns.items()]
    return all(a.count == b.count and np.allclose([*a.total, *a.squares], [*b.total, *b.squares], rtol=1e-9, atol=1e-6) for a, b in pairs)
