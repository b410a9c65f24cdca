"""A real Ray cluster on this machine: a head with the Jobs API and more nodes, each a raylet of its own, behind token authentication.

    with Raylets.start("trial", nodes=3) as raylets:
        raylets.address, raylets.jobs_url, raylets.environment   # for drivers, for the Jobs API, for both
        raylets.add_node()
        raylets.kill_node(1)                                     # the raylet, its agents and the workers on it

It is started by `ray start` and ended process by process, never by `ray stop`, which ends every Ray of the machine. Each node has its
own temporary folder: nodes that share one delete each other's unpacked code. All of it listens on 127.0.0.1 (`clusters/loopback.py`), and
answers those who have the token; only Ray's own metrics, and whether a process is well, are told to anybody on this machine.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from clusters import loopback
from clusters.ports import HEAD_PORT, JOBS_PORT
from clusters.processes import Process, end, family_of, is_alive, this_process
from components.errors import UserError

STATE = "cluster.json"
MARK = "RAYMILL_CLUSTER"
START_SECONDS = 120.0
ANSWER_SECONDS = 90.0
GRACE_SECONDS = 5.0
STORE_BYTES = 200 * 2**20
FOREIGN = ("RAY_AUTH_TOKEN", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")  # of another cluster; they would win over what is set here


@dataclass
class Node:
    """One raylet: its number, 0 for the head, and the processes that `ray start` left for it."""

    number: int
    cpus: int
    processes: list[Process]


class Raylets:
    """A cluster that runs, by the folder of its state; `start` makes one, `find` opens one that another process started."""

    def __init__(self, folder: Path, ports: dict[str, int], starter: Process, nodes: list[Node] | None = None) -> None:
        self.folder, self.ports, self.starter, self.nodes = folder, ports, starter, nodes or []
        self.address = f"{loopback.ADDRESS}:{ports['head']}"
        self.jobs_url = f"http://{loopback.ADDRESS}:{ports['jobs']}"
        self.token_path = folder / "token"
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_path), **loopback.ENVIRONMENT}
        self._inherited: dict[str, str] = {}
        self._changing = threading.Lock()

    @classmethod
    def start(cls, name: str, nodes: int = 3, cpus_per_node: int = 1, environment: dict[str, str] | None = None) -> Raylets:
        """Starts a head and `nodes - 1` more nodes with `environment` beside this process's own; returns when the Jobs API answers.

        Raises UserError when a cluster of this name is up, or Ray does not start.
        """
        if nodes < 1:
            raise UserError(f"--local {nodes} is not valid; give the number of nodes, 1 or more")
        folder = _make_folder(name)
        raylets = cls(folder, _free_ports(), this_process())
        raylets._inherited = dict(environment or {})
        try:
            with open(os.open(raylets.token_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(32))
            raylets._write()
            raylets._add(0, cpus_per_node)
            with ThreadPoolExecutor(max(1, nodes - 1)) as pool:
                list(pool.map(lambda number: raylets._add(number, cpus_per_node), range(1, nodes)))
            raylets._await_jobs()
        except BaseException:
            raylets.close()
            raise
        return raylets

    @classmethod
    def find(cls, name: str) -> Raylets | None:
        """The cluster of this name, up or half gone; None when there is none."""
        folder = folder_of(name)
        try:
            state = json.loads((folder / STATE).read_text())
        except (OSError, ValueError):
            return None
        nodes = [Node(n["number"], n["cpus"], [Process(**one) for one in n["processes"]]) for n in state["nodes"]]
        return cls(folder, state["ports"], Process(**state["starter"]), nodes)

    def add_node(self, cpus: int | None = None) -> Node:
        """Starts one more node, with as many CPUs as the head where nothing is said."""
        return self._add(max(node.number for node in self.nodes) + 1, cpus or self.nodes[0].cpus)

    def kill_node(self, number: int) -> int:
        """Kills a raylet with its agents and all workers on it, as a machine that loses its power; returns how many processes."""
        node = next((node for node in self.nodes if node.number == number), None)
        if node is None:
            raise UserError(f"the cluster has no node {number}; it has {sorted(node.number for node in self.nodes)}")
        ended = end(lambda sessions: family_of(node.processes, self._mark(number), sessions), grace_seconds=0)
        with self._changing:
            self.nodes.remove(node)
            self._write()
        return ended

    def is_up(self) -> bool:
        """Whether any process of it lives, or it is being started."""
        return (is_alive(self.starter) and not self.nodes) or bool(self._family(set()))

    def processes(self) -> list[Process]:
        """All that belong to it and live now, with those of jobs and workers."""
        return list(self._family(set()))

    def close(self) -> int:
        """Ends every process of the cluster and no other, and removes its folder; returns how many it ended."""
        ended = end(self._family, GRACE_SECONDS)
        shutil.rmtree(self.folder, ignore_errors=True)
        return ended

    def __enter__(self) -> Raylets:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def _family(self, sessions: set[int]) -> dict[Process, int]:
        found: dict[Process, int] = {}
        for node in self.nodes or [Node(0, 0, [])]:
            found |= family_of(node.processes, self._mark(node.number), sessions)
        return found

    def _mark(self, number: int) -> str:
        return f"{MARK}={self.folder}/{number}"

    def _add(self, number: int, cpus: int) -> Node:
        temporary = self.folder / str(number)  # short: sockets lie below it, and their paths have a limit
        port = _free_port()
        options = [f"--temp-dir={temporary}", f"--num-cpus={cpus}", f"--node-ip-address={loopback.ADDRESS}"]
        options += [f"--dashboard-agent-listen-port={port}"]
        options += ["--min-worker-port=0", "--max-worker-port=0", f"--object-store-memory={STORE_BYTES}", "--include-log-monitor=false"]
        options += self._head_options() if number == 0 else [f"--address={self.address}"]
        mark = self._mark(number)
        log = self.folder / f"start-{number}.log"
        program = [sys.executable, "-P", loopback.__file__, "start", *options]
        with open(log, "wb") as output:
            starting = subprocess.Popen(
                program, env=self._node_environment(mark), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
            try:
                code = starting.wait(START_SECONDS)
            except subprocess.TimeoutExpired:
                code = None
        node = Node(number, cpus, list(family_of([], mark, [starting.pid])))
        with self._changing:  # before any failure is told, so that `close` knows what to end
            self.nodes = sorted([*self.nodes, node], key=lambda one: one.number)
            self._write()
        if code != 0:
            said = " ".join(log.read_text(errors="replace").split())[-400:]
            starting.kill()
            raise UserError(f"node {number} of the local cluster did not start ({'no end' if code is None else f'exit {code}'}): {said}")
        return node

    def _head_options(self) -> list[str]:
        jobs = ["--include-dashboard=true", f"--dashboard-host={loopback.ADDRESS}", f"--dashboard-port={self.ports['jobs']}"]
        return ["--head", f"--port={self.ports['head']}", f"--ray-client-server-port={_free_port()}", *jobs, "--disable-usage-stats"]

    def _node_environment(self, mark: str) -> dict[str, str]:
        """`raymill` and `python` of a job are those of this process; the mark is how its processes are found again."""
        ours = {name: value for name, value in {**os.environ, **self._inherited}.items() if name not in FOREIGN}
        path = os.pathsep.join([str(Path(sys.executable).parent), ours.get("PATH", os.defpath)])
        return {**ours, **self.environment, "RAY_ADDRESS": self.address, "PATH": path, MARK: mark.partition("=")[2]}

    def _await_jobs(self) -> None:
        """Until the API server answers, and knows the node where it starts jobs."""
        header = {"Authorization": f"Bearer {self.token_path.read_text()}"}
        deadline = time.monotonic() + ANSWER_SECONDS
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for path in ("/api/version", "/api/jobs/"):
            while True:
                try:
                    with opener.open(urllib.request.Request(self.jobs_url + path, headers=header), timeout=5) as answer:
                        if answer.status == 200:
                            break
                except OSError as error:
                    if time.monotonic() > deadline:
                        raise UserError(f"the Jobs API at {self.jobs_url} does not answer after {ANSWER_SECONDS:.0f} s: {error}") from None
                time.sleep(0.2)

    def _write(self) -> None:
        state = {"ports": self.ports, "starter": asdict(self.starter), "nodes": [asdict(node) for node in self.nodes]}
        partial = self.folder / f"{STATE}.partial-{secrets.token_hex(4)}"
        partial.write_text(json.dumps(state, indent=1))
        partial.replace(self.folder / STATE)


def folder_of(name: str) -> Path:
    """Where the state of a local cluster lies. Raises UserError for a name that is not one."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,15}", name):
        raise UserError(f"--name {name!r} is not valid; give up to 16 small letters, digits and hyphens")
    return Path(tempfile.gettempdir()) / f"raymill-{os.getuid()}" / f"cluster-{name}"


def _make_folder(name: str) -> Path:
    folder = folder_of(name)
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    if (found := Raylets.find(name)) is not None:
        if found.is_up():
            raise UserError(
                f"cluster {name} is up already at {found.address}; end it with `raymill cluster down --name {name}`, or give another --name"
            )
        found.close()
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        raise UserError(f"{folder} is there already, without a cluster; is another one being started? remove it if not") from None
    return folder


def _free_ports() -> dict[str, int]:
    """The usual ports where they are free, others where not."""
    return {name: usual if _is_free(usual) else _free_port() for name, usual in (("head", HEAD_PORT), ("jobs", JOBS_PORT))}


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
