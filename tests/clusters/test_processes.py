"""Processes are found by session, mark and descent, ended with all that they started, and never mistaken for others."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from clusters.processes import end, family_of, is_alive, this_process

MARK = "RAYMILL_TEST_MARK=planted"
SLEEP = "import time; time.sleep(600)"
# starts a child in its own session and leaves it, as a daemon does, and then sleeps or ends
PARENT = (
    f"import subprocess, sys, time; print(subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=%s).pid, flush=True); %s"
)


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def started(own_session: bool, then: str, marked: bool) -> tuple[subprocess.Popen[str], int]:
    environment = dict([MARK.split("=")]) if marked else {}
    code = PARENT % (own_session, then)
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


@pytest.mark.parametrize(
    ("own_session", "then", "marked"),
    [(False, "pass", False), (True, "time.sleep(600)", False), (True, "pass", True)],
    ids=["orphan in the session", "child in another session", "marked orphan in another session"],
)
def test_all_that_was_started_is_ended(own_session: bool, then: str, marked: bool, bystander: subprocess.Popen[bytes]) -> None:
    process, child = started(own_session, then, marked)
    if then == "pass":
        process.wait()
    first = family_of([], MARK, [process.pid])
    assert child in {one.pid for one in first}
    end(lambda sessions: family_of(first, MARK, sessions), grace_seconds=0)
    assert not any(is_alive(one) for one in first)
    assert bystander.poll() is None
    process.wait()


def test_a_reused_pid_is_another_process(bystander: subprocess.Popen[bytes]) -> None:
    known = next(one for one in family_of([], MARK, [bystander.pid]) if one.pid == bystander.pid)
    for former in (replace(known, started=known.started - 1), replace(known, boot="another")):
        assert not is_alive(former)
        assert family_of([former], MARK) == {}
        assert end(lambda sessions, former=former: family_of([former], MARK, sessions), grace_seconds=0) == 0
    assert bystander.poll() is None
    assert is_alive(known)


def test_what_does_not_heed_is_killed_and_what_heeds_is_asked() -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    polite = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *a: sys.exit(7)); print(flush=True); time.sleep(600)"
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True) for code in (deaf, polite)]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    sessions = [process.pid for process in processes]
    started = time.monotonic()
    assert end(lambda seen: family_of([], MARK, {*sessions, *seen}), grace_seconds=2.0) == 2
    assert time.monotonic() - started >= 2.0
    assert [process.wait() for process in processes] == [-9, 7]


def test_this_process_is_alive() -> None:
    assert is_alive(this_process())
