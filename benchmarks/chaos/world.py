"""Where the storm happens: a real S3 server behind a faulty proxy, a cluster of real raylets, and a cache on a small disk of its own.

Everything here looks from outside: at requests that pass the proxy, at objects on the server, at processes in `/proc`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web

from benchmarks.chaos.processes import Seen, processes_of
from clusters.raylets import Raylets
from tests.faulty_s3 import Faults, FaultyS3
from tests.s3 import S3Server

T = TypeVar("T")
BUCKET = "chaos"
NODES = 4
DISK_BYTES = 24 * 2**20
PATIENCE_SECONDS = 120.0
WRITES = ("PUT", "POST", "DELETE")


@dataclass(frozen=True)
class Request:
    """One that the server answered well: when, what, and the body of those that are read here."""

    at: float
    method: str
    key: str
    body: bytes = b""


class WatchedS3(FaultyS3):
    """The faulty proxy, which also remembers what was written and what was read of data sets."""

    def __init__(self, upstream: str, seed: int) -> None:
        super().__init__(upstream, seed=seed)
        self.requests: list[Request] = []

    async def _answer(self, request: web.Request, status: int, headers: object, data: bytes, fault: str) -> web.StreamResponse:
        key, method = request.path.removeprefix(f"/{BUCKET}/"), request.method
        if status < 300 and not key.endswith(".lock") and (method in WRITES or key.endswith(".arrow")):
            body = await request.read() if method == "PUT" and key.endswith("run.json") else b""
            self.requests.append(Request(time.monotonic(), method, key, body))
        return await super()._answer(request, status, headers, data, fault)

    def since(self, at: float, prefix: str) -> list[Request]:
        """Requests below `prefix` from the moment `at` on."""
        found = []
        for request in reversed(self.requests):
            if request.at < at:
                break
            if request.key.startswith(prefix):
                found.append(request)
        return found[::-1]


class World:
    """What a storm needs, and what it may do to it. Use `World.open`."""

    def __init__(self, scratch: Path, server: S3Server, proxy: WatchedS3, disk: Path | None, raylets: Raylets) -> None:
        self.scratch, self.server, self.proxy, self.disk, self.raylets = scratch, server, proxy, disk, raylets
        self.environment = {**os.environ, **_environment(server, proxy, disk), **raylets.environment}
        self.storage_turn, self.nodes_turn, self.disk_turn = threading.Lock(), threading.Lock(), threading.Lock()
        self.joining: list[threading.Thread] = []

    @classmethod
    @contextmanager
    def open(cls, seed: int) -> Iterator[World]:
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="raymill-chaos-")))
            (scratch / "s3").mkdir()
            server = S3Server(scratch / "s3")
            server.start()
            stack.callback(server.stop)
            server.make_bucket(BUCKET)
            proxy = WatchedS3(server.environment["AWS_ENDPOINT_URL_S3"], seed)
            stack.enter_context(proxy)
            disk = stack.enter_context(_small_disk(scratch / "cache"))
            os.environ.update(server.environment)  # this process looks at the server itself, without faults
            name = f"chaos-{os.getpid()}"
            raylets = stack.enter_context(Raylets.start(name, NODES, 1, _environment(server, proxy, disk)))
            os.environ.update(raylets.environment)
            world = cls(scratch, server, proxy, disk, raylets)
            yield world
            for thread in world.joining:
                thread.join()

    def url(self, *parts: str) -> str:
        return "/".join([f"s3://{BUCKET}", *parts])

    def processes(self) -> list[Seen]:
        """All processes of the cluster, jobs and their workers included."""
        return processes_of(self.raylets.folder)

    def committed(self, prefix: str, commit: str) -> dict[str, str]:
        """Object key -> checksum of all in folders below `prefix` that hold a file `commit`: what users may rely on."""
        found = patiently(lambda: self._etags(prefix))
        folders = tuple(key.removesuffix(commit) for key in found if key.endswith(f"/{commit}") and "/runs/" not in key)
        return {key: etag for key, etag in found.items() if key.startswith(folders)} if folders else {}

    def locks(self, prefix: str) -> list[str]:
        return [key for key in patiently(lambda: self._etags(prefix)) if key.endswith(".lock")]

    def _etags(self, prefix: str) -> dict[str, str]:
        from components.s3_client import request

        found: dict[str, str] = {}
        more: dict[str, Any] = {}
        while True:
            page = request("list_objects_v2", Bucket=BUCKET, Prefix=prefix, **more)
            found |= {each["Key"]: each["ETag"] for each in page.get("Contents", [])}
            if not page.get("IsTruncated"):
                return found
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def set_faults(self, faults: Faults) -> None:
        self.proxy.faults = faults

    def replace_node(self, number: int) -> None:
        """Kills a node as a power cut does; a new one joins afterwards, in a thread, as an autoscaler would bring it."""
        self.raylets.kill_node(number)
        thread = threading.Thread(target=self.raylets.add_node, name="new node")
        self.joining.append(thread)
        thread.start()


def patiently(call: Callable[[], T]) -> T:
    """`call()`, tried again while the server is away by our own doing."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return call()
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def resumed_from(request: Request) -> int | None:
    """The step of a written run.json from which its run went on."""
    try:
        return int(json.loads(request.body)["resumed_from"])
    except (ValueError, KeyError):
        return None


def step_of(key: str, pattern: str) -> int | None:
    found = re.search(pattern, key)
    return int(found[1]) if found else None


def _environment(server: S3Server, proxy: WatchedS3, disk: Path | None) -> dict[str, str]:
    """Of all that runs in the storm: it knows the proxy only."""
    cache = {} if disk is None else {"RAYMILL_CACHE": str(disk)}
    return {**server.environment, "AWS_ENDPOINT_URL_S3": proxy.url, "OMP_NUM_THREADS": "1", **cache}


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path | None]:
    """A file system of a few megabytes; None where this user may mount nothing."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES}", "raymill-chaos", str(folder)]
    if subprocess.run(["mount", *options], capture_output=True).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
