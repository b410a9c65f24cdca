"""The processes that heavy stages use: none (0: this process), Ray workers on this machine, or on the cluster at an address."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from components.errors import UserError
from pipelines.watching import JOB, Watched

if TYPE_CHECKING:
    from clusters.train import WorkerGroup
    from components.sweep.trial import Guide
    from components.training.job import TrainingJob


class Workers:
    """`count` data-parallel workers. Ray is imported and started by the first stage that needs it, and kept to the end of the run."""

    def __init__(self, count: int, address: str | None = None, watched: Watched | None = None) -> None:
        """`watched` is what metrics tell of the run: on a cluster at an address to its hub, here if a port is set for it."""
        if count < 0:
            raise UserError(f"--workers {count} is not valid; give 0 for this process alone, or the number of Ray workers")
        if count == 0 and address is not None:
            raise UserError(f"--address {address} has no effect with --workers 0; give the number of workers on that cluster")
        self.count, self.address, self._watched = count, address, watched
        self._shares_cluster = count > 0 and (address is not None or JOB in os.environ)
        self._session = ExitStack()
        self._connected = False
        self._group: WorkerGroup | None = None

    def connect(self) -> int:
        """Connects to Ray, once; returns `count`. Raises UserError when the cluster cannot be reached."""
        if self.count and not self._connected:
            from clusters.session import ray_cluster

            self._session.enter_context(ray_cluster(self.address, self.count))
            if self._watched is not None and self._shares_cluster:
                from clusters.metrics import told_to_cluster

                self._session.enter_context(told_to_cluster(self._watched.state))
            self._connected = True
        return self.count

    def train(self, job: TrainingJob, show: Callable[[Mapping[str, Any]], None]) -> None:
        """Runs the job to its end, on the same warm worker group as the jobs before it. Raises UserError for the user's mistakes."""
        if self.connect() == 0:
            from components.training.job import execute
            from components.training.outlet import Outlet

            execute(job, Outlet(show=show))
            return
        if self._group is None:
            from clusters.train import worker_group

            self._group = self._session.enter_context(worker_group(self.count))
        self._group.train(job, show)

    def run_trials(self, guide: Guide, cpus: float, gpus: float | None, at_most: int | None) -> None:
        """Runs the trials of a sweep, each on so many CPUs and GPUs, `at_most` of them at once."""
        if self.connect() == 0:
            from components.sweep.trial import run_here

            run_here(guide)
            return
        from clusters.tune import run_trials

        run_trials(guide, cpus, gpus, at_most)

    def __enter__(self) -> Workers:
        if self._watched is not None and not self._shares_cluster and os.environ.get("RAYMILL_METRICS_PORT"):
            from clusters.metrics import told_here

            self._session.enter_context(told_here(self._watched.state))
        return self

    def __exit__(self, kind: type[BaseException] | None, *problem: object) -> None:
        if self._watched is not None:
            self._watched.closes(failed=kind is not None)
        self._session.close()
