"""One holder at a time, among all processes and machines: `held` waits for its turn, and for whom is told.

    with held("s3://bucket/store/locks/nightly", lambda owner: print(f"waiting for {owner}")) as lease:
        ...
        lease.check()  # before what must not happen twice: raises LeaseLost when another holds it by now
        storage.write_json(...)

On a local path it is the kernel's lock (`components/lock.py`). On `s3://` it is an object that only conditional requests make, renew, take
over and remove. Its holder renews it all the time; who waits takes it over after it saw no renewal for the lease time on its own clock, so
clocks of machines need not agree. A holder that could not renew it, stopped or cut off, loses nothing until another took over, and then
learns it.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pydantic import ValidationError

from components import storage
from components.config import Config
from components.errors import UserError
from components.lock import is_locked, locked
from components.object_store import ConditionFailed, Version

LEASE_SECONDS = 30.0
BEATS = 4  # renewals in a lease time
ABANDONED = 10  # lease times after which an object that nobody waits for counts as left behind
RELEASE_PATIENCE_SECONDS = 10.0  # what cannot be released expires


class LeaseLost(UserError):
    """Another holds the lease now: what it guards must not be touched any more."""


class Holder(Config):
    """What the object holds. Who waits shows pid and host; that the bytes never repeat makes every renewal a new version."""

    pid: int = 0
    host: str = "unknown host"
    number: int = 0
    seconds: float = LEASE_SECONDS
    token: str = ""
    renewal: int = 0


class Lease:
    """What a holder knows of its turn.

    `number` is larger than that of all holders before, for those who must refuse late writes: by one at least when a lease was taken over,
    by the clock when the one before was released. `lost` is True as soon as a renewal found another holder.
    """

    def __init__(self, url: str, number: int) -> None:
        self.url, self.number, self.lost = url, number, False

    def check(self) -> None:
        """Raises LeaseLost when another took over; otherwise the whole lease time begins anew. The kernel's lock is never lost."""


