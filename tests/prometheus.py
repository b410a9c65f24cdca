"""A real Prometheus server on a loopback port, for tests; `promtool` for what it reads."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed (Debian: prometheus)")


def promtool(*arguments: str, stdin: str = "", folder: Path | None = None) -> tuple[int, str]:
    """The exit code of promtool and all that it says."""
    done = subprocess.run(["promtool", *arguments], input=stdin, capture_output=True, text=True, timeout=60, cwd=folder)
    return done.returncode, done.stdout + done.stderr


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


class Prometheus:
    """A running server, asked over its HTTP API."""

    def __init__(self, url: str) -> None:
        self._url = url

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector of an expression: labels and value of each series. Raises HTTPError for one that cannot be evaluated."""
        answer = json.loads(get(f"{self._url}/api/v1/query?" + urllib.parse.urlencode({"query": expression})))
        return [{**found["metric"], "value": float(found["value"][1])} for found in answer["data"]["result"]]

    def wait_for(self, expression: str, seconds: float = 300.0) -> list[dict[str, Any]]:
        """The first answer that is not empty."""
        deadline = time.monotonic() + seconds
        while not (found := self.query(expression)):
            assert time.monotonic() < deadline, f"no series for {expression} within {seconds:g} s"
            time.sleep(0.3)
        return found

    def wait_for_targets(self, count: int) -> dict[str, dict[str, str]]:
        """The labels of what it asks, by URL, once there are `count`."""
        deadline = time.monotonic() + 60
        while len(found := json.loads(get(f"{self._url}/api/v1/targets?state=active"))["data"]["activeTargets"]) < count:
            assert time.monotonic() < deadline, f"{len(found)} targets instead of {count}"
            time.sleep(0.3)
        return {target["scrapeUrl"]: target["labels"] for target in found}

    def ready(self) -> bool:
        try:
            return "Ready" in get(f"{self._url}/-/ready")
        except (urllib.error.URLError, OSError):
            return False


@contextmanager
def prometheus(config: Path, folder: Path) -> Iterator[Prometheus]:
    """A server with the configuration file `config`, its storage and log in `folder`."""
    port = free_port()
    options = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}", f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(["prometheus", *options], stdout=log, stderr=log)
        try:
            server, deadline = Prometheus(f"http://127.0.0.1:{port}"), time.monotonic() + 60
            while not server.ready():
                assert process.poll() is None, f"prometheus ended: {(folder / 'prometheus.log').read_text()[-2000:]}"
                assert time.monotonic() < deadline, "prometheus did not come up"
                time.sleep(0.2)
            yield server
        finally:
            process.terminate()
            process.wait(30)
