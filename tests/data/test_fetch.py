"""Sources behind http: fetched once, checked against their checksums, and every failure names the URL."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from clusters.preprocess import prepare
from components.data.prepare_config import PrepareConfig
from components.errors import UserError
from tests.data.sources import write_idx


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder on a free local port; `asked` lists the paths of requests, `failures` answers that many with 503 first."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.asked: list[str] = []
        self.failures = 0
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.SimpleHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.server.failures:
            self.server.failures -= 1
            self.send_error(503)
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("RAYMILL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "web" / "fashion").mkdir(parents=True)
    server = Server(tmp_path / "web")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def checksums(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_a_folder_behind_http_is_the_same_data_as_the_folder(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "web" / "fashion"
    write_idx(folder, "train", 40)
    write_idx(folder, "t10k", 10, 1)
    config = PrepareConfig(checksums=checksums(folder), rows_per_shard=16)
    server.failures = 1
    remote = prepare(f"{server.url}/fashion", str(tmp_path / "remote"), config)
    local = prepare(str(folder), str(tmp_path / "local"), config)
    assert remote == local
    assert len(server.asked) == 4 + 1, "each file is fetched once, and once more where the server was overloaded"


def test_one_file_behind_http(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "web" / "data.npz"
    np.savez(file, age=np.arange(40))
    config = PrepareConfig(checksums={"data.npz": hashlib.sha256(file.read_bytes()).hexdigest()})
    index = prepare(f"{server.url}/data.npz", str(tmp_path / "out"), config)
    assert sum(split.rows for split in index.statistics.values()) == 40


def test_a_wrong_checksum_names_the_url_and_both(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "web" / "fashion"
    write_idx(folder, "train", 5)
    known = checksums(folder)
    wrong = known | {"train-images-idx3-ubyte.gz": "0" * 64}
    right = known["train-images-idx3-ubyte.gz"]
    message = rf"{server.url}/fashion/train-images-idx3-ubyte\.gz has \d+ bytes with sha256 {right}, expected .*0{{64}}"
    with pytest.raises(UserError, match=message):
        prepare(f"{server.url}/fashion", str(tmp_path / "out"), PrepareConfig(checksums=wrong))
    assert not (tmp_path / "out").exists()
    assert not [file for file in (tmp_path / "cache").iterdir() if file.name.startswith("0000")]


def test_checksums_are_needed(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give its files and their SHA-256"):
        prepare(server.url, str(tmp_path / "out"), PrepareConfig())


def test_a_file_that_is_not_there(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{server.url}/none\.npz cannot be fetched: the server answered 404"):
        prepare(server.url, str(tmp_path / "out"), PrepareConfig(checksums={"none.npz": "0" * 64}))


def test_a_server_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9/none\.npz cannot be fetched: .*check the URL and the network"):
        prepare("http://127.0.0.1:9", str(tmp_path / "out"), PrepareConfig(checksums={"none.npz": "0" * 64}))
