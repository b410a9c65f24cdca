"""Data sets on a real S3 server, through the node-local cache: bounded, checksummed, shared by processes, patient with restarts."""

from __future__ import annotations

import errno
import hashlib
import io
import multiprocessing as mp
import threading
from pathlib import Path

import numpy as np
import pytest

from components import storage
from components.data.cache import ContentCache
from components.data.dataset import Dataset
from components.data.loader import Loader
from components.errors import UserError
from tests.data.samples import make, random_rows
from tests.s3 import S3Server


def cached_bytes(cache: Path) -> int:
    return sum(place.stat().st_size for place in cache.iterdir() if place.is_file())


def test_remote_rows_are_the_local_ones(s3: str, tmp_path: Path) -> None:
    rows = random_rows(100)
    local, remote = make(str(tmp_path / "local"), rows), make(s3, rows)
    assert remote.fingerprint == local.fingerprint
    dataset = Dataset.open(s3, cache=tmp_path / "cache")
    asked = np.random.default_rng(0).permutation(100)
    assert all((values == rows[name][asked]).all() for name, values in dataset.take(asked).items())
    storage.remove(s3)
    assert (dataset.take(asked)["image"] == rows["image"][asked]).all(), "what was fetched is not fetched again"


def test_shards_in_the_cache_are_used_by_the_next_run(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(s3, random_rows(50))
    Dataset.open(s3, cache=tmp_path).take(np.arange(50))
    monkeypatch.setattr(storage, "open_read", lambda url: pytest.fail(f"{url} was fetched again"))
    Dataset.open(s3, cache=tmp_path).take(np.arange(50))


def test_a_cache_smaller_than_the_data_still_gives_all_rows_and_keeps_its_bound(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = random_rows(120)
    index = make(s3, rows)
    shard = max(entry.bytes for entry in index.splits["train"])
    bound = 3 * shard + 100
    monkeypatch.setenv("RAYMILL_CACHE_GB", str(bound / 1e9))
    dataset = Dataset.open(s3, cache=tmp_path)
    assert "fetched again and again" in caplog.text
    for seed in range(5):
        asked = np.random.default_rng(seed).permutation(120)[:40]
        assert (dataset.take(asked)["image"] == rows["image"][asked]).all()
        assert shard < cached_bytes(tmp_path) <= bound


def test_the_least_recently_used_file_goes_first(tmp_path: Path) -> None:
    cache, fetched = ContentCache(tmp_path, limit_bytes=30), []

    def use(content: bytes) -> bytes:
        def fetch() -> tuple[io.BytesIO, int]:
            fetched.append(content)
            return io.BytesIO(content), len(content)

        return cache.use(hashlib.sha256(content).hexdigest(), "file", fetch, Path.read_bytes, len(content))

    a, b, c, d = (bytes([letter]) * 10 for letter in b"abcd")
    for content in (a, b, c, a, d):  # d takes the place of b, which was not used for longest
        assert use(content) == content
    fetched.clear()
    for content in (a, c, d):
        use(content)
    assert fetched == []
    use(b)
    assert fetched == [b]
    assert cached_bytes(tmp_path) <= 30


def test_a_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path, limit_bytes=5)
    with pytest.raises(UserError, match=r"shard x has 6 bytes and does not fit the cache of 5 bytes .*raise RAYMILL_CACHE_GB"):
        cache.use("0" * 64, "shard x", lambda: (io.BytesIO(b"123456"), 6), Path.read_bytes)


def test_an_altered_shard_is_named_with_both_checksums_and_not_kept(s3: str, tmp_path: Path) -> None:
    index = make(s3, random_rows(20))
    entry = index.splits["train"][0]
    data = bytearray(storage.read_bytes(storage.join(s3, entry.file)))
    data[len(data) // 2] ^= 1
    storage.write_bytes(storage.join(s3, entry.file), bytes(data))
    altered = hashlib.sha256(data).hexdigest()
    with pytest.raises(UserError, match=rf"{entry.file} has {len(data)} bytes with sha256 {altered}, expected .* with {entry.sha256}"):
        Dataset.open(s3, cache=tmp_path).take(np.arange(20))
    assert cached_bytes(tmp_path) == 0


def test_a_shorter_remote_shard_is_seen_when_opening(s3: str, tmp_path: Path) -> None:
    entry = make(s3, random_rows(20)).splits["train"][0]
    storage.write_bytes(storage.join(s3, entry.file), b"short")
    with pytest.raises(UserError, match=rf"{entry.file} has 5 bytes, its index says {entry.bytes} with sha256 {entry.sha256}"):
        Dataset.open(s3, cache=tmp_path)


@pytest.mark.parametrize("text", ["0", "-1", "many", "nan"])
def test_a_bad_bound_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("RAYMILL_CACHE_GB", text)
    with pytest.raises(UserError, match=f"RAYMILL_CACHE_GB='{text}'"):
        ContentCache(tmp_path)


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"the cache folder {tmp_path}/file/cache cannot be used"):
        ContentCache(tmp_path / "file" / "cache").use("0" * 64, "x", lambda: (io.BytesIO(b"1"), 1), Path.read_bytes)


class FullDisk(io.BytesIO):
    """A source during whose reading the disk is full, as a write to it would tell, for as long as `folder` holds anything else."""

    def __init__(self, content: bytes, folder: Path) -> None:
        super().__init__(content)
        self._folder = folder

    def read(self, size: int | None = -1) -> bytes:
        if any(file.is_file() and file.suffix != ".part" for file in self._folder.iterdir()):
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().read(size)


def test_a_full_disk_takes_what_the_cache_can_spare_and_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ContentCache(tmp_path)
    old, new = b"o" * 1000, b"n" * 1000
    old_sum, new_sum = (hashlib.sha256(content).hexdigest() for content in (old, new))
    assert cache.use(old_sum, "old", lambda: (io.BytesIO(old), 1000), Path.read_bytes) == old
    assert cache.use(new_sum, "new", lambda: (FullDisk(new, tmp_path), 1000), Path.read_bytes) == new  # the old one made room
    assert not (tmp_path / old_sum).exists()

    full = tmp_path / "elsewhere"
    full.mkdir()
    foreign = full / "another's"
    foreign.touch()
    release = threading.Timer(1.0, foreign.unlink)
    release.start()
    assert cache.use(old_sum, "old", lambda: (FullDisk(old, full), 1000), Path.read_bytes) == old
    release.join()

    foreign.touch()
    monkeypatch.setenv("RAYMILL_STORAGE_PATIENCE", "0.1")
    with pytest.raises(UserError, match=rf"the cache folder {tmp_path} cannot be used: No space left on device"):
        cache.use("0" * 64, "x", lambda: (FullDisk(b"x", full), 1), Path.read_bytes)


def _use_many(folder: str, seed: int, failures: mp.SimpleQueue) -> None:
    cache = ContentCache(Path(folder), limit_bytes=5_000)
    random = np.random.default_rng(seed)
    for number in random.integers(0, 12, 150).tolist():
        content = bytes([number]) * 1000
        if cache.use(hashlib.sha256(content).hexdigest(), "x", lambda c=content: (io.BytesIO(c), 1000), Path.read_bytes) != content:
            failures.put(f"wrong bytes for {number}")
        if cache.used_bytes() > 5_000:
            failures.put("the cache is over its bound")


def test_many_processes_share_one_cache(tmp_path: Path) -> None:
    context = mp.get_context("fork")
    failures = context.SimpleQueue()
    processes = [context.Process(target=_use_many, args=(str(tmp_path), seed, failures)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert failures.empty(), failures.get()


def test_loading_rides_out_a_restart_of_the_server(s3: str, s3_server: S3Server, tmp_path: Path) -> None:
    rows = random_rows(64)
    make(s3, rows, rows_per_shard=8)
    loader = Loader(Dataset.open(s3, cache=tmp_path), 8, seed=0)
    s3_server.stop()
    restart = threading.Timer(1.0, s3_server.start)
    restart.start()
    images = np.concatenate([batch["image"].numpy() for batch in loader.batches(0, 8)])
    restart.join()
    assert sorted(images.reshape(64, -1).tolist()) == sorted(rows["image"].reshape(64, -1).tolist())
