"""What a data set need not look at or make again: the files that are known of its source, and shards that earlier data sets hold.

A shard is a pure function of its specification, so one of the same specification is the same shard, whoever made it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from components import storage
from components.data.index import INDEX, DatasetIndex, ShardEntry, read_whole_index, sums_file
from components.data.sources.known import KnownFiles
from components.errors import UserError

COPYING_THREADS = 16


@dataclass(frozen=True)
class Reuse:
    """What earlier runs left to this one."""

    files: KnownFiles = field(default_factory=KnownFiles)
    datasets: tuple[str, ...] = ()  # URLs; the first that has a shard gives it


def whole_shards(url: str) -> dict[str, ShardEntry]:
    """Shards that the index at `url` names and that are there in their full length, by specification; {} without an index."""
    try:
        index = read_whole_index(url) if storage.exists(storage.join(url, INDEX)) else None
    except UserError:  # of another version, or damaged: nothing of it is used
        index = None
    if index is None:
        return {}
    sizes = storage.file_sizes(url)
    found = (entry for entries in index.splits.values() for entry in entries)
    return {entry.spec: entry for entry in found if sizes.get(entry.file) == entry.bytes}


def carry_over(wanted: Set[str], datasets: tuple[str, ...], out: str) -> Iterator[ShardEntry]:
    """Copies the shards with the wanted specifications that one of the data sets has to `out`, and gives the entry of each.

    No further data set is looked at when fewer are left than one has given: those are of new data, or few.
    """
    wanted, given = set(wanted), 0
    for url in datasets:
        if len(wanted) <= given:
            return
        here = [entry for spec, entry in whole_shards(url).items() if spec in wanted]
        with ThreadPoolExecutor(COPYING_THREADS) as threads:
            for entry in threads.map(partial(_copied, url=url, out=out), here):
                if entry is not None:
                    wanted.remove(entry.spec)
                    given += 1
                    yield entry


def remove_unused(url: str, index: DatasetIndex) -> None:
    """Removes the shards at `url` that its new `index` does not name."""
    used = {entry.file for entries in index.splits.values() for entry in entries} | {sums_file(index)}
    for name in storage.list_names(url):
        if re.fullmatch(r"shard-[0-9a-f]+\.arrow|sums-[0-9a-f]+\.json", name) and name not in used:
            storage.remove(storage.join(url, name))


def _copied(entry: ShardEntry, url: str, out: str) -> ShardEntry | None:
    """The entry, or None when the shard went away meanwhile or cannot be copied: then it is made."""
    try:
        storage.copy(storage.join(url, entry.file), storage.join(out, entry.file))
    except UserError:
        return None
    return entry
