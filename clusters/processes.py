"""Which processes belong to something that was started here, read from `/proc`, so that just those are ended.

A pid alone says nothing: the kernel gives it out again. A process is known by its pid, its start time and the boot in which it
started. What it starts later is found by session (a child inherits it, and keeps it when its parent dies), by the variable
that marks the environment, and by descent.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Process:
    """One process of this machine; equal values are the same process, also when its pid was used again."""

    pid: int
    started: int  # clock ticks after boot
    boot: str


@dataclass(frozen=True)
class _Row:
    process: Process
    parent: int
    session: int


def this_process() -> Process:
    return _row(os.getpid(), _boot()).process


def is_alive(process: Process) -> bool:
    """Whether it runs; one that ended and waits for its parent does not."""
    with suppress(OSError, ValueError):
        return _row(process.pid, _boot()).process == process
    return False


def family_of(known: Iterable[Process], mark: str, sessions: Iterable[int] = ()) -> dict[Process, int]:
    """Living processes, with the session of each: those `known`, all in their sessions or in `sessions`, all whose environment
    has `mark` (`NAME=value`), and all that these started."""
    table = {row.process.pid: row for row in _rows()}
    known = set(known)
    roots = [row for row in table.values() if row.process in known]
    inside = ({row.session for row in roots} | set(sessions)) - {os.getsid(0)}
    found = {
        row.process.pid for row in table.values() if row.process in known or row.session in inside or _is_marked(row.process.pid, mark)
    }
    grown = True
    while grown:
        children = {row.process.pid for row in table.values() if row.parent in found} - found
        found |= children
        grown = bool(children)
    found.discard(os.getpid())
    return {table[pid].process: table[pid].session for pid in found}


def end(find: Callable[[set[int]], dict[Process, int]], grace_seconds: float, kill_seconds: float = 20.0) -> int:
    """Ends all that `find(sessions)` returns, again until it finds nothing: asks, and kills after `grace_seconds`.

    `find` gets the sessions seen so far, which stay the family's own while one of it lives. Returns how many ended.
    Raises TimeoutError when something cannot be killed.
    """
    sessions: set[int] = set()
    ended: set[Process] = set()
    asked: set[Process] = set()
    started = time.monotonic()
    while found := find(sessions):
        sessions |= set(found.values())
        ended |= found.keys()
        late = time.monotonic() - started >= grace_seconds
        for process in found:
            if late or process not in asked:
                _send(process, signal.SIGKILL if late else signal.SIGTERM)
        asked |= found.keys()
        if time.monotonic() - started > grace_seconds + kill_seconds:
            raise TimeoutError(f"processes {sorted(process.pid for process in found)} do not end")
        time.sleep(POLL_SECONDS)
    return len(ended)


def _send(process: Process, number: signal.Signals) -> None:
    if is_alive(process):
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _rows() -> list[_Row]:
    boot, rows = _boot(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            rows.append(_row(int(folder.name), boot))
    return rows


def _row(pid: int, boot: str) -> _Row:
    """Raises ValueError for a process that ended, OSError for one that is gone."""
    line = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    state, parent, _, session, *rest = line.rpartition(")")[2].split()  # a name may hold blanks and brackets
    if state in "ZX":
        raise ValueError(f"process {pid} has ended")
    return _Row(Process(pid, int(rest[15]), boot), int(parent), int(session))


def _is_marked(pid: int, mark: str) -> bool:
    """Of other people's processes nothing can be read, and none is ours; a process that renamed itself has lost the mark."""
    try:
        return mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
