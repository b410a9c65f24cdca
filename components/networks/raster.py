"""Convolutions that read a picture in raster order, row by row and from left to right, and so never look ahead.

A masked k x k kernel (van den Oord et al. 2016, arXiv 1601.06759) is zero below and right of its centre. What is left of it stands here
as two kernels without those zeros: `RowsAbove`, k // 2 whole rows, and `RowSoFar`, the k // 2 places left of the centre and the centre.
Where a picture has colours, channels have them too, and the centre shows a channel the colours before its own.

Both also go through a picture that is being drawn: a *cache* holds the inputs that the next row or place will look at.

Without biases: the gradient of one is a sum over all places of all pictures, in which convolutions of CPUs lose digits by adding in order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def colours_of(channels: int, colours: int) -> Tensor:
    """The colour of each of `channels`: about as many of the first as of the others, in that order."""
    return torch.arange(channels) * colours // channels


class RowsAbove(nn.Conv2d):
    """Row r sees `rows` rows that end with row r - 1, with `own` at row r, and `columns` // 2 places to either side."""

    def __init__(self, before: int, after: int, rows: int, columns: int, own: bool) -> None:
        super().__init__(before, after, (rows, columns), bias=False)
        self.rows, self.own, self.side = rows, own, columns // 2

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) -> (B, after, H, W)."""
        return super().forward(F.pad(x, (self.side, self.side, self.rows - self.own, self.own - 1)))

    def new_cache(self, batch: int, width: int) -> Tensor:
        """The rows that it sees, with margins, before the first: (B, before, rows, width + 2 side) zeros, channels last."""
        empty = self.weight.new_zeros(batch, self.in_channels, self.rows, width + 2 * self.side)
        return empty.contiguous(memory_format=torch.channels_last)

    def next_row(self, cache: Tensor, row: Tensor) -> Tensor:
        """Takes one more `row` (B, W, before) into the cache and reads it: (B, W, after)."""
        cache[:, :, :-1] = cache[:, :, 1:].clone()
        cache[:, :, -1, self.side : self.side + row.shape[1]] = row.transpose(1, 2)
        return super().forward(cache).squeeze(2).transpose(1, 2)


class RowSoFar(nn.Conv2d):
    """Place c of a row sees the `columns` places that end with c; of c itself the colours before a channel's own, with `own` its own too.

    `seen` and `made` are the colours of its input and output channels. The mask multiplies the weights whenever they are used: to zero them
    once would not last, since an optimizer's momentum moves them again.
    """

    mask: Tensor  # (after, before, 1, columns)

    def __init__(self, seen: Tensor, made: Tensor, columns: int, own: bool = True) -> None:
        super().__init__(len(seen), len(made), (1, columns), bias=False)
        self.columns = columns
        mask = torch.ones_like(self.weight)
        mask[:, :, 0, -1] = (seen <= made[:, None] if own else seen < made[:, None]).float()
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) -> (B, after, H, W)."""
        return self._conv_forward(F.pad(x, (self.columns - 1, 0, 0, 0)), self.weight * self.mask, None)

    def new_cache(self, batch: int, width: int) -> Tensor:
        """The row so far with a margin on its left: (B, columns - 1 + width, before) zeros."""
        return self.weight.new_zeros(batch, self.columns - 1 + width, self.in_channels)

    def matrix(self) -> Tensor:
        """The visible weights as they meet a stretch of the cache: (columns * before, after)."""
        return (self.weight * self.mask).squeeze(2).permute(2, 1, 0).reshape(-1, self.out_channels)

    def put(self, cache: Tensor, place: Tensor, column: int) -> None:
        """Takes what is at a place, (B, before), into the cache."""
        cache[:, column + self.columns - 1] = place

    def read(self, cache: Tensor, column: int, matrix: Tensor, rest: Tensor) -> Tensor:
        """What `forward` gives at a place that has been put, and the `rest` (B, after) added to it: (B, after)."""
        return torch.addmm(rest, cache[:, column : column + self.columns].flatten(1), matrix)


class Mixing(RowSoFar):
    """The channels of each place, mixed, and a bias."""

    bias: nn.Parameter

    def __init__(self, seen: Tensor, made: Tensor) -> None:
        super().__init__(seen, made, columns=1)
        self.bias = nn.Parameter(torch.zeros(len(made)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) -> (B, after, H, W)."""
        y = self._conv_forward(x, self.weight * self.mask, None)
        return y + self.bias[:, None, None].to(y.dtype)
