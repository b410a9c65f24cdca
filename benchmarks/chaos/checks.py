"""What must hold after every event and every piece of work. Each check returns what it found wrong, in words; nothing means well."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass

from benchmarks.chaos.works import EVERY, Client, Work
from benchmarks.chaos.world import Request, World, patiently
from components.errors import UserError

LEAVING_SECONDS = 90.0  # for processes of an attempt that was killed, and for locks that expire
RUN_FILE = re.compile(r"(?P<run>.*/runs/[^/]+)/(?:metrics/(?P<rows>\d+)\.jsonl|checkpoints/step_(?P<kept>\d+)/checkpoint\.json|run\.json)$")


@dataclass(frozen=True)
class Restart:
    """A run that went on after something killed it: the last step known to be trained before, and the one that it went on from."""

    at: float
    reached: int
    resumed: int
    committed: int  # last checkpoint that was on storage when the event struck

    @property
    def again(self) -> int:
        """Steps trained twice, at most: of what came after the last row on storage, only that it was less than an interval is known."""
        return self.reached + EVERY - 1 - self.resumed

    def problems(self) -> list[str]:
        found = []
        if self.resumed < self.committed:
            found.append(f"went on from step {self.resumed}, though checkpoint {self.committed} was on storage")
        if self.reached - self.resumed > EVERY:
            found.append(f"went on from step {self.resumed}, though {self.reached} was reached")
        return found


def restart_after(world: World, work: Work, event_at: float) -> Restart | None:
    """The first restart of a training after the event, seen in what was written; None when nothing began again."""
    runs: dict[str, list[tuple[Request, re.Match[str]]]] = {}
    for request in world.proxy.since(0.0, work.prefix):
        if request.method == "PUT" and (match := RUN_FILE.match(request.key)):
            runs.setdefault(match["run"], []).append((request, match))
    found = [restart for written in runs.values() if (restart := _restart(written, event_at)) is not None]
    return min(found, key=lambda restart: restart.at, default=None)


def _restart(written: list[tuple[Request, re.Match[str]]], event_at: float) -> Restart | None:
    reached = committed = starts = 0
    for request, match in written:
        if match["rows"]:
            reached = max(reached, int(match["rows"]))
        elif match["kept"]:
            committed = int(match["kept"]) if request.at < event_at else committed
        else:
            info = json.loads(request.body)
            again, starts = info.get("starts", 0) > starts > 0, info.get("starts", 0)
            if again and request.at > event_at:
                return Restart(request.at, reached, info["resumed_from"], committed)
            if again:
                reached = info["resumed_from"]
    return None


def result(world: World, work: Work, expected: dict[str, str] | None) -> tuple[dict[str, str], list[str]]:
    """What the work left, and how it differs from `expected`, the result of an undisturbed run."""
    try:
        found = work.result(world.url(work.kind, work.name))
    except UserError as error:
        return {}, [f"damaged: {error}"]
    if expected is None or found == expected:
        return found, []
    differing = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    return found, [f"not bit-identical: {', '.join(differing[:3])} ({len(differing)} in all)"]


def changed(world: World, work: Work, before: dict[str, str]) -> list[str]:
    """What was committed before an event, and is gone or other now."""
    now = world.committed(work.prefix, work.commit)
    lost = sorted(key for key, etag in before.items() if now.get(key) != etag)
    return [f"lost or changed: {', '.join(lost[:3])} ({len(lost)} in all)"] if lost else []


def left_behind(world: World, client: Client) -> list[str]:
    """Processes and locks of a work that has ended. Both have some time to go."""
    deadline = time.monotonic() + LEAVING_SECONDS
    jobs = patiently(client.jobs) - {"", "None"}
    while True:
        processes = [
            p for p in world.processes() if (p.job in jobs and p.is_worker) or p.words[-len(client.work.words) :] == client.work.words
        ]
        locks = world.locks(client.work.prefix)
        if not processes and not locks:
            return []
        if time.monotonic() > deadline:
            break
        time.sleep(1.0)
    return [f"orphan process {p.pid} {p.title[:60]}" for p in processes] + [f"lock {key}" for key in locks]
