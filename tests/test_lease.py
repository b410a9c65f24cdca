"""Leases: one holder among processes, on a local path and on a real S3 server; the dead are succeeded, and who lost one learns it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from components import lease as module
from components import object_store, storage
from components.errors import UserError
from components.lease import LeaseLost, clear, held, is_held, writing
from components.object_store import ConditionFailed
from tests.faulty_s3 import Faults, FaultyS3
from tests.s3 import S3Server

SECONDS = 1.0
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a lease of each kind may be."""
    return str(tmp_path / "locks" / "x.lock") if request.param == "local" else request.getfixturevalue("s3") + "/locks/x.lock"


def never_waits(owner: str) -> None:
    raise AssertionError(f"waits for {owner}")


def wait_until(condition: object, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_released_lease_leaves_nothing(place: str) -> None:
    numbers = []
    for _ in range(2):
        with held(place, never_waits, seconds=SECONDS) as lease:
            assert is_held(place)
            lease.check()
            numbers.append(lease.number)
            time.sleep(0.002)
    assert numbers[0] < numbers[1]
    assert not is_held(place)
    assert storage.list_files(place.rsplit("/", 1)[0]) == []


def test_a_failure_inside_releases_it(place: str) -> None:
    with pytest.raises(ZeroDivisionError), held(place, never_waits, seconds=SECONDS):
        1 / 0  # noqa: B018
    assert not is_held(place)


def test_an_exception_of_the_one_who_waits_ends_the_attempt(place: str) -> None:
    def refuse(owner: str) -> None:
        raise InterruptedError(owner)

    with held(place, never_waits, seconds=SECONDS):
        with pytest.raises(InterruptedError, match=f"process {os.getpid()} on "), held(place, refuse, seconds=SECONDS):
            pass
        assert is_held(place)


def _fight(place: str, rounds: int, barrier, wins) -> None:
    for _ in range(rounds):
        seen = storage.read_version(place)
        barrier.wait(60)
        try:
            wins.put(module._RemoteLease(place, SECONDS, seen).number)
        except ConditionFailed:
            wins.put(0)
        barrier.wait(60)


def test_eight_processes_fight_and_one_wins_every_time(s3: str) -> None:
    """The first round is over nothing, each later one over the same expired object."""
    rounds, fighters = 6, 8
    barrier, wins = SPAWN.Barrier(fighters), SPAWN.Queue()
    crew = [SPAWN.Process(target=_fight, args=(f"{s3}/x", rounds, barrier, wins)) for _ in range(fighters)]
    for process in crew:
        process.start()
    numbers = [wins.get(timeout=120) for _ in range(rounds * fighters)]
    for process in crew:
        process.join()
    won = [number for number in numbers if number]
    assert len(won) == len(set(won)) == rounds
    assert json.loads(storage.read_bytes(f"{s3}/x"))["number"] == max(won)


def _count(place: str, counter: str, times: int) -> None:
    for _ in range(times):
        with held(place, lambda owner: None, seconds=10.0) as lease:
            before = int(Path(counter).read_text())
            time.sleep(0.005)
            lease.check()
            Path(counter).write_text(str(before + 1))


def test_no_two_are_ever_inside(place: str, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    crew = [SPAWN.Process(target=_count, args=(place, str(counter), 4)) for _ in range(4)]
    for process in crew:
        process.start()
    for process in crew:
        process.join()
    assert [process.exitcode for process in crew] == [0] * 4
    assert counter.read_text() == "16"
    assert not is_held(place)


def _hold(place: str, ready, results) -> None:
    with held(place, never_waits, seconds=SECONDS) as lease:
        results.put(lease.number)
        ready.set()
        wait_until(lambda: lease.lost)
        try:
            lease.check()
        except LeaseLost as error:
            results.put(str(error))


def _start_holder(place: str):
    ready, results = SPAWN.Event(), SPAWN.Queue()
    holder = SPAWN.Process(target=_hold, args=(place, ready, results))
    holder.start()
    assert ready.wait(60)
    return holder, results


def test_the_lease_of_a_killed_process_is_taken_over(place: str) -> None:
    holder, results = _start_holder(place)
    first = results.get(timeout=60)
    owners: list[str] = []

    def waiting(owner: str) -> None:
        owners.append(owner)
        os.kill(holder.pid, signal.SIGKILL)

    with held(place, waiting, seconds=SECONDS) as lease:
        assert [owner.split(" on ")[0] for owner in owners] == [f"process {holder.pid}"]
        assert lease.number > first
    holder.join()
    assert not is_held(place)


def test_who_refuses_to_wait_is_certain_that_the_holder_lives(place: str) -> None:
    """A command that gives up at the sight of a lease would be stopped by that of a killed process for ever."""

    def refuse(owner: str) -> None:
        raise InterruptedError(owner)

    holder, _ = _start_holder(place)
    with pytest.raises(InterruptedError, match=f"process {holder.pid} on "), held(place, refuse, seconds=SECONDS, certain=True):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with held(place, refuse, seconds=SECONDS, certain=True):
        pass


def test_a_living_holder_is_waited_for_longer_than_the_lease_time(s3: str) -> None:
    inside, order = threading.Event(), []

    def hold() -> None:
        with held(f"{s3}/x", never_waits, seconds=SECONDS) as lease:
            inside.set()
            time.sleep(3 * SECONDS)
            lease.check()
            order.append("first")

    holder = threading.Thread(target=hold)
    holder.start()
    assert inside.wait(60)
    with held(f"{s3}/x", lambda owner: None, seconds=SECONDS):
        order.append("second")
    holder.join()
    assert order == ["first", "second"]


def test_a_stopped_holder_learns_that_it_lost(s3: str) -> None:
    holder, results = _start_holder(f"{s3}/x")
    first = results.get(timeout=60)
    os.kill(holder.pid, signal.SIGSTOP)
    with held(f"{s3}/x", lambda owner: None, seconds=SECONDS) as lease:
        assert lease.number > first
        os.kill(holder.pid, signal.SIGCONT)
        message = results.get(timeout=60)
        assert f"the lock {s3}/x was lost to process {os.getpid()} on" in message
        holder.join()
        lease.check()  # the loser removed nothing of ours
    assert not is_held(f"{s3}/x")


def test_a_stopped_server_costs_no_holder_its_lease(s3: str, s3_server: S3Server) -> None:
    """The server is away for several lease times, for holder and waiter alike: the holder goes on, the waiter waits."""
    inside, end, order = threading.Event(), threading.Event(), []

    def hold() -> None:
        with held(f"{s3}/x", never_waits, seconds=4 * SECONDS) as lease:
            inside.set()
            assert end.wait(120)
            lease.check()
            order.append("first")

    def wait() -> None:
        with held(f"{s3}/x", lambda owner: order.append("waits"), seconds=SECONDS):
            order.append("second")

    threads = [threading.Thread(target=hold), threading.Thread(target=wait)]
    threads[0].start()
    assert inside.wait(60)
    threads[1].start()
    wait_until(lambda: order == ["waits"])
    s3_server.stop()
    time.sleep(5 * SECONDS)
    s3_server.start()
    end.set()
    for thread in threads:
        thread.join()
    assert order == ["waits", "first", "second"]


@pytest.mark.parametrize("kind", ["refuse", "reset", "truncate"])
def test_lost_requests_and_lost_answers_lose_no_lease(
    s3: str, s3_server: S3Server, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with FaultyS3(s3_server.environment["AWS_ENDPOINT_URL_S3"], seed=2, faults=Faults(**{kind: 0.4})) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        for _ in range(4):
            with held(f"{s3}/x", never_waits, seconds=10.0) as lease:
                for _ in range(3):
                    lease.check()
        assert proxy.counts[kind] >= 5
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server.environment["AWS_ENDPOINT_URL_S3"])
    assert not is_held(f"{s3}/x")


def test_a_renewal_whose_answer_was_lost_for_good_is_known_later(s3: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultyS3(s3_server.environment["AWS_ENDPOINT_URL_S3"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        monkeypatch.setenv("RAYMILL_STORAGE_PATIENCE", "0")
        with held(f"{s3}/x", never_waits, seconds=100.0) as lease:
            proxy.faults = Faults(reset=1.0, methods=("PUT",))  # written, not answered
            with pytest.raises(UserError, match="did not answer"):
                lease.check()
            proxy.faults = Faults()
            lease.check()
            assert not lease.lost


def test_a_server_that_ignores_conditions_is_refused(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    request = object_store.request

    def unconditional(method: str, patience: float | None = None, **arguments: object) -> dict:
        kept = {name: value for name, value in arguments.items() if name not in ("IfMatch", "IfNoneMatch")}
        return request(method, patience, **kept)

    monkeypatch.setattr(object_store, "request", unconditional)
    monkeypatch.setattr(module, "_honest", set())
    with pytest.raises(UserError, match="ignores conditional requests"), held(f"{s3}/x", never_waits, seconds=SECONDS):
        pass
    assert storage.list_files(s3) == []


def test_what_nobody_waits_for_is_cleared_in_the_end(s3: str) -> None:
    holder, results = _start_holder(f"{s3}/x")
    results.get(timeout=60)
    clear(f"{s3}/x")
    assert is_held(f"{s3}/x")
    holder.kill()
    holder.join()
    clear(f"{s3}/x")
    assert is_held(f"{s3}/x"), "not yet: its holder may only be cut off"
    content = json.loads(storage.read_bytes(f"{s3}/x"))
    storage.write_bytes(f"{s3}/x", json.dumps(content | {"seconds": 0.0}).encode())
    wait_until(lambda: not is_held(f"{s3}/x"))
    clear(f"{s3}/x")
    assert storage.list_files(s3) == []


def test_an_object_that_is_none_of_ours_expires_like_any_other(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_holder", lambda found: module.Holder(seconds=SECONDS))
    storage.write_bytes(f"{s3}/x", b"what is this")
    owners: list[str] = []
    with held(f"{s3}/x", owners.append, seconds=SECONDS):
        assert owners == ["another process"]


def test_writing_holds_the_lease_beside_the_file(place: str) -> None:
    with writing(place, never_waits, seconds=SECONDS):
        storage.write_bytes(place, b"1")
        assert is_held(place.replace("x.lock", ".x.lock.lock"))
    assert storage.list_names(place.rsplit("/", 1)[0]) == ["x.lock"]


def test_writing_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="file/x cannot be written: a part of the path is a file"),
        writing(f"{tmp_path}/file/x", never_waits),
    ):
        pass
