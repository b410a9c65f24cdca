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
    """A job as JSON values, how often a worker group took it up, and how it ended."""

    job: dict[str, Any]
    attempts: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False
    user_error: str | None = None
    crash: str | None = None

    @property
    def open(self) -> bool:
        return not self.done and self.user_error is None and self.crash is None


class Mailbox:
    """Jobs in the order of their posting; at most one is open at a time. All methods are actor calls."""

    def __init__(self, max_attempts: int) -> None:
        self._max_attempts = max_attempts
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

    async def next_job(self, after: int, rank: int) -> tuple[int, dict[str, Any]] | None:
        """Waits for an open job with a number above `after`; None when the group is to leave."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or self._open_after(after) is not None)
            number = self._open_after(after)
            if number is None:
                return None
            posted = self._posted[number]
            if rank == 0:
                posted.attempts += 1
                if posted.attempts > self._max_attempts:
                    posted.crash = posted.crash or f"its workers died {self._max_attempts} times"
                    self._changed.notify_all()
            return number, posted.job

    async def show(self, number: int, row: dict[str, Any]) -> None:
        """Takes a metric row for the driver, and adds how many worker groups the job has lost."""
        async with self._changed:
            posted = self._posted[number]
            posted.rows.append(row | {"restarts": posted.attempts - 1})
            self._changed.notify_all()

    async def end(self, number: int, user_error: str | None = None, crash: str | None = None) -> None:
        """A worker says how the job ended; the first word counts. A crash counts only if no later attempt is left."""
        async with self._changed:
            posted = self._posted[number]
            if posted.open and crash is not None:
                posted.crash = crash if posted.attempts >= self._max_attempts else None
            elif posted.open and user_error is not None:
                posted.user_error = user_error
            elif posted.open:
                posted.done = True
            self._changed.notify_all()

    async def news(self, number: int, seen: int, wait_seconds: float) -> tuple[list[dict[str, Any]], bool, str | None, str | None]:
        """Rows beyond the first `seen`, and (done, user_error, crash); waits a little for something new."""
        posted = self._posted[number]
        async with self._changed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(lambda: len(posted.rows) > seen or not posted.open), wait_seconds)
        return posted.rows[seen:], posted.done, posted.user_error, posted.crash

    def _open_after(self, after: int) -> int | None:
        last = len(self._posted) - 1
        return last if last > after and self._posted[last].open else None
