"""Small data sets of random rows for the tests of the data plane."""

from __future__ import annotations

import numpy as np

from components.data.arrow import Rows
from components.data.columns import Column
from components.data.index import DatasetIndex
from components.data.write import write_dataset

COLUMNS = {
    "image": Column(dtype="uint8", shape=(3, 4, 5)),
    "label": Column(dtype="int64"),
    "weight": Column(dtype="float32", shape=(2,)),
}


def random_rows(count: int, seed: int = 0) -> Rows:
    random = np.random.default_rng(seed)
    return {
        "image": random.integers(0, 256, (count, 3, 4, 5), dtype=np.uint8),
        "label": random.integers(0, 4, count, dtype=np.int64),
        "weight": random.normal(size=(count, 2)).astype(np.float32),
    }


def make(url: str, train: Rows, test: Rows | None = None, rows_per_shard: int = 16) -> DatasetIndex:
    splits = {"train": [train], **({"test": [test]} if test is not None else {})}
    return write_dataset(url, splits, COLUMNS, ("a", "b", "c", "d"), {"made": "for a test"}, rows_per_shard)
