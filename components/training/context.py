"""What a family sees of the run while it computes a loss: the step, its rows, randomness and four collectives."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from components.training.communication import Communication
from components.training.randomness import Draws


@dataclass(frozen=True)
class Context:
    """One phase of one step on one worker. A family that needs more than this is asking to be the loop."""

    step: int
    phase: str
    random: Draws
    rows: int  # rows of this call's batch
    global_rows: int  # rows of the whole global batch
    world: Communication
    rows_by_worker: tuple[int, ...] = ()  # rows of this call on each worker, which `gather` needs

    def __post_init__(self) -> None:
        if not self.rows_by_worker and self.world.size == 1:
            object.__setattr__(self, "rows_by_worker", (self.rows,))

    @property
    def first_row(self) -> int:
        """Place of this call's first row in the global batch."""
        return self.random.first_row

    def sum(self, value: Tensor) -> Tensor:
        return self.world.sum(value)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the global batch of a value that is a mean over this call's rows."""
        return self.world.sum(value * (self.rows / self.global_rows))

    def max(self, value: Tensor) -> Tensor:
        return self.world.max(value)

    def gather(self, value: Tensor) -> Tensor:
        """All workers' `value`, whose first dimension is this call's rows, in order of rank."""
        return self.world.gather_uneven(value, self.rows_by_worker)
