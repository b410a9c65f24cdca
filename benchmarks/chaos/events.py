"""What the storm does, one function a kind: each hurts the work that is on now and returns what it did, or None when nothing is there to
be hurt yet. None of them helps the work afterwards; a node that was killed is replaced by a new one, as an autoscaler would.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.chaos.processes import Seen
from benchmarks.chaos.works import Work
from benchmarks.chaos.world import World
from tests.faulty_s3 import Faults

SHARE = 0.2
FAULT_SECONDS = (5.0, 9.0)
AWAY_SECONDS = (2.0, 6.0)
UNTIL_FELT_SECONDS = 90.0  # for a fault that waits for somebody to read


class Struck(Protocol):
    """A work that is on, as far as events look at it."""

    @property
    def work(self) -> Work: ...
    def is_running(self) -> bool: ...
    def driver(self) -> Seen | None: ...
    def supervisor(self) -> Seen | None: ...
    def workers(self) -> list[Seen]: ...


@dataclass(frozen=True)
class Scene:
    """Where an event happens: the work under way and the draws of its lane."""

    world: World
    client: Struck
    draw: random.Random

    def is_on(self) -> bool:
        return self.client.is_running()


Event = Callable[[Scene], str | None]


def kill_worker(scene: Scene) -> str | None:
    workers = scene.client.workers()
    if not workers:
        return None
    victim = scene.draw.choice(sorted(workers, key=lambda one: one.pid))
    return _kill(victim.pid, victim.title)


def kill_driver(scene: Scene) -> str | None:
    driver = scene.client.driver()
    return None if driver is None else _kill(driver.pid, "driver")


def kill_supervisor(scene: Scene) -> str | None:
    supervisor = scene.client.supervisor()
    return None if supervisor is None else _kill(supervisor.pid, supervisor.title)


def kill_raylet(scene: Scene) -> str | None:
    """A raylet with workers of this work on it; the head stays, as it does where it has a machine of its own."""
    with scene.world.nodes_turn:
        for thread in scene.world.joining:
            thread.join()
        nodes = sorted({process.node for process in scene.client.workers() if process.node})
        if not nodes:
            return None
        node = scene.draw.choice(nodes)
        scene.world.replace_node(node)
    return f"node {node}"


def stop_storage(scene: Scene) -> str | None:
    """SIGSTOP: connections stay open and nothing answers."""
    with scene.world.storage_turn:
        pid = scene.world.server.pid
        seconds = scene.draw.uniform(*AWAY_SECONDS)
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            os.kill(pid, signal.SIGCONT)
    return f"{seconds:.1f} s"


def restart_storage(scene: Scene) -> str | None:
    with scene.world.storage_turn:
        began = time.monotonic()
        scene.world.server.stop()
        time.sleep(scene.draw.uniform(0.0, 2.0))
        scene.world.server.start()
    return f"away {time.monotonic() - began:.1f} s"


def refuse(scene: Scene) -> str | None:
    """A fifth of all requests, until some were refused."""
    with scene.world.storage_turn:
        before = scene.world.proxy.counts["refuse"]
        with _faults(scene, Faults(refuse=SHARE)):
            _wait(scene, scene.draw.uniform(*FAULT_SECONDS), lambda: scene.world.proxy.counts["refuse"] >= before + 3)
    return f"{scene.world.proxy.counts['refuse'] - before} requests refused"


def fill_disk(scene: Scene) -> str | None:
    """The cache's disk is full of another's file when shards have to be fetched again, and stays so for a while."""
    world = scene.world
    with world.disk_turn:
        if world.disk is None or not (shards := _cached(world.disk)):
            return None
        victim = kill_worker(scene) if scene.client.work.workers and scene.client.work.kind != "sweep" else ""
        if victim is None:
            return None
        began = time.monotonic()
        for shard in shards:
            shard.unlink(missing_ok=True)
        filler = world.disk / "another's file"
        try:
            _fill(filler)
            felt = _wait(scene, 0.0, lambda: _shards_read(world, began) > 0)
            _fill(filler)
            time.sleep(2.0)
        finally:
            filler.unlink(missing_ok=True)
    return f"{len(shards)} shards gone, {'full when they were fetched' if felt else 'nobody fetched one'}"


def cut_shard(scene: Scene) -> str | None:
    """Half of a shard that is being read: a cached one under its readers, or on its way from the server."""
    world = scene.world
    if scene.client.work.kind in ("prepare", "sample"):
        return _cut_on_its_way(scene, "")
    with world.disk_turn:
        shards = _cached(world.disk) if world.disk is not None else []
        if not shards or not scene.client.workers():
            return None
        if scene.client.work.kind == "tokens" and scene.draw.random() < 0.5:
            shard = scene.draw.choice(shards)
            os.truncate(shard, shard.stat().st_size // 2)
            return "a cached shard, under its readers"
        if scene.client.work.kind == "tokens" and kill_worker(scene) is None:
            return None
        for shard in shards:
            shard.unlink(missing_ok=True)
        return _cut_on_its_way(scene, ".arrow")


def _cut_on_its_way(scene: Scene, part: str) -> str:
    world = scene.world
    with world.storage_turn:
        before = world.proxy.counts["truncate"]
        with _faults(scene, Faults(truncate=0.5, methods=("GET",), part=part)):
            _wait(scene, scene.draw.uniform(*FAULT_SECONDS), lambda: world.proxy.counts["truncate"] > before)
    return f"{world.proxy.counts['truncate'] - before} answers cut short"


KINDS: dict[str, Event] = {
    "worker": kill_worker,
    "raylet": kill_raylet,
    "driver": kill_driver,
    "supervisor": kill_supervisor,
    "stop": stop_storage,
    "restart": restart_storage,
    "refuse": refuse,
    "disk": fill_disk,
    "cut": cut_shard,
}
KILLS = ("worker", "raylet", "driver", "supervisor", "disk", "cut")  # after these something starts anew

# kind of work -> how many events of each kind of a hundred
SHARES = {
    "tokens": {"worker": 8, "raylet": 3, "driver": 4, "supervisor": 3, "stop": 3, "restart": 3, "refuse": 3, "disk": 3, "cut": 4},
    "prepare": {"worker": 3, "raylet": 2, "driver": 2, "supervisor": 2, "stop": 2, "restart": 2, "refuse": 2, "cut": 2},
    "sample": {"driver": 4, "supervisor": 2, "stop": 2, "restart": 1, "refuse": 2, "cut": 1},
    "sweep": {"worker": 5, "raylet": 2, "driver": 3, "supervisor": 2, "stop": 2, "restart": 2, "refuse": 2, "disk": 2, "cut": 2},
    "schedule": {"scheduler": 7, "run": 4, "stop": 1, "restart": 2, "refuse": 1},
}


def plan(events: int, only: list[str], draw: random.Random) -> dict[str, list[str]]:
    """Kind of work -> kinds of events, in a drawn order; of every hundred as `SHARES` says."""
    every = [(work, kind) for work, kinds in SHARES.items() for kind, count in kinds.items() for _ in range(count)]
    every = [(work, kind) for work, kind in every if not only or kind in only]
    chosen: list[tuple[str, str]] = []
    while len(chosen) < events and every:
        draw.shuffle(every)
        chosen += every[: events - len(chosen)]
    return {work: [kind for other, kind in chosen if other == work] for work in SHARES}


def _kill(pid: int, name: str) -> str | None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return None
    return name.split("(")[0]


@contextmanager
def _faults(scene: Scene, faults: Faults) -> Iterator[None]:
    scene.world.proxy.faults = faults
    try:
        yield
    finally:
        scene.world.proxy.faults = Faults()


def _wait(scene: Scene, at_least: float, felt: Callable[[], bool]) -> bool:
    """Until so many seconds are over and the fault was felt, or the work has ended."""
    began = time.monotonic()
    while scene.is_on() and time.monotonic() - began < max(at_least, UNTIL_FELT_SECONDS):
        if felt() and time.monotonic() - began >= at_least:
            break
        time.sleep(0.1)
    return felt()


def _cached(disk: Path) -> list[Path]:
    return sorted(file for file in disk.iterdir() if file.is_file() and len(file.name) == 64)


def _fill(file: Path) -> None:
    """Writes until nothing more fits."""
    with suppress(OSError), open(file, "ab", buffering=0) as output:
        for size in (2**20, 2**12, 1):
            with suppress(OSError):
                while True:
                    output.write(b"\0" * size)


def _shards_read(world: World, since: float) -> int:
    return sum(request.method == "GET" for request in world.proxy.since(since, ""))
