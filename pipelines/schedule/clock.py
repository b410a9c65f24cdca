"""The time that a scheduler lives in. Tests give it another clock and drive days in milliseconds."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol

SLICE_SECONDS = 1.0  # of a sleep: a machine that was suspended, or whose clock was set, is noticed after so long


class Clock(Protocol):
    def now(self) -> datetime:
        """The time, in UTC."""
        ...

    def sleep_until(self, when: datetime) -> None:
        """Returns once `now()` is `when` or later."""
        ...


class SystemClock:
    """The machine's own."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def sleep_until(self, when: datetime) -> None:
        while (left := (when - self.now()).total_seconds()) > 0:
            time.sleep(min(left, SLICE_SECONDS))
