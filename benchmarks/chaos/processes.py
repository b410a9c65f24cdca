"""Processes of a cluster as `/proc` shows them, found without asking the cluster: by the files that they hold open in its folder."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from clusters.raylets import MARK

SERVICES = (  # Ray's own, its pool of workers without work, and what it keeps for the whole cluster
    *("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent"),
    *("ray::_AutoscalingCoordinatorActor", "ray::_StatsActor", "ray::HubActor"),
)
LOG = re.compile(r"/(\d+)/session_[^/]*/logs/worker-[0-9a-f]+-([0-9a-f]+)-\d+\.(?:out|err)")


@dataclass(frozen=True)
class Seen:
    """One process: what it says of itself, the node it belongs to (None unknown), and the Ray job whose worker it is ('' of none)."""

    pid: int
    parent: int
    title: str
    words: tuple[str, ...]
    node: int | None
    job: str

    @property
    def is_worker(self) -> bool:
        """Whether it has work: not Ray's own service, and no worker that waits for some."""
        return self.title.startswith("ray::") and not self.title.startswith(SERVICES)

    @property
    def is_command(self) -> bool:
        """Whether it is a command of Raymill's."""
        return any(word.endswith(("/raymill", "pipelines.cli")) for word in self.words[:4])


def processes_of(folder: Path) -> list[Seen]:
    """All living processes whose environment has the cluster's mark, or that hold a file in its folder open."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            if (seen := _look(place, f"{folder}/")) is not None:
                found.append(seen)
    return found


def is_alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _look(place: Path, folder: str) -> Seen | None:
    state, parent = (place / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
    if state in "ZX" or int(place.name) == os.getpid():
        return None
    marked = f"{MARK}={folder}".encode() in (place / "environ").read_bytes()
    held = [target for target in _open_files(place) if target.startswith(folder)]
    if not marked and not held:
        return None
    words = tuple((place / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0"))
    log = next((match for target in held if (match := LOG.search(target))), None)
    node = next((int(part) for target in held if (part := target.removeprefix(folder).split("/")[0]).isdigit()), None)
    return Seen(int(place.name), int(parent), " ".join(words).strip(), words, node, log[2] if log else "")


def _open_files(place: Path) -> list[str]:
    found = []
    for link in (place / "fd").iterdir():
        with suppress(OSError):
            found.append(os.readlink(link))
    return found


def commands(text: str) -> list[Seen]:
    """All living commands of Raymill's, in a cluster or not, that name `text`."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            words = tuple((place / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0"))
            state, parent = (place / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
            seen = Seen(int(place.name), int(parent), " ".join(words), words, None, "")
            if state not in "ZX" and text in words and seen.is_command:
                found.append(seen)
    return found


def descendants(pid: int) -> dict[int, str]:
    """Command lines of all processes below `pid`, Ray's own daemons' children included."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(") ", 1)[1].split()[1])
    below, found = {pid}, {}
    while grown := {child for child, parent in parents.items() if parent in below} - below:
        below |= grown
    for child in below - {pid}:
        with suppress(OSError):
            found[child] = (Path("/proc") / str(child) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found
