"""The processes that heavy stages use: none (0: this process), Ray workers on this machine, or on the cluster at an address."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from components.errors import UserError
from pipelines.watching import JOB, Watched

if TYPE_CHECKING:
    from clusters.train import WorkerGroup
    from components.sweep.sampling import Bench, SamplerGuide
    from components.sweep.trial import Guide
    from components.training.job import TrainingJob


@dataclass(frozen=True)
class WorkerCount:
    """From `least` to `most` workers, as many as there is room for at each time."""

    least: int
    most: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Of `2` or `1..3`; raises UserError for anything else."""
        first, separator, last = text.partition("..")
        if not (first.isdecimal() and (last.isdecimal() or not separator)):
            raise UserError(
                f"--workers {text} is not valid; give 0 for this process alone, the number of Ray workers, or the least and the most of "
                f"them, such as 1..3"
            )
        count = cls(int(first), int(last or first))
        if separator and not 0 < count.least < count.most:
            raise UserError(f"--workers {text} is not valid; a range goes from 1 or more to a larger number, such as 1..3")
        return count

    def __str__(self) -> str:
        return str(self.least) if self.least == self.most else f"{self.least}..{self.most}"


class Workers:
    """`count` data-parallel workers: `2`, or `1..3`. Ray is imported and started by the first stage that needs it, and kept to the end."""

    def __init__(self, count: str | int, address: str | None = None, watched: Watched | None = None) -> None:
        """`watched` is what metrics tell of the run: on a cluster at an address to its hub, here if a port is set for it."""
        self.count = WorkerCount.parse(str(count))
        if self.count.most == 0 and address is not None:
            raise UserError(f"--address {address} has no effect with --workers 0; give the number of workers on that cluster")
        self.address, self._watched = address, watched
        self._shares_cluster = self.count.most > 0 and (address is not None or JOB in os.environ)
        if self.count.least < self.count.most and not self._shares_cluster:
            raise UserError(
                f"--workers {self.count} has no effect without --address: a cluster of this machine alone holds {self.count.most} from the "
                f"start; give --workers {self.count.most}, or the address of a cluster"
            )
        self._session = ExitStack()
        self._warm = ExitStack()  # the worker group, in the session: gone before it ends
        self._connected = False
        self._group: WorkerGroup | None = None

    def connect(self) -> int:
        """Connects to Ray, once; returns the most workers there may be. Raises UserError when the cluster cannot be reached."""
        if self.count.most and not self._connected:
            from clusters.session import ray_cluster

            self._session.enter_context(ray_cluster(self.address, self.count.most))
            self._session.callback(self._warm.close)
            if self._watched is not None and self._shares_cluster:
                from clusters.metrics import told_to_cluster

                self._session.enter_context(told_to_cluster(self._watched.state))
            self._connected = True
        return self.count.most

    def train(self, job: TrainingJob, show: Callable[[Mapping[str, Any]], None]) -> None:
        """Runs the job to its end, on the same warm worker group as the jobs before it. Raises UserError for the user's mistakes."""
        if self.connect() == 0:
            from components.training.job import execute
            from components.training.outlet import Outlet

            execute(job, Outlet(show=show))
            return
        if self._group is None:
            from clusters.train import worker_group

            self._group = self._warm.enter_context(worker_group(self.count.least, self.count.most))
        self._group.train(job, show)

    def make_room(self) -> int:
        """As `connect`; the warm worker group goes first, since it holds the CPUs and GPUs that work of another kind waits for."""
        self._group = None
        self._warm.close()
        return self.connect()

    def run_trials(self, guide: Guide, cpus: float, gpus: float | None, at_most: int | None) -> None:
        """Runs the trials of a sweep, each on so many CPUs and GPUs, `at_most` of them at once."""
        if self.make_room() == 0:
            from components.sweep.trial import run_here

            run_here(guide)
            return
        from clusters.tune import run_trials

        run_trials(guide, cpus, gpus, at_most)

    def run_settings(self, bench: Bench, guide: SamplerGuide, cpus: float, gpus: float | None, at_most: int) -> None:
        """Tries the settings of a sampler sweep, each on so many CPUs and GPUs, `at_most` of them at once."""
        if self.make_room() == 0:
            from components.sweep.sampling import run_here

            run_here(bench, guide)
            return
        from clusters.sampler_sweep import run_settings

        run_settings(bench.job, bench.reference, guide, cpus, gpus, at_most)

    def __enter__(self) -> Workers:
        if self._watched is not None and not self._shares_cluster and os.environ.get("RAYMILL_METRICS_PORT"):
            from clusters.metrics import told_here

            self._session.enter_context(told_here(self._watched.state))
        return self

    def __exit__(self, kind: type[BaseException] | None, *problem: object) -> None:
        if self._watched is not None:
            self._watched.closes(failed=kind is not None)
        self._session.close()
