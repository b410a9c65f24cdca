"""The index of a data set: schema, shards with their checksums, statistics and what made it. It is written last: it is the commit.

A data set is a folder or prefix of Arrow IPC files and `index.json`; without the index it does not exist. What each shard adds to the
statistics lies apart in `sums-*.json`, which only who prepares or verifies reads: with many classes it is far larger than the index.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import Field

from components import storage
from components.config import Config, fingerprint
from components.data.columns import Column, DataShape
from components.errors import UserError, did_you_mean

FORMAT_VERSION = 1
INDEX = "index.json"


class ColumnSums(Config):
    """Sums over the elements of a column, by channel for pictures (C, H, W), one entry else; sums of parts add up to the whole's."""

    count: int = Field(ge=0, description="elements by channel")
    total: tuple[float, ...]
    squares: tuple[float, ...]


class ShardSums(Config):
    """What a shard contributes to the statistics of its split."""

    columns: dict[str, ColumnSums] = Field(default_factory=dict)
    classes: dict[int, int] = Field(default_factory=dict, description="rows by label")


class ShardEntry(Config):
    """One shard: its file, what it holds, and the fingerprint of the specification it is a pure function of."""

    file: str
    rows: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str
    spec: str
    sums: ShardSums = Field(default_factory=lambda: ShardSums(), description="empty where they were not asked for")


class ColumnStatistics(Config):
    """Mean and standard deviation over all elements, by channel for pictures (C, H, W)."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class SplitStatistics(Config):
    """Figures of one split: rows by class, in the order of the class names, and moments by column."""

    rows: int
    rows_by_class: tuple[int, ...] = ()
    columns: dict[str, ColumnStatistics] = Field(default_factory=dict)


class DatasetIndex(Config):
    """All that is known of a data set without opening a shard; rows are numbered through the shards in the order given here."""

    format_version: int = FORMAT_VERSION
    columns: dict[str, Column]
    class_names: tuple[str, ...] = ()
    splits: dict[str, tuple[ShardEntry, ...]]
    statistics: dict[str, SplitStatistics] = Field(default_factory=dict)
    made_by: dict[str, Any] = Field(default_factory=dict)

    @property
    def shape(self) -> DataShape:
        rows_by_class = {split: found.rows_by_class for split, found in self.statistics.items()}
        return DataShape(columns=self.columns, class_names=self.class_names, rows_by_class=rows_by_class)

    @property
    def fingerprint(self) -> str:
        """Of the content: equal data have equal fingerprints, wherever and from wherever they were made."""
        shards = {split: [(entry.rows, entry.sha256) for entry in entries] for split, entries in self.splits.items()}
        return fingerprint([self.shape.model_dump(mode="json", include={"columns", "class_names"}), shards])

    def num_rows(self, split: str) -> int:
        return sum(entry.rows for entry in self.shards(split))

    def shards(self, split: str) -> tuple[ShardEntry, ...]:
        """The shards of a split; raises UserError with the nearest name when there is no such split."""
        if split not in self.splits:
            raise UserError(f"the data set has no split {split!r}; {did_you_mean(split, self.splits)}")
        return self.splits[split]


def make_index(
    columns: dict[str, Column], class_names: tuple[str, ...], splits: dict[str, tuple[ShardEntry, ...]], made_by: dict[str, Any]
) -> DatasetIndex:
    """An index with the statistics that follow from its shards."""
    statistics = {split: _statistics(entries, len(class_names)) for split, entries in splits.items()}
    return DatasetIndex(columns=columns, class_names=class_names, splits=splits, statistics=statistics, made_by=made_by)


def write_index(url: str, index: DatasetIndex) -> None:
    """Commits the data set at `url`: from here on its readers see it."""
    sums = {entry.file: entry.sums.to_json() for entries in index.splits.values() for entry in entries}
    storage.write_json(storage.join(url, sums_file(index)), sums)
    storage.write_json(storage.join(url, INDEX), index.model_dump(mode="json", exclude={"splits": {"__all__": {"__all__": {"sums"}}}}))


def sums_file(index: DatasetIndex) -> str:
    """Named by the content, so that the sums beside an index are never those of another."""
    return f"sums-{index.fingerprint}.json"


def read_whole_index(url: str) -> DatasetIndex:
    """As `read_index`, with the sums of every shard. Raises UserError when they are missing or altered too."""
    index = read_index(url)
    place = storage.join(url, sums_file(index))
    values = storage.read_json(place)
    try:
        splits = {
            split: tuple(entry.model_copy(update={"sums": ShardSums.parse(values[entry.file], place)}) for entry in entries)
            for split, entries in index.splits.items()
        }
    except (KeyError, TypeError):
        raise UserError(f"{place} does not have the sums of every shard; prepare the data set again") from None
    return index.model_copy(update={"splits": splits})


def read_index(url: str) -> DatasetIndex:
    """The index of the data set at `url`; raises UserError when there is none, or it is altered or of another version."""
    place = storage.join(url, INDEX)
    if not storage.exists(place):
        raise UserError(f"{url} is no data set: it has no {INDEX}; make one with: raymill prepare SOURCE {url}")
    values = storage.read_json(place)
    if not isinstance(values, dict):
        raise UserError(f"{place} holds {type(values).__name__}, expected an object; make the data set again with raymill prepare")
    version = values.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{place} has format_version {version!r}, this Raymill reads {FORMAT_VERSION}; make the data set again with raymill prepare"
        )
    index = DatasetIndex.parse(values, place)
    for entry in (entry for entries in index.splits.values() for entry in entries):
        if "/" in entry.file or "\\" in entry.file or entry.file.startswith("."):
            raise UserError(f"{place}: shard {entry.file!r} is not a plain name beside the index; the index was altered")
    return index


def _statistics(entries: Iterable[ShardEntry], classes: int) -> SplitStatistics:
    entries = tuple(entries)
    by_class = tuple(sum(entry.sums.classes.get(label, 0) for entry in entries) for label in range(classes))
    names = entries[0].sums.columns if entries else {}
    columns = {name: _moments([entry.sums.columns[name] for entry in entries]) for name in names}
    return SplitStatistics(
        rows=sum(entry.rows for entry in entries),
        rows_by_class=by_class,
        columns={name: moments for name, moments in columns.items() if moments is not None},
    )


def _moments(parts: list[ColumnSums]) -> ColumnStatistics | None:
    count = sum(part.count for part in parts)
    if count == 0:
        return None
    total = [sum(channel) for channel in zip(*(part.total for part in parts), strict=True)]
    squares = [sum(channel) for channel in zip(*(part.squares for part in parts), strict=True)]
    means = [value / count for value in total]
    return ColumnStatistics(
        mean=tuple(means),
        std=tuple(max(square / count - mean**2, 0.0) ** 0.5 for square, mean in zip(squares, means, strict=True)),
    )
