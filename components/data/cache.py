"""A node-local cache of remote files, told apart by content: bounded in bytes, least recently used goes first, safe for many processes.

A file is named by its SHA-256 and appears only when its bytes have that checksum. `RAYMILL_CACHE` is the folder (default
`~/.cache/raymill`), `RAYMILL_CACHE_GB` the bound (default 20). A file that is removed while it is mapped stays readable to who mapped it.
Where others fill the disk, the cache gives back what it holds and waits for room as long as for a server (`RAYMILL_STORAGE_PATIENCE`).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from components.errors import UserError
from components.s3_client import patience_seconds
from components.storage import COPY_BYTES

T = TypeVar("T")
OpenRemote = Callable[[], tuple[BinaryIO, int]]  # a file and its length in bytes
DEFAULT_GIGABYTES = 20.0
FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_PAUSE_SECONDS = 0.5


class ContentCache:
    """Files by SHA-256 in one folder that any number of processes of this node share."""

    def __init__(self, folder: Path | None = None, limit_bytes: int | None = None) -> None:
        default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raymill"
        self.folder = folder or Path(os.environ.get("RAYMILL_CACHE") or default)
        self.limit_bytes = _limit_of_environment() if limit_bytes is None else limit_bytes

    def use(self, sha256: str, name: str, open_remote: OpenRemote, use: Callable[[Path], T], size: int | None = None) -> T:
        """`use(path)` of the file with this checksum, fetched first where it is not here; the file is not removed before `use` returns.

        `open_remote` gives the file and its length. Raises UserError naming `name` and both checksums when other bytes come, and when
        the file does not fit into the cache.
        """
        with self._mendable():
            (self.folder / "locks").mkdir(parents=True, exist_ok=True)
            place = self.folder / sha256
            with self._lock(f"file-{sha256[:2]}"):  # one process fetches, the others wait for its result
                if not self._touch(place, size):
                    self._fetch_when_there_is_room(open_remote, sha256, name)
                return use(place)

    def _touch(self, place: Path, size: int | None) -> bool:
        """Whether the file is here; if so it counts as just used. One of another size was damaged, and is fetched again."""
        try:
            if size is not None and place.stat().st_size != size:
                return False
            os.utime(place)
            return True
        except FileNotFoundError:
            return False

    def used_bytes(self) -> int:
        """Bytes of all files that are here or being fetched, never above the bound."""
        with self._lock("room"):
            return sum(size for _, size, _ in self._files())

    def _reserve(self, part: Path, size: int) -> None:
        """Makes room and takes it, before other processes do; waits while what could go is in use."""
        while True:
            with self._lock("room"):
                if self._evict(self.limit_bytes - size, keep=part):
                    with open(part, "wb") as file:
                        file.truncate(size)
                    return
            time.sleep(0.01)  # safe: who holds a reservation needs nothing more to finish

    def _evict(self, limit: int, keep: Path) -> bool:
        """Removes what was not used for longest until at most `limit` bytes are left; returns whether that was possible."""
        files = sorted(entry for entry in self._files() if entry[2] != keep)
        total = sum(size for _, size, _ in files)
        for _, size, place in files:
            if total <= limit:
                break
            own = place.name[:2] == keep.name[:2]  # then its lock is ours already
            with nullcontext(True) if own else self._lock(f"file-{place.name[:2]}", wait=False) as held:
                if held:
                    place.unlink(missing_ok=True)
                    total -= size
        return total <= limit

    def _files(self) -> Iterator[tuple[int, int, Path]]:
        """(time of last use, bytes, path) of each file."""
        for place in self.folder.iterdir():
            with suppress(FileNotFoundError):
                status = place.stat()
                if place.is_file():
                    yield status.st_mtime_ns, status.st_size, place

    def _fetch_when_there_is_room(self, open_remote: OpenRemote, sha256: str, name: str) -> None:
        """Fetches a file; while the disk is full, whoever filled it, other files of the cache go and it is tried again."""
        deadline = time.monotonic() + patience_seconds()
        while True:
            try:
                source, length = open_remote()
                with source:
                    self._fetch(source, length, sha256, name)
                return
            except OSError as error:
                if error.errno not in FULL or time.monotonic() > deadline:
                    raise
            with self._lock("room"):
                self._evict(0, keep=self.folder / f"{sha256}.part")
            time.sleep(FULL_PAUSE_SECONDS)

    def _fetch(self, source: BinaryIO, size: int, sha256: str, name: str) -> None:
        if size > self.limit_bytes:
            raise UserError(
                f"{name} has {size} bytes and does not fit the cache of {self.limit_bytes} bytes in {self.folder}; raise RAYMILL_CACHE_GB"
            )
        part = self.folder / f"{sha256}.part"
        self._reserve(part, size)
        try:
            digest, count = hashlib.sha256(), 0
            with open(part, "r+b") as file:
                while data := source.read(COPY_BYTES):
                    digest.update(data)
                    count += len(data)
                    file.write(data)
            if count != size or digest.hexdigest() != sha256:
                raise UserError(
                    f"{name} has {count} bytes with sha256 {digest.hexdigest()}, expected {size} bytes with {sha256}; "
                    "it was cut short or altered, make or fetch it again"
                )
            with self._lock("room"):
                os.replace(part, self.folder / sha256)
        finally:
            part.unlink(missing_ok=True)

    @contextmanager
    def _mendable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            problem = f"the cache folder {self.folder} cannot be used: {error.strerror or error}"
            raise UserError(f"{problem}; set RAYMILL_CACHE to another folder") from None

    @contextmanager
    def _lock(self, name: str, wait: bool = True) -> Iterator[bool]:
        """An exclusive lock between processes and threads; it goes with its process. Yields whether it is held."""
        with open(self.folder / "locks" / name, "wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True


def _limit_of_environment() -> int:
    text = os.environ.get("RAYMILL_CACHE_GB", "")
    try:
        gigabytes = float(text) if text else DEFAULT_GIGABYTES
    except ValueError:
        gigabytes = 0.0
    if not gigabytes > 0:
        raise UserError(f"environment: RAYMILL_CACHE_GB={text!r} is not a positive number of gigabytes, for example 20")
    return int(gigabytes * 1e9)
