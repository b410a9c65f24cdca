"""Who reaches a local cluster: nobody from another machine, nobody without its token; and what Ray itself keeps of secrets: nothing."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from clusters.metrics import ClusterHub
from clusters.raylets import Raylets
from clusters.session import ray_cluster
from pipelines.cli import main
from pipelines.console import Console
from pipelines.watching import Watched
from tests.pipelines.world import write_folders
from tests.planted import Planted
from tests.prometheus import free_port
from tests.ray_tokens import client_of

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parent.parent.parent
NAME = f"access-{os.getpid()}"
LISTENING = "0A"  # state of a socket in /proc/net/tcp
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1 there, and the same for IPv6
TOKEN = "token of the cluster"
SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD", "WANDB_API_KEY")

# A call that each kind of Ray's gRPC servers knows; they look at the token before they look at the call.
CALLS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Push",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.ReporterService/GetTraceback",
    "/ray.rpc.RayletDriver/ClusterInfo",
)
TELLING = ("DashboardAgent", "HubActor", "dashboard.py", "monitor.py")  # metrics, to whoever asks on this machine
PATHS = ("/api/jobs/", "/api/job_agent/jobs/", "/nodes?view=summary", "/logs", "/metrics", "/get_or_create_runtime_env")


@dataclass(frozen=True)
class Socket:
    """One that listens: its address as the kernel writes it, and the process."""

    address: str
    port: int
    process: str


@dataclass
class World:
    """A cluster with secrets in its environment, where a driver works: what its command said, all of its sockets, its metrics."""

    raylets: Raylets
    planted: Planted
    said: str
    sockets: list[Socket]
    metrics: str


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    planted, said = Planted(*SECRETS), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAYMILL_METRICS_HOST", raising=False)
        for name in SECRETS:
            patch.setenv(name, planted[name])
        patch.setenv("RAYMILL_METRICS_PORT", str(free_port()))
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            assert main(["cluster", "up", "--local", "2", "--name", NAME]) == 0
        found = Raylets.find(NAME)
        assert found is not None
        with found as raylets, client_of(raylets), ray_cluster(raylets.address, 1):
            import ray

            planted.plant(TOKEN, raylets.token_path.read_text())
            actor = ray.remote(_Actor).remote()
            ray.get(actor.ready.remote())
            metrics = _told_by_the_hub()
            sockets = _sockets([*(process.pid for process in raylets.processes()), os.getpid()])
            yield World(raylets, planted, said.getvalue(), sockets, metrics)


def _told_by_the_hub() -> str:
    hub, watched = ClusterHub(), Watched(Console(quiet=True), "train")
    watched.reports("classifier", {"step": 1, "steps": 2, "loss.model": 0.5})
    hub.run_json(watched.state().model_dump_json())
    with urllib.request.urlopen(hub.url()) as answer:
        return answer.read().decode()


class _Actor:
    def ready(self) -> None: ...


def _sockets(pids: list[int]) -> list[Socket]:
    owners = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
            owners |= {os.readlink(handle): name for handle in Path(f"/proc/{pid}/fd").iterdir()}
    rows = [line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]]
    listening = [(row[1].split(":"), f"socket:[{row[9]}]") for row in rows if row[3] == LISTENING]
    return [Socket(address, int(port, 16), owners[inode]) for (address, port), inode in listening if inode in owners]


def test_nothing_listens_for_other_machines(world: World) -> None:
    processes = " ".join(socket.process for socket in world.sockets)
    for part in ("gcs_server", "raylet", "dashboard", "DashboardAgent", "RuntimeEnvAgent", "_Actor", "HubActor", "ray.util.client.server"):
        assert part in processes
    assert [socket for socket in world.sockets if socket.address not in LOOPBACK] == []


@pytest.mark.parametrize("token", [None, "wrong"])
def test_every_port_refuses_who_has_no_token(world: World, token: str | None) -> None:
    """But metrics, Ray's own and our hub's, are told to anybody on this machine."""
    header = {} if token is None else {"Authorization": f"Bearer {token}"}
    refused, open_to_all = set(), []
    for socket in world.sockets:
        answers = _ask_http(socket.port, header)
        if not answers:
            answers = _ask_grpc(socket.port, header)
        if answers == {"metrics"}:
            open_to_all.append(socket.process)
        else:
            assert answers <= {"401", "403", "404", "UNAUTHENTICATED", "UNIMPLEMENTED"}, socket
            assert answers & {"401", "403", "UNAUTHENTICATED"}, socket
            refused.add(socket.port)
    assert len(refused) >= 12
    assert len([name for name in open_to_all if "HubActor" in name]) == 1
    assert [name for name in open_to_all if not any(part in name for part in TELLING)] == []


def _ask_http(port: int, header: dict[str, str]) -> set[str]:
    """Status of each answer, or `metrics` where it is Prometheus's text; empty when the port does not speak HTTP."""
    found = set()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for path in PATHS:
        try:
            with opener.open(urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=header), timeout=10) as answer:
                found.add("metrics" if answer.read(7) == b"# HELP " else str(answer.status))
        except urllib.error.HTTPError as error:
            found.add(str(error.code))
        except http.client.BadStatusLine:
            return set()
    return found


def _ask_grpc(port: int, header: dict[str, str]) -> set[str]:
    metadata = [(name.lower(), value) for name, value in header.items()]
    found = set()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for call in CALLS:
            try:
                channel.unary_unary(call)(b"", timeout=10, metadata=metadata)
                found.add("OK")
            except grpc.RpcError as error:
                found.add(error.code().name)
    return found


@pytest.mark.parametrize("environment", [{"RAY_AUTH_TOKEN": "wrong-token"}, {"RAY_AUTH_MODE": "disabled"}])
def test_a_driver_without_the_token_is_told_in_a_line(world: World, environment: dict[str, str], tmp_path: Path) -> None:
    pictures = write_folders(tmp_path / "pictures")
    argv = ["prepare", str(pictures), str(tmp_path / "data"), "--workers", "1", "--address", world.raylets.address]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run([sys.executable, "-m", "pipelines.cli", *argv], env=variables, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith(f"raymill: --address {world.raylets.address}: ")
    assert done.stderr.count("\n") == 1
    assert "RAY_AUTH_TOKEN_PATH" in done.stderr
    assert "wrong-token" not in done.stderr
    assert not (tmp_path / "data").exists()


def test_ray_keeps_no_secret(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "--env", "OMP_NUM_THREADS=1", "--", "list", "--json"]) == 0
    assert main(["jobs", "--json"]) == 0
    from clusters.jobs import Jobs

    told = [job.model_dump_json() for job in Jobs(None).known()]
    assert len(told) == 1
    assert world.planted.found("".join([*told, *capfd.readouterr(), world.said, world.metrics])) == set()
    assert json.loads(told[0])["entrypoint"] == "raymill list --json"
    assert 'run="train-' in world.metrics
    found = world.planted.found_below(world.raylets.folder)
    assert found.pop(str(world.raylets.token_path)) == {TOKEN}  # the one place
    assert found == {}
    assert list(world.raylets.folder.rglob("py_modules_files/**/cli.py")), "the code that was sent was searched too"