class _RemoteLease(Lease):
    """An object in the store and a thread that renews it."""

    def __init__(self, url: str, seconds: float, before: Version | None) -> None:
        """Takes the lease: no object is there, or `before` has expired. Raises ConditionFailed when another was first."""
        number = _clock_number() if before is None else max(_holder(before).number + 1, _clock_number())
        super().__init__(url, number)
        self._content = Holder(pid=os.getpid(), host=socket.gethostname(), number=number, seconds=seconds, token=secrets.token_hex(8))
        self._etag = None if before is None else before.etag
        self._turn, self._ended = threading.Lock(), threading.Event()
        self._write(None)
        self._thread = threading.Thread(target=self._keep_renewing, name=f"lease {url}", daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def check(self) -> None:
        self._renew(None)

    def end(self) -> None:
        """Removes the object unless it is another's. What cannot be reached expires."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self.lost:
            return
        with suppress(UserError, ConditionFailed):
            self._renew(RELEASE_PATIENCE_SECONDS)  # a server that removes without a look at the condition finds it ours
            assert self._etag is not None
            storage.remove_if(self.url, self._etag, RELEASE_PATIENCE_SECONDS)

    def _keep_renewing(self) -> None:
        pause = self._content.seconds / BEATS
        while not self._ended.wait(pause) and not self.lost:
            with suppress(UserError):  # lost: `lost` says so; not to be reached: again, since nobody else can take it either
                self._renew(pause)

    def _renew(self, patience: float | None) -> None:
        with self._turn:
            if not self.lost:
                try:
                    self._write(patience)
                except ConditionFailed:
                    self.lost = True
        if self.lost:
            owner = _owner(storage.read_version(self.url, patience))
            raise LeaseLost(
                f"the lock {self.url} was lost to {owner}: it was not renewed in {self._content.seconds:g} s, as this process was stopped "
                "or cut off; run the command again, it goes on from what is there"
            )

    def _write(self, patience: float | None) -> None:
        """The next renewal. A refusal may mean that an earlier write of ours came about although its answer was lost."""
        self._content = self._content.model_copy(update={"renewal": self._content.renewal + 1})
        data = json.dumps(self._content.to_json()).encode()
        while True:
            try:
                self._etag = storage.write_if(self.url, data, self._etag, patience)
                return
            except ConditionFailed:
                found = storage.read_version(self.url, patience)
                if found is None or _holder(found).token != self._content.token:
                    raise
                self._etag = found.etag
                if found.data == data:
                    return


@contextmanager
def held(url: str, waiting: Callable[[str], None], *, seconds: float = LEASE_SECONDS, certain: bool = False) -> Iterator[Lease]:
    """Holds the lease at `url` while the block runs; calls `waiting(owner)` once when another has it, and then waits for it.

    An exception that `waiting` raises ends the attempt. Who refuses so asks to be `certain`: then it is called only once the owner was seen
    to renew its lease, and one that was killed expires instead of being met by every attempt anew. `seconds` is the lease time on `s3://`:
    for how long a killed holder blocks others.
    Raises OSError where a local file cannot be made, and UserError for a server that does not honour conditional requests.
    """
    if not storage.is_remote(url):
        with locked(_path(url), waiting):
            yield Lease(url, _clock_number())
        return
    lease = _take(url, waiting, seconds, certain)
    try:
        _refuse_without_conditions(url)
        lease.begin()
        yield lease
    finally:
        lease.end()


@contextmanager
def writing(url: str, waiting: Callable[[str], None], *, seconds: float = LEASE_SECONDS) -> Iterator[Lease]:
    """Holds the lease on the file or folder `url` itself, next to which it lies. Raises UserError where nothing can be written."""
    with ExitStack() as stack:
        try:
            lease = stack.enter_context(held(_beside(url), waiting, seconds=seconds))
        except OSError as error:
            cause = "a part of the path is a file" if isinstance(error, (FileExistsError, NotADirectoryError)) else error.strerror or error
            raise UserError(f"{url} cannot be written: {cause}; name another place") from None
        yield lease


def is_held(url: str) -> bool:
    """Whether a living process holds the lease; on `s3://` a killed one seems to hold it for some lease times."""
    if not storage.is_remote(url):
        return is_locked(_path(url))
    found = storage.read_version(url)
    return found is not None and not _is_abandoned(found)


def clear(url: str) -> None:
    """Removes the object that a killed holder left on `s3://` long ago, if it did."""
    found = storage.read_version(url) if storage.is_remote(url) else None
    if found is not None and _is_abandoned(found):
        with suppress(ConditionFailed):
            storage.remove_if(url, found.etag)


class _Watch:
    """What this process saw of others' leases: for how long each has not been renewed. It lasts from one attempt to the next."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, float, float]] = {}  # url -> version, seen first at, seen last at
        self._turn = threading.Lock()

    def expired(self, url: str, found: Version) -> bool:
        """Whether the version stayed for its lease time. Looks far apart do not add up: its holder may have met the same silent server."""
        seconds, now = _holder(found).seconds, time.monotonic()
        with self._turn:
            etag, first, last = self._seen.get(url, ("", now, now))
            if etag != found.etag or now - last > seconds / 2:
                first = now
            self._seen[url] = (found.etag, first, now)
        return now - first >= seconds


_watch = _Watch()
_honest: set[tuple[str | None, str]] = set()  # endpoint and bucket where conditions are known to be honoured


def _take(url: str, waiting: Callable[[str], None], seconds: float, certain: bool) -> _RemoteLease:
    told, first = False, None
    while True:
        found = storage.read_version(url)
        pause = 0.1
        if found is None or _watch.expired(url, found):
            with suppress(ConditionFailed):  # another was first
                return _RemoteLease(url, seconds, found)
        else:
            pause = min(_holder(found).seconds / BEATS, 1.0)
            first = first or found.etag
            if not told and (found.etag != first or not certain):
                waiting(_owner(found))
                told = True
        time.sleep(pause * random.uniform(0.5, 1.0))


def _refuse_without_conditions(url: str) -> None:
    """Raises UserError when the server writes whatever the condition says. Asked once a bucket, with the object that we just made."""
    place = (os.environ.get("AWS_ENDPOINT_URL_S3"), url.split("/")[2])
    found = None if place in _honest else storage.read_version(url)
    if found is None:
        return
    for etag in (None, '"0123456789abcdef0123456789abcdef"'):
        try:
            storage.write_if(url, found.data, etag)
        except ConditionFailed:
            continue
        raise UserError(
            f"{url} cannot be a lock: the server ignores conditional requests (If-None-Match, If-Match), so that two could hold it; "
            "use a server that honours them, such as AWS S3 or SeaweedFS 4, or a local store"
        )
    _honest.add(place)


def _beside(url: str) -> str:
    if not storage.is_remote(url):
        path = _path(url).resolve()
        return str(path.with_name(f".{path.name}.lock"))
    folder, _, name = url.rstrip("/").rpartition("/")
    return storage.join(url, ".lock") if folder == "s3:/" else f"{folder}/.{name}.lock"


def _holder(found: Version) -> Holder:
    try:
        return Holder.model_validate_json(found.data)
    except ValidationError:  # not written by us, or of another version: it expires like any other
        return Holder()


def _owner(found: Version | None) -> str:
    holder = Holder() if found is None else _holder(found)
    return f"process {holder.pid} on {holder.host}" if holder.pid else "another process"


def _is_abandoned(found: Version) -> bool:
    return found.age_seconds > ABANDONED * _holder(found).seconds


def _clock_number() -> int:
    return time.time_ns() // 10**6


def _path(url: str) -> Path:
    return Path(url.removeprefix("file://"))
