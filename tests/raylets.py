"""A real Ray cluster of separate raylets on this machine: a head and two more nodes, started and ended by process, not by `ray stop`."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path


class Raylets:
    """`nodes` raylets with one logical CPU each, behind token authentication; `environment` is what a client needs."""

    def __init__(self, nodes: int = 3, environment: dict[str, str] | None = None) -> None:
        self.address = f"127.0.0.1:{_free_port()}"
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), **(environment or {})}
        self._scratch = tempfile.mkdtemp(prefix="raylets-")
        self._started: list[int] = []
        for number in range(nodes):
            self._start(number)

    def _start(self, number: int) -> None:
        port = self.address.rpartition(":")[2]
        place = [f"--port={port}", f"--temp-dir={self._scratch}", "--head"] if number == 0 else [f"--address={self.address}"]
        options = ["--num-cpus=1", "--include-dashboard=false", "--disable-usage-stats"]
        options = options if number == 0 else [option for option in options if "dashboard" not in option]
        ray = Path(sys.executable).parent / "ray"
        before = _ray_daemons()
        done = subprocess.run(
            [str(ray), "start", *place, *options], env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"ray start failed: {done.stdout} {done.stderr}"
        self._started += sorted(_ray_daemons() - before)

    def close(self) -> None:
        """Kills the processes that this cluster started, and no others."""
        for pid in reversed(self._started):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _ray_daemons() -> set[int]:
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if any(
                part in line
                for part in (
                    "gcs_server",
                    "raylet/raylet",
                    "ray/autoscaler/_private/monitor.py",
                    "dashboard/agent.py",
                    "log_monitor.py",
                    "runtime_env/agent",
                )
            ):
                found.add(int(folder.name))
    return found


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
