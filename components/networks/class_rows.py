"""The last layer of a classifier over very many classes: one row of weights a class, of which each worker owns a contiguous slice.

A module of this kind is a *sharded child* of its family: all its parameters are cut along their first dimension, never averaged over
workers, and saved with the numbers of their rows (An et al. 2021, "Partial FC", arXiv 2010.05222).
"""

from __future__ import annotations

import torch
from torch import nn

from components.training.randomness import draw_by_row


def rows_owned(rank: int, size: int, num_rows: int) -> tuple[int, int]:
    """The rows [first, last) of worker `rank`: as even as can be, the first `num_rows mod size` workers own one more; may be empty."""
    share, extra = divmod(num_rows, size)
    first = rank * share + min(rank, extra)
    return first, first + share + (rank < extra)


class ClassRows(nn.Module):
    """Rows (C, D) and, if asked for, a bias (C,). Until `cut` it owns none, so that no process ever holds them all."""

    def __init__(self, num_rows: int, dim: int, bias: bool = False) -> None:
        super().__init__()
        self.num_rows, self.dim = num_rows, dim
        self.span = (0, 0)
        self.weight = nn.Parameter(torch.empty(0, dim))
        self.bias = nn.Parameter(torch.empty(0)) if bias else None

    def cut(self, rank: int, size: int, seed: int) -> None:
        """Takes this worker's slice, its weights drawn from N(0, 1 / D), the same for any number of workers."""
        self.span = first, last = rows_owned(rank, size, self.num_rows)
        device = self.weight.device
        rows = draw_by_row(torch.randn, first, last, (self.dim,), seed, "class rows")
        self.weight = nn.Parameter(rows.mul_(self.dim**-0.5).to(device))
        if self.bias is not None:
            self.bias = nn.Parameter(torch.zeros(last - first, device=device))
