"""Shards as Arrow IPC files: one record batch of Arrow's own fixed-shape tensors, uncompressed, so that a row is a view of the file.

Any pyarrow reads them: `pa.ipc.open_file("shard.arrow").read_all()`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from components.data.columns import Column
from components.data.index import ColumnSums, ShardSums
from components.errors import UserError

LABEL = "label"
Rows = dict[str, np.ndarray]  # column name -> (N, *shape)


def schema_of(columns: Mapping[str, Column]) -> pa.Schema:
    """The Arrow schema of shards with these columns, by name; scalars are plain, the rest are fixed-shape tensors. No nulls."""
    return pa.schema([pa.field(name, _type(columns[name]), nullable=False) for name in sorted(columns)])


def encode(columns: Mapping[str, Column], rows: Rows) -> bytes:
    """The bytes of a shard that holds `rows`; equal rows give equal bytes."""
    assert rows.keys() == columns.keys(), f"rows have columns {sorted(rows)}, expected {sorted(columns)}"
    assert len({len(values) for values in rows.values()}) == 1, "columns differ in their number of rows"
    arrays = [_array(name, columns[name], rows[name]) for name in sorted(columns)]
    schema, sink = schema_of(columns), pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))
    return sink.getvalue().to_pybytes()


def decode(source: pa.NativeFile | pa.Buffer, columns: Mapping[str, Column], rows: int, name: str) -> Rows:
    """Views of a shard's columns, without a copy; raises UserError naming `name` when it is foreign, cut short or altered."""
    try:
        reader = pa.ipc.open_file(source)
        expected = schema_of(columns)
        if not reader.schema.equals(expected, check_metadata=False):
            raise UserError(f"shard {name} has the columns {_describe(reader.schema)}, its index says {_describe(expected)}")
        if reader.num_record_batches != 1:
            raise UserError(f"shard {name} has {reader.num_record_batches} record batches, expected 1; it was not made by Raymill")
        batch = reader.get_batch(0)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"shard {name} is no readable Arrow IPC file: {error}; it was cut short or altered, make it again") from None
    if batch.num_rows != rows:
        raise UserError(f"shard {name} has {batch.num_rows} rows, its index says {rows}")
    return {key: _view(key, column, batch.column(key), name) for key, column in columns.items()}


def sums_of(columns: Mapping[str, Column], rows: Rows) -> ShardSums:
    """Sums for the statistics of a split, exact for integers below 2^53: they do not depend on how rows are cut into shards."""
    sums = {name: _column_sums(column, rows[name]) for name, column in columns.items() if name != LABEL}
    classes = dict(zip(*np.unique(rows[LABEL], return_counts=True), strict=True)) if _is_label(columns) else {}
    return ShardSums(columns=sums, classes={int(label): int(count) for label, count in classes.items()})


def _is_label(columns: Mapping[str, Column]) -> bool:
    return LABEL in columns and columns[LABEL] == Column(dtype="int64")


def _type(column: Column) -> pa.DataType:
    element = pa.from_numpy_dtype(np.dtype(column.dtype))
    return pa.fixed_shape_tensor(element, column.shape) if column.shape else element


def _array(name: str, column: Column, values: np.ndarray) -> pa.Array:
    assert values.dtype == column.dtype, f"column {name} holds {values.dtype}, expected {column.dtype}"
    assert values.shape[1:] == column.shape, f"column {name} has rows of shape {values.shape[1:]}, expected {column.shape}"
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    if not column.shape:
        return flat
    return pa.ExtensionArray.from_storage(_type(column), pa.FixedSizeListArray.from_arrays(flat, int(np.prod(column.shape))))


def _view(name: str, column: Column, array: pa.Array, shard: str) -> np.ndarray:
    values = array.storage.flatten() if column.shape else array
    if array.null_count or values.null_count or len(values) != len(array) * int(np.prod(column.shape)):
        raise UserError(f"shard {shard}: column {name} has nulls; it was not made by Raymill")
    return values.to_numpy(zero_copy_only=True).reshape(len(array), *column.shape)


def _column_sums(column: Column, values: np.ndarray) -> ColumnSums:
    channels = column.shape[0] if len(column.shape) == 3 else 1
    by_channel = values.reshape(len(values), channels, -1)
    total, squares = np.zeros(channels), np.zeros(channels)
    for first in range(0, len(values), 256):  # a bounded copy in float64
        part = by_channel[first : first + 256].astype(np.float64)
        total += part.sum(axis=(0, 2))
        squares += np.einsum("ncx,ncx->c", part, part)
    return ColumnSums(count=values.size // channels, total=tuple(total.tolist()), squares=tuple(squares.tolist()))


def _describe(schema: pa.Schema) -> str:
    return "{" + ", ".join(f"{field.name}: {field.type}" for field in schema)[:300] + "}"
