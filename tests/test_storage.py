"""The storage seam, on a local folder and on a real S3 server: what is written is read, listed, removed, and fails with one line."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from components import storage
from components.errors import UserError
from tests.reading import note_files_read
from tests.s3 import S3Server


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place to write to, of each kind."""
    return str(tmp_path / "store") if request.param == "local" else request.getfixturevalue("s3")


def test_files_and_folders_are_listed_as_written(root: str) -> None:
    for path in ("a/x.bin", "a/b/y.bin", "ab/z.bin", "top.bin"):
        storage.write_bytes(storage.join(root, path), path.encode())
    assert storage.list_names(root) == ["a", "ab", "top.bin"]
    assert storage.list_names(storage.join(root, "a")) == ["b", "x.bin"]
    assert storage.list_files(root) == ["a/b/y.bin", "a/x.bin", "ab/z.bin", "top.bin"]
    assert storage.file_sizes(storage.join(root, "a")) == {"b/y.bin": 9, "x.bin": 7}
    assert storage.read_bytes(storage.join(root, "a", "b", "y.bin")) == b"a/b/y.bin"
    assert storage.size(storage.join(root, "top.bin")) == 7
    assert storage.size(storage.join(root, "a")) is None
    assert [storage.exists(storage.join(root, p)) for p in ("a", "a/x.bin", "none", "to")] == [True, True, False, False]


def test_what_is_missing_is_empty_to_list_and_an_error_to_read(root: str) -> None:
    place = storage.join(root, "none")
    assert (storage.list_names(place), storage.list_files(place), storage.size(place), storage.exists(place)) == ([], [], None, False)
    storage.remove(place)
    with pytest.raises(UserError, match=r"cannot read .*none: there is no such"):
        storage.read_bytes(place)
    with pytest.raises(UserError, match=r"cannot read .*none: there is no such"):
        storage.open_read(place)


def test_remove_takes_the_file_or_the_tree_and_nothing_beside_it(root: str) -> None:
    for path in ("a/x", "a/b/y", "ab/z", "c"):
        storage.write_bytes(storage.join(root, path), b"1")
    storage.remove(storage.join(root, "a"))
    storage.remove(storage.join(root, "c"))
    assert storage.list_files(root) == ["ab/z"]


def test_json_round_trip_and_bytes_that_are_no_json(root: str) -> None:
    place = storage.join(root, "value.json")
    value = {"b": [1, 2.5, None], "a": "é"}
    storage.write_json(place, value)
    assert storage.read_json(place) == value
    first = storage.read_bytes(place)
    storage.write_json(place, dict(reversed(value.items())))
    assert storage.read_bytes(place) == first, "equal values give equal bytes"
    storage.write_bytes(place, first[:-5])
    with pytest.raises(UserError, match=r"value\.json: it is not valid JSON"):
        storage.read_json(place)


def test_large_files_go_up_and_come_down_whole(root: str, tmp_path: Path) -> None:
    data = os.urandom(3 * 8 * 2**20 + 17)  # more than three ranges
    local = tmp_path / "data.bin"
    local.write_bytes(data)
    place = storage.join(root, "deep", "data.bin")
    storage.upload(str(local), place)
    storage.download(place, str(tmp_path / "new" / "copy.bin"))
    assert (tmp_path / "new" / "copy.bin").read_bytes() == data
    assert storage.sha256_file(str(local)) == hashlib.sha256(data).hexdigest()
    with storage.open_read(place) as file:
        file.seek(-17, os.SEEK_END)
        assert file.read() == data[-17:]
        file.seek(8 * 2**20 - 3)
        assert file.read(9) == data[8 * 2**20 - 3 : 8 * 2**20 + 6]


def test_upload_folder_writes_the_commit_last(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    for path in ("a.json", "commit.json", "z/w.bin"):
        storage.write_bytes(str(source / path), path.encode())
    order: list[str] = []
    upload = storage.upload
    monkeypatch.setattr(storage, "upload", lambda local, url: (order.append(url), upload(local, url)))
    storage.upload_folder(str(source), root, last="commit.json")
    assert [url.removeprefix(root + "/") for url in order] == ["a.json", "z/w.bin", "commit.json"]
    assert storage.list_files(root) == ["a.json", "commit.json", "z/w.bin"]


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    place, size, seen = str(tmp_path / "file"), 300_000, set()
    storage.write_bytes(place, b"a" * size)
    done = threading.Event()

    def write() -> None:
        for _ in range(20):
            storage.write_bytes(place, b"b" * size)
            storage.write_bytes(place, b"a" * size)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        data = storage.read_bytes(place)
        seen.add((data[:1], len(data), len(set(data))))
    writer.join()
    assert seen <= {(b"a", size, 1), (b"b", size, 1)}
    assert storage.list_names(str(tmp_path)) == os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(("number", "cause"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "permission")])
def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, cause: str) -> None:
    place = str(tmp_path / "file")
    storage.write_bytes(place, b"old")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=rf"cannot write {place}: .*{cause}"):
        storage.write_bytes(place, b"new")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["file"]
    assert storage.read_bytes(place) == b"old"


