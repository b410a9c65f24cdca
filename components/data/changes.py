"""What became of a data set since an earlier version of it, read from the two indexes alone: what a team would want to be warned of."""

from __future__ import annotations

from collections.abc import Iterator

from components.data.index import DatasetIndex, SplitStatistics

SHIFT = 0.5  # of the earlier standard deviation: a column's mean that moves further is worth a look
SHARE = 0.2  # so much more or less of all rows for one class is, too


def new_rows(before: DatasetIndex, after: DatasetIndex) -> int:
    """Rows more than before, over all splits; negative when rows are gone."""
    return sum(after.num_rows(split) for split in after.splits) - sum(before.num_rows(split) for split in before.splits)


def warnings(before: DatasetIndex, after: DatasetIndex) -> tuple[str, ...]:
    """Sentences about what is suspicious; () when nothing is."""
    return tuple(_warnings(before, after))


def _warnings(before: DatasetIndex, after: DatasetIndex) -> Iterator[str]:
    if gone := [name for name in before.class_names if name not in after.class_names]:
        yield f"class {', '.join(gone)} vanished from the data"
    if fresh := [name for name in after.class_names if name not in before.class_names]:
        yield f"class {', '.join(fresh)} is new in the data"
    for split in sorted(before.splits):
        if split not in after.splits:
            yield f"split {split} vanished from the data"
            continue
        missing = before.num_rows(split) - after.num_rows(split)
        if missing > 0:
            yield f"split {split} has {missing:,} rows less than before: files were removed or renamed, and rows may have changed split"
        yield from _of_split(split, before, after)


def _of_split(split: str, before: DatasetIndex, after: DatasetIndex) -> Iterator[str]:
    """Warnings about the rows of one split."""
    old, new = before.statistics.get(split), after.statistics.get(split)
    if old is None or new is None:
        return
    earlier, now = _shares(old, before.class_names), _shares(new, after.class_names)
    for name in [name for name in earlier if name in now]:
        if earlier[name] and not now[name]:
            yield f"split {split} has no rows of class {name} any more"
        elif abs(now[name] - earlier[name]) > SHARE:
            yield f"split {split} is {now[name]:.0%} class {name}, it was {earlier[name]:.0%}"
    for column in [column for column in old.columns if column in new.columns and column != "label"]:
        known, found = old.columns[column], new.columns[column]
        if len(known.mean) != len(found.mean):
            continue  # other channels: a question of the settings, not of the data
        moved = max(abs(a - b) / max(deviation, 1e-9) for a, b, deviation in zip(known.mean, found.mean, known.std, strict=True))
        if moved > SHIFT:
            yield f"the mean of column {column} in split {split} moved by {moved:.1f} standard deviations"


def _shares(statistics: SplitStatistics, names: tuple[str, ...]) -> dict[str, float]:
    """Share of the rows by name of the class."""
    total = max(1, sum(statistics.rows_by_class))
    return {name: rows / total for name, rows in zip(names, statistics.rows_by_class, strict=False)}
