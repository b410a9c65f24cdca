"""When a run that could have more workers should stop for them: pure arithmetic, with a clock that the caller reads."""

from __future__ import annotations

from dataclasses import dataclass, field

LEAVING = 1.5  # a change costs the start of a group, and half as much for the checkpoint and for leaving: measured 1.3 to 1.5


@dataclass
class Growth:
    """A worker group since its last start: what that took, and how fast its run goes.

    A run is interrupted for more workers at most once in `interval` seconds, and only when that makes it end earlier.
    """

    interval: float  # seconds between two starts by choice
    started: float  # on the caller's clock
    ready: float | None = None  # when the workers took a job up for the first time
    _first: tuple[float, int] | None = field(default=None, init=False)
    _last: tuple[float, int] | None = field(default=None, init=False)

    def forget(self) -> None:
        """Begins with another job."""
        self._first = self._last = None

    def see(self, step: int, now: float) -> None:
        """Takes a metric row of `step`, seen now."""
        self._last = (now, step)
        self._first = self._first or self._last

    def seconds_left(self, steps: int, now: float) -> float | None:
        """Seconds to the end of the run's `steps` at the rate of this group; None before there is one."""
        if self._first is None or self._last is None or self._last[1] == self._first[1]:
            return None
        rate = (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])
        return (steps - self._last[1]) / rate - (now - self._last[0])

    def worthwhile(self, size: int, larger: int, steps: int, now: float) -> bool:
        """Whether `larger` instead of `size` workers save more than the change costs, if twice the workers are twice as fast."""
        left = self.seconds_left(steps, now)
        if left is None or self.ready is None or larger <= size or now - self.started < self.interval:
            return False
        return left * (1 - size / larger) > LEAVING * (self.ready - self.started)
