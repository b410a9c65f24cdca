"""Random numbers that are computed, never stored: a pure function of (seed, step, phase, name, global row).

Rows are drawn in *lanes* of eight, one generator a lane, so that a row gets the same numbers for any number of workers, at a cost that
does not grow with it; recomputing a layer repeats its draws exactly. After EDM2 (Karras et al. 2024, arXiv 2312.02696).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from components.seeds import LANE as LANE
from components.seeds import derive_seed as derive_seed

BLOCK = 16_384  # the same for rows of weights


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh `torch.Generator` on `device`, seeded by `derive_seed(*parts)`."""
    return torch.Generator(device).manual_seed(derive_seed(*parts))


def draw_by_row(draw: Callable[..., Tensor], first: int, last: int, shape: tuple[int, ...], *parts: int | str) -> Tensor:
    """Rows [first, last) of an endless table, (last - first, *shape) on the CPU: a row does not depend on which others are asked for."""
    rows = torch.empty(last - first, *shape)
    for block in range(first // BLOCK, -(-last // BLOCK)) if last > first else ():
        drawn = draw(BLOCK, *shape, generator=generator(*parts, block))
        low, high = max(first, block * BLOCK), min(last, (block + 1) * BLOCK)
        rows[low - first : high - first] = drawn[low - block * BLOCK : high - block * BLOCK]
    return rows


@dataclass(frozen=True)
class Draws:
    """Random tensors for the local rows of one phase of one step. `name` tells draws apart: the same name gives the same numbers."""

    seed: int
    step: int
    phase: str
    first_row: int  # place of this worker's first row in the global batch, a multiple of LANE
    device: torch.device

    def uniform(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Numbers in [0, 1), float32, of `shape` (rows, ...)."""
        return self._by_lane(name, shape, lambda size, g: torch.rand(size, generator=g, device=self.device))

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal numbers, float32, of `shape` (rows, ...)."""
        return self._by_lane(name, shape, lambda size, g: torch.randn(size, generator=g, device=self.device))

    def integers(self, name: str, high: int, shape: tuple[int, ...]) -> Tensor:
        """Integers in [0, high), int64, of `shape` (rows, ...)."""
        return self._by_lane(name, shape, lambda size, g: torch.randint(high, size, generator=g, device=self.device))

    def shared(self, name: str) -> torch.Generator:
        """A CPU generator that is equal on every worker, for choices about the whole batch."""
        return generator(self.seed, self.step, self.phase, name, "shared")

    def classes(self, name: str, first: int, last: int) -> Tensor:
        """Numbers in [0, 1) for classes [first, last), (last - first,) on the device: equal on every worker that asks for a class."""
        return draw_by_row(torch.rand, first, last, (), self.seed, self.step, self.phase, name, "classes").to(self.device)

    def _by_lane(self, name: str, shape: tuple[int, ...], draw: Callable[[tuple[int, ...], torch.Generator], Tensor]) -> Tensor:
        assert self.first_row % LANE == 0, "a worker's rows begin on a lane boundary"
        rows, rest = shape[0], tuple(shape[1:])
        assert rows > 0, "every worker has rows"
        lanes = range(self.first_row // LANE, -(-(self.first_row + rows) // LANE))
        parts = [draw((LANE, *rest), generator(self.seed, self.step, self.phase, name, lane, device=self.device)) for lane in lanes]
        return torch.cat(parts)[:rows]
