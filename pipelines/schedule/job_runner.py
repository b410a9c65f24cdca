"""Runs as jobs of a cluster, over its Jobs API. They go on while no scheduler is there; the next one finds them by their id."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from components.errors import UserError
from pipelines.schedule.runner import Progressed, last_line

if TYPE_CHECKING:
    from clusters.jobs import Jobs

PATIENCE_SECONDS = 20.0  # a scheduler has other things to see to; it asks again later


class JobRunner:
    """Keeps the contract of `Runner`. Raises UserError while the cluster does not answer."""

    def __init__(self, cluster: str | None, tell: Callable[[str], None]) -> None:
        self._cluster, self._tell = cluster, tell

    @cached_property
    def _jobs(self) -> Jobs:
        from clusters.jobs import Jobs

        return Jobs(self._cluster, PATIENCE_SECONDS, self._tell)

    def start(self, command: list[str], attempt: str) -> None:
        from clusters.code_package import own_checkout
        from clusters.jobs import Job

        with _answers():
            self._jobs.submit(attempt, Job(command, own_checkout()))

    def poll(self, attempt: str) -> Progressed:
        with _answers():
            known = self._jobs.find(attempt)
            if known is None:
                return Progressed("gone")
            if not known.status.is_terminal():
                return Progressed("running")
            said: list[str] = []
            end = self._jobs.follow(attempt, said.append)
        return Progressed("ended", end.code, last_line("".join(said)) or end.reason)

    def stop(self, attempt: str) -> None:
        with _answers():
            self._jobs.stop(attempt)

    def close(self) -> None:
        """Jobs go on."""


@contextmanager
def _answers() -> Iterator[None]:
    """Makes a cluster that is away, or refuses, a reason to ask again instead of the scheduler's end."""
    from clusters.jobs import Lost, Refused

    try:
        yield
    except (Lost, Refused) as error:
        raise UserError(str(error)) from error
