"""The rule of the gate on cases that are known, and what counts as suspicious in new data."""

from __future__ import annotations

import pytest

from components.data.changes import new_rows, warnings
from components.data.columns import Column
from components.data.index import ColumnSums, DatasetIndex, ShardEntry, ShardSums, make_index
from components.errors import UserError
from components.evaluation.paired import Interval
from pipelines.schedule.config import Gate
from pipelines.schedule.judging import rule


@pytest.mark.parametrize(
    ("difference", "low", "high", "margin", "best", "promoted"),
    [
        (0.03, 0.01, 0.05, 0.0, "max", True),
        (0.03, -0.01, 0.07, 0.0, "max", False),  # better, but not for certain
        (0.03, 0.01, 0.05, 0.02, "max", False),  # better for certain, by more than the margin only perhaps
        (0.05, 0.03, 0.07, 0.02, "max", True),
        (0.0, 0.0, 0.0, 0.0, "max", False),  # the same model
        (-0.03, -0.05, -0.01, 0.0, "min", True),  # an error that fell
        (-0.03, -0.05, -0.01, 0.02, "min", False),
        (0.03, 0.01, 0.05, 0.0, "min", False),
    ],
)
def test_the_whole_interval_lies_beyond_the_margin(
    difference: float, low: float, high: float, margin: float, best: str, promoted: bool
) -> None:
    assert rule(Interval(difference, low, high, 50), None, margin, best) is promoted  # type: ignore[arg-type]


@pytest.mark.parametrize(("low", "high", "promoted"), [(-0.05, -0.01, False), (-0.05, 0.01, True), (0.01, 0.02, True)])
def test_nobody_is_promoted_who_is_worse_on_the_rows_of_before(low: float, high: float, promoted: bool) -> None:
    better = Interval(0.2, 0.1, 0.3, 50)
    assert rule(better, Interval((low + high) / 2, low, high, 50), 0.0, "max") is promoted
    mirrored = Interval(-0.2, -0.3, -0.1, 50)
    assert rule(mirrored, Interval(-(low + high) / 2, -high, -low, 50), 0.0, "min") is promoted


def test_a_score_needs_its_direction() -> None:
    with pytest.raises(UserError, match="score=nll and best=None go together"):
        Gate.parse({"score": "nll"}, "test")


def index(train: dict[str, int], test: dict[str, int], mean: float = 10.0) -> DatasetIndex:
    """The index of a data set with so many rows of each class, one shard a split, of pixels with a standard deviation of 2."""
    splits = {}
    for split, rows in (("train", train), ("test", test)):
        count = 100 * sum(rows.values())
        moments = ColumnSums(count=count, total=(mean * count,), squares=((mean**2 + 4) * count,))
        sums = ShardSums(columns={"image": moments}, classes=dict(enumerate(rows.values())))
        splits[split] = (ShardEntry(file=f"{split}.arrow", rows=sum(rows.values()), bytes=1, sha256="", spec="", sums=sums),)
    columns = {"image": Column(dtype="uint8", shape=(1, 10, 10)), "label": Column(dtype="int64")}
    return make_index(columns, tuple(train), splits, {})


BEFORE = index({"cat": 50, "dog": 50}, {"cat": 10, "dog": 10})


@pytest.mark.parametrize(
    ("after", "says"),
    [
        (index({"cat": 60, "dog": 50}, {"cat": 11, "dog": 10}), []),
        (index({"cat": 60, "dog": 0}, {"cat": 10, "dog": 12}), ["split train has 40 rows less", "train has no rows of class dog any more"]),
        (index({"cat": 100}, {"cat": 20}), ["class dog vanished", "split train is 100% class cat", "split test is 100% class cat"]),
        (index({"cat": 50, "dog": 50, "fox": 1}, {"cat": 10, "dog": 10, "fox": 0}), ["class fox is new"]),
        (index({"cat": 50, "dog": 200}, {"cat": 10, "dog": 10}), ["split train is 20% class cat, it was 50%", "80% class dog"]),
        (
            index({"cat": 50, "dog": 60}, {"cat": 10, "dog": 10}, mean=14.0),
            ["column image in split train moved by 2.0 standard", "column image in split test moved by 2.0 standard"],
        ),
    ],
)
def test_suspicious_changes_of_the_data(after: DatasetIndex, says: list[str]) -> None:
    found = warnings(BEFORE, after)
    for text in says:
        assert any(text in warning for warning in found), found
    assert bool(found) == bool(says)


def test_new_rows_are_counted_over_all_splits() -> None:
    assert new_rows(BEFORE, index({"cat": 60, "dog": 49}, {"cat": 12, "dog": 10})) == 11
