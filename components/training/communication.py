"""The collectives a family may use, on one process and on many: sum, mean by rows, max and gather.

On one process each is the identity. On many they go through the default process group, gloo on CPUs and NCCL on GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Communication:
    """This worker's place among all: `rank` of `size`."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None  # None: the default group

    @classmethod
    def current(cls) -> Communication:
        """The default process group's, or one process where there is none."""
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else cls()

    def sum(self, value: Tensor) -> Tensor:
        """The sum over workers, shape kept; no gradient flows through it."""
        return self._reduce(value, dist.ReduceOp.SUM)

    def max(self, value: Tensor) -> Tensor:
        """The elementwise maximum over workers; no gradient flows through it."""
        return self._reduce(value, dist.ReduceOp.MAX)

    def gather_uneven(self, value: Tensor, rows: tuple[int, ...]) -> Tensor:
        """All workers' `value` (rows[rank], ...), in order of rank: (sum(rows), ...); no gradient flows through it."""
        value = value.detach()
        if self.size == 1:
            return value
        assert len(value) == rows[self.rank], f"{len(value)} rows given, {rows[self.rank]} announced"
        padded = value.new_zeros(max(rows), *value.shape[1:])  # gloo gathers equal shapes only
        padded[: len(value)] = value
        parts = [torch.empty_like(padded) for _ in rows]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat([part[:count] for part, count in zip(parts, rows, strict=True)])

    def gather_objects(self, value: Any) -> list[Any]:
        """All workers' plain values, in order of rank."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value, group=self.group)
        return gathered

    @contextmanager
    def apart(self) -> Iterator[Communication]:
        """The same workers as a gloo group of its own, for a thread beside the one that trains; every worker must enter."""
        if self.size == 1:
            yield self
            return
        group = dist.new_group(backend="gloo")
        try:
            yield replace(self, group=group)
            dist.barrier(group=group)  # a worker that leaves early aborts a gloo group
        finally:
            dist.destroy_process_group(group)

    def broadcast(self, value: Tensor) -> None:
        """Overwrites `value` in place by rank 0's."""
        if self.size > 1:
            dist.broadcast(value, src=0, group=self.group)

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier(group=self.group)

    def _reduce(self, value: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        if self.size == 1:
            return value.detach()
        reduced = value.detach().clone()
        dist.all_reduce(reduced, op=operation, group=self.group)
        return reduced


def rows_of(rank: int, size: int, global_rows: int, lane: int) -> slice:
    """The rows of a global batch that belong to `rank`: whole lanes, contiguous, as even as lanes allow.

    Raises ValueError when there are fewer lanes than workers, since a worker would have nothing to do.
    """
    lanes = -(-global_rows // lane)
    if lanes < size:
        raise ValueError(f"a global batch of {global_rows} rows has {lanes} lanes of {lane}, too few for {size} workers")
    first, last = lanes * rank // size, lanes * (rank + 1) // size
    return slice(first * lane, min(last * lane, global_rows))
