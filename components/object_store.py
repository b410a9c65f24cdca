"""S3 behind the seam of `components/storage.py`: every call rides out restarts, 5xx answers and time-outs with backoff.

Endpoint, region and credentials come from the standard AWS environment alone (`AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`,
`AWS_ACCESS_KEY_ID`, ... or a profile); `RAYMILL_STORAGE_PATIENCE` is for how many seconds a call is tried again (default 60).
"""

from __future__ import annotations

import functools
import io
import os
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

from components.errors import UserError
from components.stamp import Stamp

if TYPE_CHECKING:
    from s3fs import S3FileSystem

T = TypeVar("T")

PATIENCE_SECONDS = 60.0
RANGE_BYTES = 8 * 2**20  # one request of a streamed read
_KNOWN_TO_PASS = {429, 500, 502, 503, 504}  # HTTP: throttled, or the server is starting, stopping or behind a proxy


def read_bytes(path: str) -> bytes:
    return _patiently(lambda: _s3().cat_file(path))


def write_bytes(path: str, data: bytes) -> None:
    _patiently(lambda: _s3().pipe_file(path, data))


def upload(local_file: str, path: str) -> None:
    _patiently(lambda: _s3().put_file(local_file, path))


def copy(path: str, to: str) -> None:
    """Copies an object on the server; its bytes do not come here."""
    _patiently(lambda: _s3().cp_file(path, to))


def stamp(path: str) -> Stamp | None:
    """The state of the object, or None when there is no object of that name (a prefix is no object)."""
    if "/" not in path:
        return None
    try:
        info = _patiently(lambda: _s3().info(path))
    except FileNotFoundError:
        return None
    return _stamp(info) if info["type"] == "file" else None


def stamps(path: str) -> dict[str, Stamp]:
    """The state of every object below the prefix, by path relative to it; a bucket that does not exist is FileNotFoundError."""
    found = _patiently(lambda: _s3().find(path, detail=True))
    below = path + "/"
    return {
        name.removeprefix(below): _stamp(info)
        for name, info in found.items()
        if name.startswith(below) and info["type"] == "file" and not name.endswith("/")
    }


def _stamp(info: dict[str, Any]) -> Stamp:
    changed = info["LastModified"].timestamp()
    return Stamp(int(info["size"]), f"{info.get('ETag', '')} {int(changed)}", changed)  # a HEAD tells whole seconds only


def list_names(path: str) -> list[str]:
    try:
        found = _patiently(lambda: _s3().ls(path, detail=False))
    except FileNotFoundError:
        return []
    below = path + "/"
    return sorted({name.removeprefix(below).strip("/") for name in found if name.startswith(below)} - {""})


def remove(path: str) -> None:
    """Removes the object and all below it; raises OSError when something is left, since a bulk delete does not tell."""

    def left() -> list[str]:
        try:
            return [name for name, info in _s3().find(path, detail=True).items() if info["type"] == "file"]
        except FileNotFoundError:
            return []

    for _ in range(2):
        names = _patiently(left)
        if not names:
            return
        _patiently(functools.partial(_s3().rm, names))
    if remaining := _patiently(left):
        raise OSError(f"{len(remaining)} objects could not be deleted, the first is {remaining[0]!r}")


def open_read(path: str, guard: Callable[[], AbstractContextManager[None]]) -> io.BufferedReader:
    """A seekable binary file; each later request runs inside a fresh `guard()`, where the caller names what failed."""
    return io.BufferedReader(_ObjectReader(path, guard), buffer_size=RANGE_BYTES)


class _ObjectReader(io.RawIOBase):
    """Reads an object by ranges, each range with the patience of a whole call, so that a server may restart in between."""

    def __init__(self, path: str, guard: Callable[[], AbstractContextManager[None]]) -> None:
        self._path, self._guard = path, guard
        info = _patiently(lambda: _s3().info(path))
        if info["type"] != "file":
            raise FileNotFoundError(path)
        self._size, self._position = int(info["size"]), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        first, last = self._position, min(self._position + len(buffer), self._size)
        if last <= first:
            return 0
        with self._guard():
            data = _patiently(lambda: _s3().cat_file(self._path, start=first, end=last))
            if len(data) != last - first:
                raise OSError(f"the object changed while it was read: {len(data)} bytes came at {first}, expected {last - first}")
        buffer[: len(data)] = data
        self._position = last
        return len(data)


def _s3() -> S3FileSystem:
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION")
    return _connect(os.getpid(), *(os.environ.get(name) for name in names))  # a fork and a new environment need a new client


@functools.lru_cache(maxsize=4)
def _connect(_process: int, *_environment: str | None) -> S3FileSystem:
    from s3fs import S3FileSystem  # 0.5 s of imports that local runs do without

    once = {"mode": "standard", "total_max_attempts": 1}  # patience is ours, below: one clock instead of three nested ones
    file_system = S3FileSystem(
        use_listings_cache=False,
        skip_instance_cache=True,
        config_kwargs={"retries": once, "connect_timeout": 5, "read_timeout": 60},
    )
    file_system.retries = 1
    return file_system


def _patiently(call: Callable[[], T]) -> T:
    """`call()`, tried again with growing, jittered pauses while its failure may pass by itself and patience lasts."""
    patience = _patience()
    began, pause = time.monotonic(), 0.1
    while True:
        try:
            return call()
        except Exception as error:
            if not _may_pass(error) or time.monotonic() - began + pause > patience:
                raise
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, 4.0)


def _patience() -> float:
    text = os.environ.get("RAYMILL_STORAGE_PATIENCE", "")
    try:
        return float(text) if text else PATIENCE_SECONDS
    except ValueError:
        raise UserError(f"environment: RAYMILL_STORAGE_PATIENCE={text!r} is not a number of seconds, for example 60") from None


def _may_pass(error: BaseException) -> bool:
    """Whether the failure is the network's or the server's passing state, not an answer such as 'no such key' or 'denied'."""
    from aiohttp import ClientError as HttpError
    from botocore import exceptions as aws

    for cause in (error, error.__cause__):
        if isinstance(cause, aws.ClientError):
            return cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in _KNOWN_TO_PASS
    passing = (
        *(aws.ConnectionError, aws.HTTPClientError, aws.IncompleteReadError, aws.ResponseStreamingError),
        *(HttpError, ConnectionError, TimeoutError),
    )
    return isinstance(error, passing) or (isinstance(error, OSError) and isinstance(error.__cause__, passing))


def explain(error: BaseException) -> str | None:
    """What went wrong in words that help and hold no secret, or None when it is no failure of an object store."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError, ProfileNotFound

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
    if isinstance(error, NoCredentialsError | PartialCredentialsError | ProfileNotFound):
        return "no complete credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    answer = next((e for e in (error, error.__cause__) if isinstance(e, ClientError)), None)
    if answer is not None:
        return f"the server at {endpoint} answered {answer.response.get('Error', {}).get('Code', 'with an error')}: {error}"
    if _may_pass(error) or isinstance(error, BotoCoreError):
        return f"the endpoint {endpoint} did not answer as expected ({type(error).__name__}: {error}); check AWS_ENDPOINT_URL_S3"
    return None
