"""Batches of rows as tensors: a pure order says which rows, one background thread gathers blocks of many batches ahead.

The global batch of a step is a pure function of (seed, step); a worker takes its slice. So a run is placed by one integer, starts at
any step at once, and sees the same global batches with any number of workers.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from components.data.arrow import Rows
from components.data.dataset import Dataset
from components.data.order import rows_at
from components.errors import UserError
from components.training.communication import rows_of
from components.training.randomness import LANE

BLOCK_BYTES = 2 * 2**20  # gathered at once: enough to amortise a call, little enough to stay near the processor's caches
BLOCKS_AHEAD = 2
GROWTH = 8

Tensors = dict[str, Tensor]


class Loader:
    """Endless shuffled batches of one worker; `seconds_waited` adds up what the consumer waited for data."""

    def __init__(self, dataset: Dataset, batch_size: int, seed: int, rank: int = 0, size: int = 1, lane: int = LANE) -> None:
        """`batch_size` counts the rows of all workers; this one, `rank` of `size`, gets its whole lanes of them.

        Raises UserError when the data set is empty or the batch has too few lanes to give each worker one.
        """
        if dataset.num_rows == 0:
            raise UserError(f"{dataset.url} ({dataset.split}) has no rows; there is nothing to train on")
        try:
            self._slice = rows_of(rank, size, batch_size, lane)
        except ValueError as error:
            raise UserError(f"{error}; raise batch_size or use fewer workers") from None
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.seconds_waited = 0.0
        row_bytes = sum(np.dtype(c.dtype).itemsize * int(np.prod(c.shape)) for c in dataset.shape.columns.values())
        self._steps_a_block = max(1, BLOCK_BYTES // max(1, row_bytes * (self._slice.stop - self._slice.start)))

    def batches(self, first_step: int, last_step: int) -> Iterator[Tensors]:
        """This worker's rows of the global batches of steps [first_step, last_step): column -> (rows, *shape), on the CPU.

        Tensors are fresh and may be changed. They lie in pinned memory where there is a GPU.
        """
        local_rows = self._slice.stop - self._slice.start
        rooms = [self.dataset.room(local_rows * self._steps_a_block) for _ in range(2)]  # one for the thread, one for us
        spans = _growing_spans(first_step, last_step, self._steps_a_block)
        with ThreadPoolExecutor(1, "loader") as thread:
            ahead: deque[tuple[Future[list[Tensors]], range]] = deque()
            try:
                while True:
                    while len(ahead) < BLOCKS_AHEAD and (span := next(spans, None)) is not None:
                        ahead.append((thread.submit(self._block, span, rooms), span))
                    if not ahead:
                        return
                    block = self._wait(*ahead.popleft(), rooms)
                    block.reverse()
                    while block:
                        yield block.pop()  # nothing here keeps a batch that its consumer is done with
            finally:
                for future, _ in ahead:
                    future.cancel()

    def _wait(self, future: Future[list[Tensors]], steps: range, rooms: list[Rows]) -> list[Tensors]:
        """The block, gathered here when the thread has not begun it: on a busy machine the thread's turn comes late."""
        began = time.perf_counter()
        try:
            return self._block(steps, rooms) if future.cancel() else future.result()
        finally:
            self.seconds_waited += time.perf_counter() - began

    def _block(self, steps: range, rooms: list[Rows]) -> list[Tensors]:
        """This worker's batches of some steps. Large memory is taken from `rooms` and given back; batches are small and fresh."""
        global_rows = rows_at(self.seed, steps.start * self.batch_size, len(steps) * self.batch_size, self.dataset.num_rows)
        rows = global_rows.reshape(len(steps), self.batch_size)[:, self._slice]
        room = rooms.pop()
        gathered, places = self.dataset.gather(rows.reshape(-1), room)
        by_step = places.reshape(rows.shape)
        batches = [_tensors({name: values.take(own, axis=0) for name, values in gathered.items()}) for own in by_step]
        rooms.append(room)
        return batches


def evaluation_batches(dataset: Dataset, batch_size: int, rank: int = 0, size: int = 1, limit: int | None = None) -> Iterator[Tensors]:
    """The first `limit` rows (default: all) in order, every one exactly once over all workers: this worker's share of the batches.

    Batches go round the workers in turn; the last may be short, none is padded, and a worker may get one less than another.
    """
    num_rows = dataset.num_rows if limit is None else min(limit, dataset.num_rows)
    for first in range(rank * batch_size, num_rows, size * batch_size):
        yield _tensors(dataset.take(np.arange(first, min(first + batch_size, num_rows))))


def _growing_spans(first_step: int, last_step: int, largest: int) -> Iterator[range]:
    """Blocks of steps that grow eightfold up to `largest`, so that the first batch comes as soon as any."""
    length = 1
    while first_step < last_step:
        steps = range(first_step, min(first_step + length, last_step))
        yield steps
        first_step = steps.stop
        length = min(GROWTH * length, largest)


def _tensors(rows: Rows) -> Tensors:
    tensors = {name: torch.from_numpy(values) for name, values in rows.items()}
    if torch.cuda.is_available():
        return {name: tensor.pin_memory() for name, tensor in tensors.items()}
    return tensors