def test_written_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        storage.write_bytes(str(tmp_path / "file"), b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_file_where_a_folder_is_needed_is_named(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "file"), b"")
    with pytest.raises(UserError, match=rf"{tmp_path}/file/below"):
        storage.write_bytes(str(tmp_path / "file" / "below"), b"")


@pytest.mark.parametrize("url", ["gs://bucket/x", "http://host/x"])
def test_unknown_schemes_are_refused(url: str) -> None:
    with pytest.raises(UserError, match="scheme"):
        storage.exists(url)


def test_joining_keeps_single_slashes() -> None:
    assert storage.join("s3://bucket/a/", "b", "/c/") == "s3://bucket/a/b/c"
    assert storage.join("/", "tmp") == "/tmp"
    assert storage.join("here", "x") == "here/x"


def test_an_endpoint_that_is_not_there(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("RAYMILL_STORAGE_PATIENCE", "0.3")
    with pytest.raises(UserError, match=r"cannot read s3://.*/x: the endpoint http://127\.0\.0\.1:9 did not answer"):
        storage.read_bytes(f"{s3}/x")
    monkeypatch.setenv("RAYMILL_STORAGE_PATIENCE", "long")
    with pytest.raises(UserError, match="RAYMILL_STORAGE_PATIENCE='long'"):
        storage.read_bytes(f"{s3}/x")


def test_a_bucket_that_is_not_there(s3: str) -> None:
    with pytest.raises(UserError, match="cannot write s3://no-such-bucket/x: there is no such bucket"):
        storage.write_bytes("s3://no-such-bucket/x", b"1")


def test_refused_credentials_name_the_url_and_show_no_secret(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(f"{s3}/x", b"1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody-else")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
    with pytest.raises(UserError, match=rf"cannot read {s3}/x: .*403") as caught:
        storage.read_bytes(f"{s3}/x")
    assert "another-secret" not in str(caught.value)


def test_no_credentials_at_all(s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(UserError, match="no complete credentials were found"):
        storage.read_bytes(f"{s3}/x")


def test_reads_and_writes_ride_out_a_restart_of_the_server(s3: str, s3_server: S3Server) -> None:
    data = os.urandom(2 * 8 * 2**20 + 5)
    storage.write_bytes(f"{s3}/before", data)
    with storage.open_read(f"{s3}/before") as file:
        first = file.read(100)
        s3_server.stop()
        restart = threading.Timer(1.0, s3_server.start)
        restart.start()
        assert first + file.read() == data
    storage.write_bytes(f"{s3}/after", b"1")
    restart.join()
    assert storage.list_names(s3) == ["after", "before"]


@pytest.mark.parametrize("start", ["local", "s3"])
@pytest.mark.parametrize("end", ["local", "s3"])
def test_a_copy_has_the_bytes_and_is_apart(s3: str, tmp_path: Path, start: str, end: str) -> None:
    roots = {"local": str(tmp_path), "s3": s3}
    source, to = storage.join(roots[start], "from", "x.bin"), storage.join(roots[end], "to", "deep", "y.bin")
    storage.write_bytes(source, b"first")
    storage.write_bytes(to, b"what was there")
    for _ in range(2):
        storage.copy(source, to)
        assert storage.read_bytes(to) == b"first"
        assert storage.list_files(storage.join(roots[end], "to")) == ["deep/y.bin"]
    storage.write_bytes(to, b"second")
    assert storage.read_bytes(source) == b"first"
    storage.copy(source, to)
    storage.write_bytes(source, b"third")
    storage.remove(source)
    assert storage.read_bytes(to) == b"first"
    with pytest.raises(UserError, match=r"x\.bin.*there is no such"):
        storage.copy(source, to)
    assert storage.read_bytes(to) == b"first"


def test_a_local_copy_is_a_link_where_there_are_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, to = tmp_path / "x", tmp_path / "below" / "y"
    source.write_bytes(b"1")
    (tmp_path / "symbolic").symlink_to(source)
    for start in (source, tmp_path / "symbolic"):
        storage.copy(str(start), f"file://{to}")
        assert os.path.samefile(source, to)
        assert not to.is_symlink()

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    storage.copy(str(source), str(to))
    assert to.read_bytes() == b"1"
    assert not os.path.samefile(source, to)
    assert os.listdir(to.parent) == ["y"]
    with pytest.raises(UserError, match="it is a folder, expected a file"):
        storage.copy(str(to.parent), str(tmp_path / "z"))


def test_bytes_of_an_s3_copy_stay_on_the_server(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(f"{s3}/x", b"1")
    read = note_files_read(monkeypatch)
    monkeypatch.setattr(storage, "upload", None)
    storage.copy(f"{s3}/x", f"{s3}/y")
    assert read == []
    assert storage.read_bytes(f"{s3}/y") == b"1"


def test_a_stamp_tells_one_state_from_another(root: str) -> None:
    place = storage.join(root, "x")
    assert storage.stamp(place) is None
    storage.write_bytes(place, b"one")
    first = storage.stamp(place)
    assert first is not None
    assert (first.bytes, storage.stamps(root)) == (3, {"x": first}), "one file and a listing tell the same"
    assert abs(first.changed - time.time()) < 60
    assert storage.stamp(place) == first
    storage.write_bytes(place, b"two")
    assert storage.stamp(place) != first
