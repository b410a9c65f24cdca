"""A scheduler in a process of its own, for tests: `python -m tests.pipelines.schedule.drive STORE [before|after]`.

With `before` it kills itself between the write-ahead and the start of a run, with `after` when it sees that a run has ended.
"""

from __future__ import annotations

import os
import signal
import sys
from datetime import timedelta

from pipelines.schedule.runner import ProcessRunner, Progressed
from pipelines.schedule.scheduler import Pace, Scheduler
from pipelines.schedule.state import Observer
from pipelines.store import Store

PACE = Pace(heartbeat=timedelta(seconds=1), watch=timedelta(seconds=0.1))


class Fatal(ProcessRunner):
    """Kills its scheduler at the worst moment."""

    def start(self, command: list[str], attempt: str) -> None:
        if "before" in sys.argv:
            os.kill(os.getpid(), signal.SIGKILL)
        super().start(command, attempt)

    def poll(self, attempt: str) -> Progressed:
        found = super().poll(attempt)
        if "after" in sys.argv and found.state == "ended":
            os.kill(os.getpid(), signal.SIGKILL)
        return found


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        Scheduler(Store(sys.argv[1]), Fatal, Observer(tell=lambda line: print(line, flush=True)), pace=PACE).serve()
    except KeyboardInterrupt:
        sys.exit(130)
