"""Which rows a family can learn from: points of D numbers, or pictures; and what it says of others."""

from __future__ import annotations

import pytest

from components.data.columns import Column, DataShape
from components.errors import UserError
from components.families.points import data_shape, point_width

PICTURE, LABEL = Column(dtype="uint8", shape=(3, 8, 6)), Column(dtype="int64")


def of(**columns: Column) -> DataShape:
    return DataShape(columns=columns)


def point(*shape: int, dtype: str = "float32") -> Column:
    return Column(dtype=dtype, shape=shape)


def test_the_shape_of_a_row() -> None:
    assert data_shape(of(point=point(5), label=LABEL)) == (5,)
    assert data_shape(of(image=PICTURE)) == (3, 8, 6)
    assert data_shape(of(image=PICTURE, point=point(2))) == (3, 8, 6), "pictures come first"
    assert point_width(of(image=PICTURE, point=point(2))) == 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (of(label=LABEL), r"has columns \['label'\], expected 'image' or 'point'"),
        (of(point=point(2, 2)), r"'point' is float32 \(2, 2\), expected float32"),
        (of(point=point()), r"'point' is float32 \(\), expected float32"),
        (of(point=point(0)), r"'point' is float32 \(0,\), expected float32"),
        (of(point=point(2, dtype="uint8")), r"'point' is uint8 \(2,\), expected float32"),
        (of(image=point(2)), "'image' is float32"),
    ],
)
def test_rows_that_are_neither(data: DataShape, message: str) -> None:
    with pytest.raises(UserError, match=message):
        data_shape(data)


def test_pictures_are_no_points() -> None:
    with pytest.raises(UserError, match=r"columns \['image'\], expected 'point'; prepare it from an array 'point'"):
        point_width(of(image=PICTURE))
