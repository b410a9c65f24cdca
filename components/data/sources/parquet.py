"""Parquet files: encoded pictures (binary, or structs with `bytes` as Hugging Face writes them), numbers and fixed-length lists."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.data.arrow import LABEL
from components.data.columns import Column
from components.data.pictures import decode
from components.data.prepare_config import PrepareConfig
from components.data.sources.folder import SourceFile
from components.data.sources.reader import (
    IMAGE,
    Group,
    RawColumn,
    Scan,
    column_name,
    column_of,
    largest_label,
    picture_column,
    split_of,
)
from components.errors import UserError, did_you_mean

_UNREADABLE = (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError)


class ParquetReader:
    options = frozenset({"size", "fit", "channels", "class_names", "columns"})

    def claims(self, path: str) -> bool:
        return path.lower().endswith((".parquet", ".pq"))

    def groups(self, files: list[SourceFile]) -> list[Group]:
        return [(file,) for file in files]

    def scan(self, group: Group, config: PrepareConfig) -> dict[str, Scan]:
        (file,) = group
        with _Table(file) as table:
            fields = _fields(table.schema, file.place, config.columns)
            columns = {name: self._column(table, name, field, config) for name, field in fields.items()}
            largest = -1
            if LABEL in fields:
                whole = np.arange(table.num_rows)
                largest = largest_label(_numbers(table.take(fields[LABEL].name, whole), fields[LABEL].name, file.place), file.place)
            return {split_of(file.path): Scan(table.num_rows, columns, largest)}

    def read(self, group: Group, split: str, rows: np.ndarray, config: PrepareConfig) -> dict[str, RawColumn]:
        (file,) = group
        with _Table(file) as table:
            fields = _fields(table.schema, file.place, config.columns)
            return {name: _raw(table, field, rows) for name, field in fields.items()}

    def _column(self, table: _Table, name: str, field: pa.Field, config: PrepareConfig) -> Column:
        place = table.file.place
        if not _is_picture(field.type):
            element, shape = _numeric(field, place)
            return column_of(name, np.dtype(element.to_pandas_dtype()), shape, place)
        if table.num_rows == 0:
            return Column(dtype="uint8", shape=(1, 0, 0))
        return picture_column(_raw(table, field, np.arange(1)).values[0], config)


class _Table:
    """A Parquet file from which single rows are read, a row group at a time."""

    def __init__(self, file: SourceFile) -> None:
        self.file = file
        self._source = file.open()
        try:
            self._parquet = pq.ParquetFile(self._source)
        except _UNREADABLE as error:
            self._source.close()
            raise UserError(f"{file.place} is no whole Parquet file: {error}; fetch it again") from None
        metadata = self._parquet.metadata
        self.schema, self.num_rows = self._parquet.schema_arrow, metadata.num_rows
        self._ends = np.cumsum([0, *(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))])

    def take(self, column: str, rows: np.ndarray) -> pa.Array:
        """The rows with these ascending numbers of one column."""
        groups = np.unique(np.searchsorted(self._ends, rows, side="right") - 1).tolist()
        parts = []
        for group in groups:
            first, last = self._ends[group], self._ends[group + 1]
            mine = rows[(rows >= first) & (rows < last)] - first
            try:
                parts.append(self._parquet.read_row_group(group, columns=[column])[column].combine_chunks().take(pa.array(mine)))
            except _UNREADABLE as error:
                raise UserError(f"{self.file.place} cannot be read in row group {group}: {error}; fetch it again") from None
        return pa.concat_arrays(parts) if parts else pa.array([], self.schema.field(column).type)

    def __enter__(self) -> _Table:
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()


def _fields(schema: pa.Schema, place: str, chosen: tuple[str, ...]) -> dict[str, pa.Field]:
    """Our column names -> fields of the file; a single column of pictures is `image`, whatever its name there."""
    for name in chosen:
        if name not in schema.names:
            raise UserError(f"{place} has no column {name!r}, which columns names; {did_you_mean(name, schema.names)}")
    fields = [schema.field(name) for name in chosen or schema.names]
    pictures = [field.name for field in fields if _is_picture(field.type)]
    named = {IMAGE if [field.name] == pictures else column_name(field.name): field for field in fields}
    if len(named) < len(fields):
        raise UserError(f"{place}: several of the columns {[f.name for f in fields]} would get the same name; choose with columns=[...]")
    return dict(sorted(named.items()))


def _is_picture(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_picture(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _numeric(field: pa.Field, place: str) -> tuple[pa.DataType, tuple[int, ...]]:
    """Element type and shape of a column of numbers or of lists of fixed length."""
    kind, shape = field.type, tuple[int, ...]()
    if isinstance(kind, pa.FixedShapeTensorType):
        kind, shape = kind.value_type, tuple(kind.shape)
    elif pa.types.is_fixed_size_list(kind):
        kind, shape = kind.value_type, (kind.list_size,)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise UserError(f"{place}: column {field.name!r} is {field.type}, expected pictures or numbers; leave it out with columns=[...]")
    return kind, shape


def _raw(table: _Table, field: pa.Field, rows: np.ndarray) -> RawColumn:
    values, place = table.take(field.name, rows), table.file.place
    if not _is_picture(field.type):
        return RawColumn(_numbers(values, field.name, place), False, place)
    if pa.types.is_struct(field.type):
        _refuse_nulls(values, field.name, place)
        values = values.field("bytes")
    _refuse_nulls(values, field.name, place)
    pictures = [decode(data.as_py(), f"{place} column {field.name!r} row {row}") for row, data in zip(rows, values, strict=True)]
    return RawColumn(pictures, True, place)


def _numbers(values: pa.Array, name: str, place: str) -> np.ndarray:
    _refuse_nulls(values, name, place)
    shape: tuple[int, ...] = ()
    if isinstance(values.type, pa.FixedShapeTensorType):
        shape, values = tuple(values.type.shape), values.storage
    elif pa.types.is_fixed_size_list(values.type):
        shape = (values.type.list_size,)
    count = len(values)
    flat = values.flatten() if shape else values
    _refuse_nulls(flat, name, place)
    return flat.to_numpy(zero_copy_only=False).reshape(count, *shape)


def _refuse_nulls(values: pa.Array, name: str, place: str) -> None:
    if values.null_count:
        raise UserError(f"{place}: column {name!r} has {values.null_count} missing values; fill them in or remove those rows")
