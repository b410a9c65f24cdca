"""What is known of a source's files: read once, again when they may have changed, forgotten when they or the record are damaged or gone."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from components import storage
from components.data.sources import known
from components.data.sources.known import KnownFiles

LONG_AGO = 1_000_000_000


def put(root: str, **files: str) -> None:
    for name, text in files.items():
        place = storage.join(root, name)
        storage.write_bytes(place, text.encode())
        if not storage.is_remote(place):
            os.utime(place, (LONG_AGO, LONG_AGO))


def look(root: str, cache: str | None, save: bool = True) -> tuple[dict[str, str], list[str]]:
    """The hashes of all files below `root`, and which files were read for them."""
    read = []

    def hash_of(path: str) -> str:
        read.append(path)
        return hashlib.sha256(storage.read_bytes(storage.join(root, path))).hexdigest()

    files = KnownFiles(cache)
    hashes = files.hashes(storage.stamps(root), hash_of)
    if save:
        files.save()
    return hashes, sorted(read)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty source of each kind; on S3, where a test cannot set the time of an object, all times count as settled."""
    if request.param == "local":
        return str(tmp_path / "source")
    monkeypatch.setattr(known, "SETTLED_SECONDS", -3600.0)
    return request.getfixturevalue("s3")


def test_only_files_that_are_new_or_changed_are_read(root: str, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache" / "known.json")
    put(root, a="one", b="two")
    assert look(root, cache) == ({"a": sha256("one"), "b": sha256("two")}, ["a", "b"])
    assert look(root, cache) == ({"a": sha256("one"), "b": sha256("two")}, [])
    put(root, b="other size", c="new")
    assert look(root, cache) == ({"a": sha256("one"), "b": sha256("other size"), "c": sha256("new")}, ["b", "c"])
    written = Path(cache).stat().st_mtime_ns
    assert look(root, cache)[1] == []
    assert Path(cache).stat().st_mtime_ns == written, "nothing new, nothing written"


def test_another_content_of_the_same_size_is_seen(root: str, tmp_path: Path) -> None:
    cache = str(tmp_path / "known.json")
    put(root, a="one")
    look(root, cache)
    storage.write_bytes(storage.join(root, "a"), b"two")
    assert look(root, cache) == ({"a": sha256("two")}, ["a"])


def test_files_that_are_gone_are_forgotten(tmp_path: Path) -> None:
    source, cache = str(tmp_path / "source"), tmp_path / "known.json"
    put(source, **{f"file-{number:04d}": str(number) for number in range(200)})
    look(source, str(cache))
    full = cache.stat().st_size
    assert full < 200 * 200, "about 200 bytes a file"
    for number in range(1, 200):
        storage.remove(storage.join(source, f"file-{number:04d}"))
    assert look(source, str(cache))[1] == []
    assert cache.stat().st_size < full / 50
    assert "file-0000" in cache.read_text()


def test_a_file_changed_within_its_clock_tick_is_read_again(tmp_path: Path) -> None:
    source, cache = str(tmp_path / "source"), str(tmp_path / "known.json")
    put(source, old="1", new="2", later="3")
    for name, seconds in (("new", 0), ("later", 3600)):
        os.utime(tmp_path / "source" / name, (time.time() + seconds,) * 2)
    assert look(source, cache)[1] == ["later", "new", "old"]
    assert look(source, cache)[1] == ["later", "new"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign", "other version"])
def test_a_damaged_record_is_none(tmp_path: Path, damage: str) -> None:
    source, cache = str(tmp_path / "source"), tmp_path / "known.json"
    put(source, a="one", b="two")
    look(source, str(cache))
    data = bytearray(cache.read_bytes())
    data[data.index(sha256("one").encode())] ^= 1
    version = b'{"format_version":0,"hashes":{},"scans":{}}'
    damaged = {
        "cut": cache.read_bytes()[:-5],
        "flipped": bytes(data),
        "empty": b"",
        "foreign": b"\xff\xfe{}",
        "other version": sha256(version.decode()).encode() + b"\n" + version,
    }
    cache.write_bytes(damaged[damage])
    assert look(source, str(cache)) == ({"a": sha256("one"), "b": sha256("two")}, ["a", "b"])
    assert look(source, str(cache))[1] == []


def test_of_two_writers_the_last_stays_and_is_right(tmp_path: Path) -> None:
    source, cache = str(tmp_path / "source"), str(tmp_path / "known.json")
    put(source, a="one")
    one, two = KnownFiles(cache), KnownFiles(cache)
    one.hashes(storage.stamps(source), lambda path: sha256("one"))
    put(source, b="two")
    two.hashes(storage.stamps(source), lambda path: sha256({"a": "one", "b": "two"}[path]))
    two.save()
    one.save()
    assert look(source, cache) == ({"a": sha256("one"), "b": sha256("two")}, ["b"])


def test_a_place_that_cannot_be_written_only_costs_reading_again(tmp_path: Path) -> None:
    source = str(tmp_path / "source")
    put(source, a="one")
    (tmp_path / "file").write_bytes(b"")
    for _ in range(2):
        assert look(source, str(tmp_path / "file" / "known.json"))[1] == ["a"]


def test_a_scan_is_made_once_for_each_content_and_way_of_reading(tmp_path: Path) -> None:
    source, cache = str(tmp_path / "source"), str(tmp_path / "known.json")
    put(source, a="one")
    made: list[tuple[str, str]] = []

    def scan(way: str, content: str) -> object:
        files = KnownFiles(cache)
        files.hashes(storage.stamps(source), lambda path: sha256("one"))

        def find() -> object:
            made.append((way, content))
            return {"train": [way, content]}

        found = files.scan(way, "a", [content], find)
        files.save()
        return found

    for way, content in (("small", "x"), ("small", "x"), ("large", "x"), ("small", "x"), ("small", "y"), ("large", "x")):
        assert scan(way, content) == {"train": [way, content]}
    assert made == [("small", "x"), ("large", "x"), ("small", "y")]
    for number in range(known.KEPT_LOOKS):
        scan(f"way {number}", "x")
    scan("small", "y")
    assert made[-1] == ("small", "y"), "only the ways used last are kept"
    assert made.count(("small", "y")) == 2


def test_a_scan_that_fails_is_not_remembered(tmp_path: Path) -> None:
    files = KnownFiles(str(tmp_path / "known.json"))

    def fail() -> object:
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        files.scan("way", "a", ["x"], fail)
    assert files.scan("way", "a", ["x"], lambda: 3) == 3
