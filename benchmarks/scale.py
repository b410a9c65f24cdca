"""What one worker of very many spends: order, index, checkpoint and class rows at a billion rows, a thousand workers, ten million classes.

    python -m benchmarks.scale [--rows 1e9 --workers 1000 --classes 1e7]

Everything is the code that trains, run as worker 0 of a job whose other workers are not there. The share of the head and the index are too
large for a small machine: they are measured at two smaller sizes, and the line through these is drawn on; such figures are marked with ~.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.table import Table
from components import storage
from components.data.columns import Column
from components.data.index import ColumnSums, ShardEntry, ShardSums, make_index, read_index, write_index
from components.data.order import rows_at
from components.data.prepare_config import PrepareConfig
from components.networks.class_rows import ClassRows, rows_owned
from components.training.class_parallel import cross_entropy
from components.training.communication import Communication
from components.training.row_files import RowSlice, read_rows, upload_rows

SIDE, DIM = 112, 512
ROW_BYTES = 3 * SIDE * SIDE + 8
ROWS_A_WORKER = 32  # of a step


def seconds_of(call: Callable[[], Any], times: int = 5) -> float:
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def order(table: Table, rows: int, workers: int) -> None:
    batch, steps = workers * ROWS_A_WORKER, iter(range(1, 100))
    rows_at(0, 0, 1, rows)  # makes the tables of the epoch
    seconds = seconds_of(lambda: rows_at(0, next(steps) * batch, batch, rows))
    table.add(f"order of one global batch of {batch:,} rows", seconds, 8.0 * batch, None)
    table.add("the same when an epoch begins", seconds_of(lambda: rows_at(next(steps), 0, batch, rows)), 8.0 * batch, None)


def index(table: Table, rows: int, classes: int, shard_bytes: int) -> None:
    shards, per_shard = -(-rows * ROW_BYTES // shard_bytes), shard_bytes // ROW_BYTES
    measured = []
    for count in (500, 1000):
        with tempfile.TemporaryDirectory() as folder:
            labels = {number: 1 for number in range(min(per_shard, classes))}
            sums = ShardSums(columns={"image": ColumnSums(count=1, total=(0.5,) * 3, squares=(0.5,) * 3)}, classes=labels)
            entries = tuple(
                ShardEntry(file=f"shard-{n:016x}.arrow", rows=per_shard, bytes=shard_bytes, sha256=f"{n:064x}", spec=f"{n:016x}", sums=sums)
                for n in range(count)
            )
            columns = {"image": Column(dtype="uint8", shape=(3, SIDE, SIDE)), "label": Column(dtype="int64")}
            write_index(folder, make_index(columns, (), {"train": entries}, {}))
            measured.append((seconds_of(lambda folder=folder: read_index(folder), 1), float(storage.size(f"{folder}/index.json") or 0)))
    (few_s, few_b), (many_s, many_b) = measured
    seconds, size = (many + (many - few) / 500 * (shards - 1000) for few, many in ((few_s, many_s), (few_b, many_b)))
    table.add(f"~ index of {shards:,} shards of {shard_bytes / 2**20:,.0f} MiB, read by each worker", seconds, size, size / shards)


def checkpoint(table: Table, classes: int, workers: int) -> None:
    rows = ClassRows(classes, DIM)
    seconds = seconds_of(lambda: rows.cut(0, workers, 0), 1)
    own = rows.weight.numel() * 4.0
    table.add(f"class rows drawn, {rows.span[1]:,} of {DIM}", seconds, own, None)
    state = {f"{name}": rows.weight.detach().clone() for name in ("model/weight", "optimizer/m", "optimizer/v")}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as scratch:
        part = {"head": RowSlice(*rows.span, state)}
        files, sums = upload_rows(Path(scratch), folder, part, Communication())
        table.add(
            "its rows and optimizer state written",
            seconds_of(lambda: upload_rows(Path(scratch), folder, part, Communication())),
            3 * own,
            None,
        )
        fewer = {"head": (0, rows_owned(0, 2 * workers, classes)[1])}
        table.add("half of them read by one of twice as many", seconds_of(lambda: read_rows(folder, files, sums, fewer)), 1.5 * own, None)


def head(table: Table, classes: int, workers: int, share: float) -> None:
    """Logits of the worker's classes for everybody's rows, forth and back; `share` of the classes are in the step."""
    first, last = rows_owned(0, workers, classes)
    own, batch = max(1, int((last - first) * share)), workers * ROWS_A_WORKER
    rows = torch.randn(own, DIM, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def step(embeddings: int) -> None:
        given = torch.nn.functional.normalize(torch.randn(embeddings, DIM)).requires_grad_()
        logits = given @ torch.nn.functional.normalize(rows).T
        targets = torch.arange(embeddings) % own
        cross_entropy(64 * logits, targets, Communication()).mean().backward()

    step(1024)  # the first takes memory from the system
    few, many = (seconds_of(lambda count=count: step(count), 3) for count in (1024, 4096))
    seconds = many + (many - few) / (4096 - 1024) * (batch - 4096)
    table.add(f"~ head, {own:,} classes here, {batch:,} rows", seconds, 2 * 4.0 * batch * own, 4.0 * batch * DIM)


def main() -> Table:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=float, default=1e9, help=f"pictures of {SIDE} x {SIDE}")
    parser.add_argument("--workers", type=float, default=1000)
    parser.add_argument("--classes", type=float, default=1e7)
    given = parser.parse_args()
    rows, workers, classes = int(given.rows), int(given.workers), int(given.classes)
    table = Table(f"one worker of {workers:,}: {rows:,} rows, {classes:,} classes", ["what", "seconds", "bytes", "bytes each / moved"])
    order(table, rows, workers)
    for shard_mib in (PrepareConfig().shard_mib, 1024):
        index(table, rows, classes, shard_mib * 2**20)
    checkpoint(table, classes, workers)
    for share in (1.0, 0.1):
        head(table, classes, workers, share)
    return table


if __name__ == "__main__":
    print(main())
