"""The actor through which a driver hands training jobs to a warm worker group and hears of them.

It imports neither torch nor the families, so that its process starts at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Posted:
    """A job as JSON values, the nodes of the workers that took it up, and how it ended."""

    job: dict[str, Any]
    taken: int = 0  # how often a worker group took it up
    nodes: dict[int, str] = field(default_factory=dict)  # of the worker that did so last, by rank
    rows: list[dict[str, Any]] = field(default_factory=list)
    asked_to_rest: bool = False
    done: bool = False
    user_error: str | None = None
    crash: str | None = None  # of the last worker that failed: another group may take the job up again

    @property
    def open(self) -> bool:
        return not self.done and self.user_error is None


@dataclass(frozen=True)
class News:
    """What a driver hears of a job: rows that it has not seen, and where the job stands."""

    rows: list[dict[str, Any]]
    taken: int
    nodes: dict[int, str]
    done: bool
    user_error: str | None
    crash: str | None


class Mailbox:
    """Jobs in the order of their posting; at most one is open at a time. All methods are actor calls."""

    def __init__(self) -> None:
        self._posted: list[Posted] = []
        self._closed = False
        self._changed = asyncio.Condition()

    async def post(self, job: dict[str, Any]) -> int:
        """Opens a job and returns its number."""
        async with self._changed:
            self._posted.append(Posted(job))
            self._changed.notify_all()
        return len(self._posted) - 1

    async def close(self) -> None:
        """Tells the workers to leave."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    async def next_job(self, after: int, rank: int, node: str) -> tuple[int, dict[str, Any]] | None:
        """Waits for an open job with a number above `after`; None when the group is to leave."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or self._open_after(after) is not None)
            number = self._open_after(after)
            if number is None:
                return None
            posted = self._posted[number]
            if rank == 0:
                posted.taken += 1
                posted.asked_to_rest = False
            posted.nodes[rank] = node
            self._changed.notify_all()
            return number, posted.job

    async def show(self, number: int, row: dict[str, Any]) -> None:
        """Takes a metric row for the driver."""
        async with self._changed:
            self._posted[number].rows.append(row)
            self._changed.notify_all()

    async def ask_to_rest(self, number: int) -> None:
        """The driver wants a checkpoint, and the workers to leave; they may come to the job's end before they hear of it."""
        async with self._changed:
            self._posted[number].asked_to_rest = True
            self._changed.notify_all()

    async def asked_to_rest(self, number: int) -> None:
        """Waits until the job's workers are asked to rest, or the job has ended."""
        posted = self._posted[number]
        async with self._changed:
            await self._changed.wait_for(lambda: posted.asked_to_rest or not posted.open)

    async def end(self, number: int, user_error: str | None = None, crash: str | None = None) -> None:
        """A worker says how the job ended; the first word counts. After a crash the job stays open, for workers that come back."""
        async with self._changed:
            posted = self._posted[number]
            if crash is not None:
                posted.crash = crash
            elif posted.open and user_error is not None:
                posted.user_error = user_error
            elif posted.open:
                posted.done = True
            self._changed.notify_all()

    async def news(self, number: int, seen: int, wait_seconds: float) -> News:
        """What there is beyond the first `seen` rows; waits a little for something new."""
        posted = self._posted[number]
        taken = posted.taken
        async with self._changed:
            with contextlib.suppress(TimeoutError):
                fresh = self._changed.wait_for(lambda: len(posted.rows) > seen or not posted.open or posted.taken > taken)
                await asyncio.wait_for(fresh, wait_seconds)
        return News(posted.rows[seen:], posted.taken, dict(posted.nodes), posted.done, posted.user_error, posted.crash)

    def _open_after(self, after: int) -> int | None:
        last = len(self._posted) - 1
        return last if last > after and self._posted[last].open else None
