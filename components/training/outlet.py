"""The one seam between the loop and where it runs: this worker's place, its device, and where progress goes.

`plain()` is one process; `torchrun()` joins the group that torchrun set up; Ray's lives in `clusters/train.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from components.training.communication import Communication
from components.training.record import RunRecord

Row = dict[str, Any]


def _silent(row: Row) -> None:
    """Shows nothing."""


@dataclass
class Outlet:
    """Where one worker stands and speaks. Rank 0 alone keeps the record and shows progress."""

    device: torch.device = field(default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    world: Communication = field(default_factory=Communication)
    show: Callable[[Row], None] = _silent
    record: RunRecord | None = None
    asked_to_rest: Callable[[], bool] | None = None  # answers at once; none: nobody asks here, and it costs nothing

    def rests(self) -> bool:
        """Whether the run is to leave a checkpoint now and stop, to go on later: rank 0's word. Every worker must ask at the same step."""
        if self.asked_to_rest is None:
            return False
        word = torch.tensor(float(self.asked_to_rest()), device=self.device)
        self.world.broadcast(word)
        return bool(word.item())

    def report(self, row: Row, flush: bool = False) -> None:
        """Takes one metric row, the same on every worker."""
        if self.world.rank:
            return
        if self.record is not None:
            self.record.add(row)
            if flush:
                self.record.flush()
        self.show(row)


def launched_by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def torchrun(show: Callable[[Row], None] = _silent) -> Iterator[Outlet]:
    """An outlet on the process group of torchrun: gloo on CPUs, NCCL on GPUs, one worker a GPU."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Outlet(device, Communication.current(), show)
        dist.barrier()  # a worker that leaves early aborts a gloo group
    finally:
        dist.destroy_process_group()
