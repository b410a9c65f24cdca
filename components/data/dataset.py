"""Opens a data set: rows by number, gathered from memory maps; a remote one through the node-local cache.

Smallest use: `Dataset.open("data/fashion", "train").take(np.arange(8))["image"].shape`.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pyarrow as pa

from components import storage
from components.data.arrow import Rows, decode
from components.data.cache import ContentCache
from components.data.columns import DataShape
from components.data.index import DatasetIndex, ShardEntry, read_index
from components.errors import UserError, did_you_mean

logger = logging.getLogger(__name__)


class Dataset:
    """One split of a data set. Rows are numbered through its shards, in the order of the index."""

    def __init__(self, url: str, index: DatasetIndex, split: str, cache: ContentCache | None) -> None:
        """Use `Dataset.open`. `cache` is where shards are copied to first; None maps them where they are."""
        self.url, self.index, self.split = url, index, split
        self._cache = cache
        self._entries = index.shards(split)
        self._first_rows = np.cumsum([0, *(entry.rows for entry in self._entries)])
        self._open: OrderedDict[int, Rows] = OrderedDict()
        self._open_bytes = 0
        self._lock = threading.Lock()

    @classmethod
    def open(cls, url: str, split: str = "train", cache: Path | None = None) -> Dataset:
        """Opens a split of the data set at `url`; `cache` is the folder for remote shards (default: as the environment says).

        Raises UserError when there is no such data set or split, or a shard is missing, cut short or foreign. Checksums are checked when
        a remote shard is fetched; `components/data/verify.py` checks them for local ones.
        """
        index = read_index(url)
        if split not in index.splits:
            raise UserError(f"the data set {url} has no split {split!r}; {did_you_mean(split, index.splits)}")
        remote = storage.is_remote(url)
        dataset = cls(url, index, split, ContentCache(cache) if remote else None)
        _check_files(url, index.shards(split))
        if remote:
            dataset._warn_when_too_large()
        else:
            for number in range(len(dataset._entries)):
                dataset._rows_of(number)
        return dataset

    @property
    def num_rows(self) -> int:
        return int(self._first_rows[-1])

    @property
    def shape(self) -> DataShape:
        return self.index.shape

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.index.class_names

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of all splits of the data set, sorted."""
        return tuple(sorted(self.index.splits))

    @property
    def fingerprint(self) -> str:
        """Of the whole data set's content, all splits."""
        return self.index.fingerprint

    def take(self, rows: np.ndarray) -> Rows:
        """Copies of the rows with these numbers (K,) int64, in this order, by column: (K, *shape)."""
        grouped, places = self.gather(rows, self.room(len(rows)))
        return {name: values.take(places, axis=0) for name, values in grouped.items()}

    def room(self, count: int) -> Rows:
        """Uninitialised arrays for `count` rows, to gather into again and again."""
        return {name: np.empty((count, *column.shape), dtype=column.dtype) for name, column in self.index.columns.items()}

    def gather(self, rows: np.ndarray, room: Rows) -> tuple[Rows, np.ndarray]:
        """Copies the rows with these numbers (K,) into `room`, shard by shard; row `rows[i]` is then at place `places[i]` (K,).

        Two sequential passes, this one and the caller's `take(places[...])` by batch, are faster than one that jumps between shards.
        """
        assert rows.size == 0 or (rows.min() >= 0 and rows.max() < self.num_rows), f"rows outside [0, {self.num_rows})"
        shards = np.searchsorted(self._first_rows, rows, side="right") - 1
        small = shards.astype(np.uint16 if len(self._entries) <= 2**16 else np.int64)
        by_shard = np.argsort(small, kind="stable")  # a radix sort for 16 bits
        grouped = rows[by_shard]
        counts = np.bincount(shards, minlength=len(self._entries))
        ends = np.cumsum(counts)
        for number in np.flatnonzero(counts).tolist():
            span = slice(ends[number] - counts[number], ends[number])
            views, local = self._rows_of(number), grouped[span] - self._first_rows[number]
            for name, values in room.items():
                views[name].take(local, axis=0, out=values[span], mode="clip")  # checked above; "raise" would copy twice
        places = np.empty_like(by_shard)
        places[by_shard] = np.arange(len(by_shard))
        return {name: values[: len(rows)] for name, values in room.items()}, places

    def _rows_of(self, number: int) -> Rows:
        """Views of a shard, opened when first needed; with a cache, no more shards stay open than it has room for."""
        with self._lock:
            if number in self._open:
                if self._cache is not None:
                    self._open.move_to_end(number)
                return self._open[number]
            entry = self._entries[number]
            views = self._map(entry)
            if self._cache is not None:
                while self._open and self._open_bytes + entry.bytes > self._cache.limit_bytes:
                    oldest, _ = self._open.popitem(last=False)
                    self._open_bytes -= self._entries[oldest].bytes
            self._open[number] = views
            self._open_bytes += entry.bytes
            return views

    def _map(self, entry: ShardEntry) -> Rows:
        place = storage.join(self.url, entry.file)

        def view(path: str | Path) -> Rows:
            if entry.bytes == 0:
                raise UserError(f"shard {place} is empty; make the data set again with raymill prepare")
            return decode(pa.memory_map(str(path)), self.index.columns, entry.rows, place)

        if self._cache is None:
            return view(place.removeprefix("file://"))
        return self._cache.use(entry.sha256, f"shard {place}", lambda: (storage.open_read(place), entry.bytes), view, entry.bytes)

    def _warn_when_too_large(self) -> None:
        total = sum(entry.bytes for entry in self._entries)
        if self._cache is not None and total > self._cache.limit_bytes:
            logger.warning(
                "%s (%s) has %.1f GB, more than the cache's %.1f GB: shards will be fetched again and again; raise RAYMILL_CACHE_GB",
                *(self.url, self.split, total / 1e9, self._cache.limit_bytes / 1e9),
            )


def _check_files(url: str, entries: tuple[ShardEntry, ...]) -> None:
    sizes = storage.file_sizes(url)
    for entry in entries:
        place = storage.join(url, entry.file)
        if entry.file not in sizes:
            raise UserError(f"shard {place} is missing; the index expects {entry.bytes} bytes with sha256 {entry.sha256}")
        if sizes[entry.file] != entry.bytes:
            found = f"{sizes[entry.file]} bytes{_checksum_of(place)}"
            raise UserError(
                f"shard {place} has {found}, its index says {entry.bytes} with sha256 {entry.sha256}; it was cut short or altered"
            )


def _checksum_of(place: str) -> str:
    return "" if storage.is_remote(place) else f" with sha256 {storage.sha256_file(place)}"
