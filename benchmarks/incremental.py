"""What a day of new data costs beside 1, 10 and 100 days of old data, and a run without any: seconds, bytes read, shards made.

    python -m benchmarks.incremental

Each row prepares the old days in a fresh store, adds one day and runs again, then runs once more with nothing new. `images` is the stage
of `run tokens`, in this process; pictures are PNG files of 28 x 28 pixels by class and day, rows are .npz files of such pictures, one a
day. On S3 both source and store lie on a server on this machine.
"""

from __future__ import annotations

import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast
from unittest import mock

import numpy as np
from PIL import Image

from benchmarks.table import Table
from clusters import preprocess
from components import storage
from components.config import Config
from components.data.prepare_config import PrepareConfig
from components.data.shards import ShardSpec
from components.data.sources.known import SETTLED_SECONDS
from pipelines.stage import Pipeline
from pipelines.store import Artifact, Store
from pipelines.tokens import images
from pipelines.workers import Workers
from tests.s3 import S3Server

PICTURES_A_DAY, ROWS_A_DAY = 400, 4000
CLASSES = 4
LONG_AGO = 1_000_000_000


class DataConfig(Config):
    """A pipeline that ends with its data."""

    data: str
    images: PrepareConfig = PrepareConfig(rows_per_shard=500)


PREPARED = Pipeline("prepared", "Data alone.", DataConfig, [images], {})


@dataclass
class Cost:
    """What one run took; bytes and shards are counted, not estimated."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0  # of this process alone: what the work takes, whoever else uses the machine
    files: int = 0
    bytes: int = 0
    made: int = 0
    shards: int = 0


class _Quiet:
    """Nobody is told."""

    def begins(self, stage: str) -> None: ...
    def reports(self, stage: str, row: Mapping[str, Any]) -> None: ...
    def waits(self, stage: str, owner: str) -> None: ...
    def ends(self, stage: str, artifact: Artifact, made: bool) -> None: ...


class _Counted(io.RawIOBase):
    """A file that adds what is read of it to a cost."""

    def __init__(self, file: BinaryIO, cost: Cost) -> None:
        self._file, self._cost = file, cost

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        count = int(cast(Any, self._file).readinto(buffer))
        self._cost.bytes += count
        return count


@contextmanager
def _counting(source: str) -> Iterator[Cost]:
    """Counts files opened and bytes read below `source`, and shards made."""
    cost, open_read, write_shard = Cost(), storage.open_read, preprocess.write_shard

    def counted(url: str) -> BinaryIO:
        file = open_read(url)
        if not url.startswith(source):
            return file
        cost.files += 1
        return cast(BinaryIO, io.BufferedReader(_Counted(file, cost), 2**20))

    def noted(spec: ShardSpec, out: str) -> Any:
        cost.made += 1
        return write_shard(spec, out)

    with mock.patch.object(storage, "open_read", counted), mock.patch.object(preprocess, "write_shard", noted):
        yield cost


def _run(source: str, store: str) -> Cost:
    with _counting(source) as cost, Workers(0) as workers:
        started, worked = time.perf_counter(), time.process_time()
        artifact, _ = PREPARED.run(DataConfig(data=source), Store(store), workers, _Quiet(), "")["images"]
        cost.seconds, cost.cpu_seconds = time.perf_counter() - started, time.process_time() - worked
    cost.shards = sum(file.endswith(".arrow") for file in artifact.manifest.files)
    return cost


def _add_pictures(source: str, day: int) -> None:
    pixels = np.random.default_rng(day).integers(0, 256, (PICTURES_A_DAY, 28, 28), dtype=np.uint8)
    for number, picture in enumerate(pixels):
        sink = io.BytesIO()
        Image.fromarray(picture).save(sink, "PNG", compress_level=1)
        _put(f"{source}/class-{number % CLASSES}/{day:03d}-{number:05d}.png", sink.getvalue())


def _add_rows(source: str, day: int) -> None:
    draw = np.random.default_rng(day)
    pixels = draw.integers(0, 256, (ROWS_A_DAY, 28, 28), dtype=np.uint8)
    sink = io.BytesIO()
    np.savez(sink, images=pixels, labels=draw.integers(0, CLASSES, ROWS_A_DAY))
    _put(f"{source}/{day:03d}.npz", sink.getvalue())


def _put(url: str, data: bytes) -> None:
    """Writes a file as old as files of the real world are."""
    if storage.is_remote(url):
        storage.write_bytes(url, data)
        return
    os.makedirs(os.path.dirname(url), exist_ok=True)
    Path(url).write_bytes(data)
    os.utime(url, (LONG_AGO, LONG_AGO))


def _measure(table: Table, label: str, root: str, add: Callable[[str, int], None], days: int) -> None:
    source, store = f"{root}/source", f"{root}/store"
    for day in range(days):
        add(source, day)
    _settle(root)
    first = _run(source, store)
    add(source, days)
    _settle(root)
    grown, idle = _run(source, store), _run(source, store)
    for name, cost in (("all old data", first), ("one new day", grown), ("nothing new", idle)):
        table.add(f"{label}, {days} x: {name}", cost.seconds, cost.cpu_seconds, cost.files, cost.bytes / 2**20, cost.made, cost.shards)
    print(f"{label}, {days} x done", flush=True)


def _settle(root: str) -> None:
    """Objects carry the time of their upload; what is too new is not remembered."""
    if storage.is_remote(root):
        time.sleep(SETTLED_SECONDS + 1)


def main() -> Table:
    table = Table("preparing again", ["old data, then", "seconds", "CPU seconds", "files read", "MiB read", "shards made", "shards"])
    with tempfile.TemporaryDirectory() as scratch:
        for days in (1, 10, 100):
            _measure(table, "pictures", f"{scratch}/pictures-{days}", _add_pictures, days)
            _measure(table, "rows", f"{scratch}/rows-{days}", _add_rows, days)
        server = S3Server(Path(scratch) / "s3")
        server.start()
        try:
            server.make_bucket("raymill")
            with mock.patch.dict(os.environ, server.environment):
                for days in (1, 10):
                    _measure(table, "rows on S3", f"s3://raymill/rows-{days}", _add_rows, days)
        finally:
            server.stop()
    return table


if __name__ == "__main__":
    print(main())
