"""Samples of a model as shards: each a pure function of its specification, as those of `components/data/shards.py` are.

A sample is a row of an endless table that the model, the seed and the sampler name, so that who draws it, with which others, does not
matter. Its last bits do depend on the kind of device and on the rows and threads that compute together: the device is part of the
specification, rows are drawn in blocks that begin where the shard does, and by one thread.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from components import storage
from components.config import Config, fingerprint
from components.data.arrow import LABEL, Rows, decode, sums_of
from components.data.columns import Column
from components.data.index import FORMAT_VERSION, ShardEntry
from components.data.write import shard_file, write_rows
from components.errors import UserError
from components.evaluation.sampling import makes_points, one_thread, picture_shape, require_finite, to_images
from components.families.contract import Family
from components.families.images import IMAGE, IMAGE_FLOAT, NOISE
from components.families.points import POINT
from components.training.randomness import LANE

CODE_VERSION = 1  # raise it when the same specification gives other bytes
MOST_ROWS, MOST_BYTES = 1024, 64 * 2**20  # in one shard


class Generation(Config):
    """All that decides the rows of a table of samples, and how it is cut; not how many of them there are."""

    model: str = Field(description="fingerprint of the model folder")
    seed: int = Field(0, ge=0)
    sampler: dict[str, Any]
    pairs: bool = Field(False, description="also the noise that each sample was made of, and the sample before it was rounded to bytes")
    rows_per_shard: int = Field(gt=0, multiple_of=LANE)
    device: Literal["cpu", "cuda"] = "cpu"


class SampleSpec(Config):
    """All that decides the bytes of a shard."""

    generation: Generation
    first: int = Field(ge=0, multiple_of=LANE)
    count: int = Field(gt=0)

    @property
    def fingerprint(self) -> str:
        drawn = {name: value for name, value in self.generation.to_json().items() if name != "rows_per_shard"}
        return fingerprint([FORMAT_VERSION, CODE_VERSION, drawn, self.first, self.count])


def rows_that_fit(columns: dict[str, Column]) -> int:
    """Rows a shard: few enough for workers to share evenly, for a kill to lose little, and for a shard to fit into memory often."""
    row_bytes = sum(np.dtype(column.dtype).itemsize * int(np.prod(column.shape)) for column in columns.values())
    return max(LANE, min(MOST_ROWS, MOST_BYTES // row_bytes) // LANE * LANE)


def cut(generation: Generation, count: int) -> list[SampleSpec]:
    """The shards of the first `count` rows."""
    most = generation.rows_per_shard
    return [SampleSpec(generation=generation, first=first, count=min(most, count - first)) for first in range(0, count, most)]


def settled_sampler(family: Family, sampler: Config, pairs: bool = False) -> Config:
    """The sampler with nothing left open. Raises UserError, before anything is drawn, for a model that does not generate, or makes no
    pairs, and for options that it cannot follow."""
    if family.Sampler is None or not isinstance(sampler, family.Sampler):
        raise UserError(f"{type(family).__name__} does not generate samples; give a model that does, such as a prior")
    if pairs and type(family).sample_pairs is Family.sample_pairs:
        raise UserError(f"{type(family).__name__} does not make a picture of one noise, so it has no pairs; give a denoising model")
    return family.settled(sampler)


def columns_of(family: Family, sampler: Config, pairs: bool) -> dict[str, Column]:
    """The columns of its samples, which are points or pictures. Raises UserError when the model has no way to pictures."""
    points = makes_points(family)
    shape = family.sample_shape if points else picture_shape(family)
    columns = {POINT: Column(dtype="float32", shape=shape)} if points else {IMAGE: Column(dtype="uint8", shape=shape)}
    if pairs:
        columns |= {name: Column(dtype="float32", shape=shape) for name in (NOISE, IMAGE_FLOAT)}
    return columns if family.sample_labels(1, sampler) is None else columns | {LABEL: Column(dtype="int64")}


def write_samples_shard(family: Family, spec: SampleSpec, out: str) -> ShardEntry:
    """Draws the rows of one shard, on the device that the family is on, and writes it below `out`.

    Raises UserError for samples that are not finite.
    """
    with one_thread():
        blocks = list(_blocks(family, spec))
    rows = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    columns = {name: Column.parse({"dtype": str(values.dtype), "shape": values.shape[1:]}, name) for name, values in rows.items()}
    return write_rows(out, columns, rows, spec.fingerprint)


def written_shard(spec: SampleSpec, columns: dict[str, Column], out: str) -> ShardEntry | None:
    """The entry of a shard that an earlier run wrote below `out`; None when it cannot be read, or is of other columns or rows."""
    file = shard_file(spec.fingerprint)
    try:
        data = storage.read_bytes(storage.join(out, file))
        rows = decode(pa.py_buffer(data), columns, spec.count, file)
    except UserError:
        return None
    sha256 = hashlib.sha256(data).hexdigest()
    sums = sums_of(columns, rows)
    return ShardEntry(file=file, rows=spec.count, bytes=len(data), sha256=sha256, spec=spec.fingerprint, sums=sums)


def _blocks(family: Family, spec: SampleSpec) -> Iterator[Rows]:
    """The rows of a shard, so many at a time as the sampler draws at once."""
    assert family.Sampler is not None, f"{type(family).__name__} does not generate"
    sampler = family.Sampler.parse(spec.generation.sampler, "sampler")
    most = max(LANE, getattr(sampler, "batch_size", LANE) // LANE * LANE)
    end = spec.first + spec.count
    for first in range(spec.first, end, most):
        yield _draw(family, spec.generation, sampler, first, min(most, end - first))


def _draw(family: Family, generation: Generation, sampler: Config, first: int, count: int) -> Rows:
    if generation.pairs:
        noise, data = family.sample_pairs(count, generation.seed, sampler, first)
        rows = {NOISE: noise, IMAGE_FLOAT: data, IMAGE: to_images(family, data.add(1).div(2), first)}
    else:
        samples = family.sample(count, generation.seed, sampler, first)
        rows = {POINT: require_finite(samples, first).float()} if makes_points(family) else {IMAGE: to_images(family, samples, first)}
    labels = family.sample_labels(count, sampler, first)
    if labels is not None:
        rows[LABEL] = labels
    return {name: values.cpu().numpy() for name, values in rows.items()}
