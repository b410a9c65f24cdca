"""The collectives a family may use, on one process and on many: sum, mean by rows, max and gather.

On one process each is the identity. On many they go through the default process group, gloo on CPUs and NCCL on GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Communication:
    """This worker's place among all: `rank` of `size`."""

    rank: int = 0
    size: int = 1

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

    def gather(self, value: Tensor) -> Tensor:
        """All workers' `value` (n, ...) of equal shape, in order of rank: (size * n, ...); no gradient flows through it."""
        if self.size == 1:
            return value.detach()
        parts = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(parts, value.detach().contiguous())
        return torch.cat(parts)

    def broadcast(self, value: Tensor) -> None:
        """Overwrites `value` in place by rank 0's."""
        if self.size > 1:
            dist.broadcast(value, src=0)

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def _reduce(self, value: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        if self.size == 1:
            return value.detach()
        reduced = value.detach().clone()
        dist.all_reduce(reduced, op=operation)
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
