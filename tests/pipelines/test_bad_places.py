"""Places that fail: foreign bytes, no cluster, no object store, a full disk, a read-only store; one line, exit 2, nothing left."""

from __future__ import annotations

import contextlib
import ctypes
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipelines.world import LOCAL, digest, require_one_line


@pytest.fixture
def server(root: Path) -> Iterator[str]:
    """The IDX files over HTTP."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Quiet) as listening:
        _Quiet.folder = str(root / "idx")
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_address[1]}"
        listening.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    folder = ""

    def __init__(self, *args: object) -> None:
        super().__init__(*args, directory=_Quiet.folder)  # type: ignore[arg-type]

    def log_message(self, *args: object) -> None: ...


def test_a_url_with_the_wrong_checksum(server: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sums = "{" + ", ".join(f"{file.name}: {'f' * 64}" for file in (root / "idx").iterdir()) + "}"
    before = digest(root / "store")
    require_one_line(["run", "tokens", f"data={server}", f"images.checksums={sums}", *LOCAL], (server, "f" * 64), capsys)
    assert digest(root / "store") == before


def test_a_url_without_checksums(server: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require_one_line(["run", "tokens", f"data={server}", *LOCAL], (server, "checksums"), capsys)


def test_an_unreachable_cluster(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["run", "tokens", f"data={root / 'idx'}", "--address", "127.0.0.1:1", "--workers", "1"]
    before = digest(root / "store")
    require_one_line(argv, ("--address 127.0.0.1:1", "ray start --head"), capsys)
    require_one_line([*argv[:3], "--address", "nowhere"], ("'nowhere'", "host:port"), capsys)
    assert digest(root / "store") == before


@pytest.mark.parametrize("argv", [("list", "--store", "s3://bucket/store"), ("run", "tokens", "data=s3://bucket/pictures", *LOCAL)])
def test_an_unreachable_object_store(
    argv: tuple[str, ...], root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-word")
    monkeypatch.setenv("RAYMILL_STORAGE_PATIENCE", "0.1")
    require_one_line(list(argv), ("s3://bucket", "127.0.0.1:1"), capsys)


@contextlib.contextmanager
def mounted(place: Path, options: str, flags: int) -> Iterator[None]:
    """A small file system of its own at `place`; skips where the test may not mount."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", str(place).encode(), b"tmpfs", flags, options.encode()) != 0:
        pytest.skip(f"cannot mount: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        libc.umount2(str(place).encode(), 2)


def test_a_full_disk(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "small").mkdir()
    argv = ["run", "tokens", f"data={root / 'idx'}", *LOCAL, "--store", str(tmp_path / "small")]
    with mounted(tmp_path / "small", "size=48k", 0):
        require_one_line(argv, ("small", "full"), capsys)
        assert digest(tmp_path / "small") == {}


def test_a_file_too_large_for_its_place(root: Path) -> None:
    program = f"""
import resource, sys
from pipelines.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
sys.exit(main(["prepare", {str(root / "idx")!r}, {str(root / "out")!r}, "--workers", "0"]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "File too large" in done.stderr
    assert not list((root / "out").glob("*"))


def test_a_read_only_store(root: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "fixed").mkdir()
    with mounted(tmp_path / "fixed", "size=1m", 1):  # MS_RDONLY
        argv = ["run", "tokens", f"data={root / 'idx'}", *LOCAL, "--store", str(tmp_path / "fixed")]
        require_one_line(argv, (str(tmp_path / "fixed"), "ead-only"), capsys)
