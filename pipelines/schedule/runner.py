"""Where a run goes on: here in a child process that ends with its scheduler.

`job_runner.py` has the other place: a job of a cluster, which outlives its scheduler.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

PARENT = "RAYMILL_PARENT"  # file descriptor of a pipe whose other end the scheduler holds
STOP_SECONDS = 60.0  # a child that was asked to leave is killed after so long
TAIL_BYTES = 4096


@dataclass(frozen=True)
class Progressed:
    """How an attempt stands. `gone`: nobody knows of it, it has to be started."""

    state: Literal["running", "ended", "gone"]
    exit_code: int | None = None
    error: str = ""  # the last line that it said, where it failed


class Runner(Protocol):
    """Starts attempts by an id; whoever takes over asks `poll` first."""

    def start(self, command: list[str], attempt: str) -> None: ...
    def poll(self, attempt: str) -> Progressed: ...
    def stop(self, attempt: str) -> None:
        """Asks the attempt to leave, and ends it when it does not."""
        ...

    def close(self) -> None:
        """The scheduler leaves."""
        ...


class ProcessRunner:
    """Child processes `python -m pipelines.cli ...`. Each watches a pipe and leaves when the scheduler is gone, however it went."""

    def __init__(self) -> None:
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._watched: dict[str, int] = {}  # our end of the pipe
        self._logs = Path(tempfile.mkdtemp(prefix="raymill-schedule-"))

    def start(self, command: list[str], attempt: str) -> None:
        theirs, ours = os.pipe()
        try:
            with open(self._log(attempt), "wb") as log:
                self._children[attempt] = subprocess.Popen(
                    [sys.executable, "-m", "pipelines.cli", *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[theirs],
                    start_new_session=True,  # the terminal's Ctrl-C reaches the scheduler, and the child by it
                    env={**os.environ, PARENT: str(theirs), "RAYMILL_METRICS_PORT": "0"},  # the scheduler has the port
                )
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        self._watched[attempt] = ours

    def poll(self, attempt: str) -> Progressed:
        child = self._children.get(attempt)
        if child is None:
            return Progressed("gone")
        code = child.poll()
        if code is None:
            return Progressed("running")
        os.close(self._watched.pop(attempt))
        del self._children[attempt]
        error = self._last_line(attempt) or (f"killed by signal {-code}" if code < 0 else f"exit code {code}")
        self._log(attempt).unlink(missing_ok=True)
        return Progressed("ended", code, error)

    def stop(self, attempt: str) -> None:
        child = self._children.get(attempt)
        if child is not None and child.poll() is None:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def close(self) -> None:
        for child in self._children.values():
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)  # all at once, then each is waited for
        for attempt in list(self._children):
            self.stop(attempt)
            self.poll(attempt)
        shutil.rmtree(self._logs, ignore_errors=True)

    def _log(self, attempt: str) -> Path:
        return self._logs / f"{attempt}.log"

    def _last_line(self, attempt: str) -> str:
        with open(self._log(attempt), "rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - TAIL_BYTES))
            return last_line(log.read().decode(errors="replace"))


def last_line(text: str) -> str:
    """The last line that is not empty, without the program's name before it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("raymill: ")[:500] if lines else ""


def leave_with_parent() -> None:
    """In a child of `ProcessRunner`: once the scheduler is gone, asks this process to leave, and ends it if it does not."""
    descriptor = os.environ.pop(PARENT, None)
    if descriptor is None:
        return

    def watch(pipe: int) -> None:
        os.read(pipe, 1)  # returns when the other end is closed, by its owner or by the kernel
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(STOP_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    os.set_inheritable(int(descriptor), False)
    threading.Thread(target=watch, args=(int(descriptor),), daemon=True).start()
