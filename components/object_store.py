"""S3 behind the seam of `components/storage.py`: objects that appear whole, checked by the server on arrival, read by ranges.

Every request has the patience of `components/s3_client.py`, so that a server may fail, stall or restart between any two. A path is
`bucket/key`.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from components.s3_client import code, may_pass, request, status
from components.stamp import Stamp

RANGE_BYTES = 8 * 2**20  # one request of a streamed read
PART_BYTES = 8 * 2**20  # one request of an upload; S3 takes 5 MiB or more, and at most 10,000 parts
MAX_PARTS = 10_000
SENDERS = 4  # parts that are on their way at once
ABORT_PATIENCE_SECONDS = 10.0  # for cleaning up after a failure, which has used up its own patience

ReadPart = Callable[[int, int], bytes]  # (offset, length) -> bytes


class ConditionFailed(Exception):
    """The object is not what a conditional request expected."""


@dataclass(frozen=True)
class Version:
    """An object as it was at one moment."""

    data: bytes
    etag: str  # another for every change of the bytes
    age_seconds: float  # since it was written, by the server's clock alone


def read_bytes(path: str) -> bytes:
    """The whole object, of one version."""
    bucket, key = _split(path)
    try:
        first = request("get_object", Bucket=bucket, Key=key, Range=f"bytes=0-{RANGE_BYTES - 1}")
    except OSError as error:
        if status(error) != 416:  # no range of nothing
            raise
        return b""
    size = int(first["ContentRange"].rpartition("/")[2]) if "ContentRange" in first else len(first["Body"])
    parts = [first["Body"]]
    for start in range(len(first["Body"]), size, RANGE_BYTES):
        parts.append(_read_range(path, start, min(start + RANGE_BYTES, size), first["ETag"]))
    return b"".join(parts)


def write_bytes(path: str, data: bytes) -> None:
    _write(path, len(data), lambda offset, length: data[offset : offset + length])


def upload(local_file: str, path: str) -> None:
    def read(offset: int, length: int) -> bytes:
        with open(local_file, "rb") as file:
            file.seek(offset)
            return file.read(length)

    _write(path, os.path.getsize(local_file), read)


def copy(path: str, to: str) -> None:
    """Copies an object on the server, up to the 5 GB that one request may copy; its bytes do not come here."""
    (from_bucket, from_key), (bucket, key) = _split(path), _split(to)
    request("copy_object", Bucket=bucket, Key=key, CopySource={"Bucket": from_bucket, "Key": from_key})


def stamp(path: str) -> Stamp | None:
    """The state of the object, or None when there is no object of that name (a prefix is no object)."""
    if "/" not in path:
        return None
    try:
        info = _head(path)
    except FileNotFoundError:
        return None
    return _stamp(info["ContentLength"], info)


def stamps(path: str) -> dict[str, Stamp]:
    """The state of every object below the prefix, by path relative to it; a bucket that does not exist is FileNotFoundError."""
    below = _split(path)[1] + "/" if "/" in path else ""
    objects = (each for page in _pages(path) for each in page.get("Contents", []))
    return {each["Key"].removeprefix(below): _stamp(each["Size"], each) for each in objects if not each["Key"].endswith("/")}


def holds_objects(path: str) -> bool:
    """Whether there is an object below the prefix. A listing by names may show folders that a server keeps for a while after their end."""
    try:
        return any(page.get("Contents") for page in _pages(path, MaxKeys=1))
    except FileNotFoundError:
        return False


def _stamp(size: int, info: dict[str, Any]) -> Stamp:
    changed = info["LastModified"].timestamp()
    return Stamp(size, f"{info['ETag']} {int(changed)}", changed)  # a HEAD tells whole seconds only


def list_names(path: str) -> list[str]:
    """Names directly below the prefix, sorted."""
    below = _split(path)[1] + "/" if "/" in path else ""
    names: set[str] = set()
    try:
        for page in _pages(path, Delimiter="/"):
            names |= {each["Key"] for each in page.get("Contents", [])} | {each["Prefix"] for each in page.get("CommonPrefixes", [])}
    except FileNotFoundError:
        return []
    return sorted({name.removeprefix(below).strip("/") for name in names} - {""})


def remove(path: str) -> None:
    """Removes the object and all below it; raises OSError when something is left, since a bulk delete does not tell."""
    for _ in range(2):
        paths = _paths(path)
        if not paths:
            return
        bucket = _split(path)[0]
        for start in range(0, len(paths), 1000):  # what one request takes
            keys = [{"Key": _split(each)[1]} for each in paths[start : start + 1000]]
            request("delete_objects", Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
    if remaining := _paths(path):
        raise OSError(f"{len(remaining)} objects could not be deleted, the first is {remaining[0]!r}")


def abandon_uploads(path: str) -> None:
    """Removes the parts of uploads to below the prefix that a killed process never completed; the caller knows that none is under way."""
    bucket, key = _split(path)
    for upload in _uploads(bucket, f"{key}/"):
        _abort(upload)


def read_version(path: str, patience: float | None = None) -> Version | None:
    """A small object and what tells its versions apart; None when there is none."""
    bucket, key = _split(path)
    try:
        answer = request("get_object", patience, Bucket=bucket, Key=key)
    except FileNotFoundError as error:
        if code(error) == "NoSuchBucket":
            raise
        return None
    now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    return Version(answer["Body"], answer["ETag"], (now - answer["LastModified"]).total_seconds())


def write_if(path: str, data: bytes, etag: str | None, patience: float | None = None) -> str:
    """Writes a small object if its version is `etag` still (None: if there is none) and returns the new one.

    `data` is never what was written before. Raises ConditionFailed, also when the write of a lost answer had come about:
    the caller looks.
    """
    condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
    bucket, key = _split(path)
    try:
        return str(request("put_object", patience, Bucket=bucket, Key=key, Body=data, ContentMD5=_md5(data), **condition)["ETag"])
    except OSError as error:
        if status(error) == 412 or (etag is not None and code(error) == "NoSuchKey"):
            raise ConditionFailed(path) from None
        raise


def remove_if(path: str, etag: str, patience: float | None = None) -> None:
    """Removes an object if its version is `etag` still. Raises ConditionFailed when it is another."""
    bucket, key = _split(path)
    try:
        request("delete_object", patience, Bucket=bucket, Key=key, IfMatch=etag)
    except FileNotFoundError:
        return
    except OSError as error:
        if status(error) == 412:
            raise ConditionFailed(path) from None
        raise


def open_read(path: str, guard: Callable[[], AbstractContextManager[None]]) -> io.BufferedReader:
    """A seekable binary file; each later request runs inside a fresh `guard()`, where the caller names what failed."""
    return io.BufferedReader(_ObjectReader(path, guard), buffer_size=RANGE_BYTES)


class _ObjectReader(io.RawIOBase):
    """Reads one version of an object by ranges, each with the patience of a whole call, so that a server may restart in between."""

    def __init__(self, path: str, guard: Callable[[], AbstractContextManager[None]]) -> None:
        self._path, self._guard = path, guard
        info = _head(path)
        self._size, self._etag, self._position = int(info["ContentLength"]), info["ETag"], 0

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
        data = self._next(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return b"".join(iter(lambda: self._next(RANGE_BYTES), b""))

    def _next(self, length: int) -> bytes:
        """The next bytes, at most a range of them; none at the end."""
        first, last = self._position, min(self._position + min(length, RANGE_BYTES), self._size)
        if last <= first:
            return b""
        with self._guard():
            data = _read_range(self._path, first, last, self._etag)
        self._position = last
        return data


def _read_range(path: str, first: int, last: int, etag: str) -> bytes:
    bucket, key = _split(path)
    try:
        data: bytes = request("get_object", Bucket=bucket, Key=key, Range=f"bytes={first}-{last - 1}", IfMatch=etag)["Body"]
    except OSError as error:
        if status(error) in (412, 416):
            raise OSError(f"the object changed while it was read, at byte {first}") from None
        raise
    if len(data) != last - first:
        raise OSError(f"{len(data)} bytes came at {first}, expected {last - first}; the server does not read ranges")
    return data


def _write(path: str, length: int, read: ReadPart) -> None:
    """One request for what is small; else parts, which become the object together or go away."""
    bucket, key = _split(path)
    if length <= 2 * PART_BYTES:
        data = read(0, length)
        request("put_object", Bucket=bucket, Key=key, Body=data, ContentMD5=_md5(data))
        return
    try:
        _write_parts(bucket, key, length, read)
    except FileNotFoundError as error:
        if code(error) != "NoSuchUpload":
            raise
        _write_parts(bucket, key, length, read)  # the server forgot the upload, or its answer to the completion was lost


def _write_parts(bucket: str, key: str, length: int, read: ReadPart) -> None:
    step = max(PART_BYTES, -(-length // MAX_PARTS))
    target: dict[str, Any] = {"Bucket": bucket, "Key": key}
    target["UploadId"] = _begin_parts(bucket, key)

    def send(number: int) -> dict[str, Any]:
        data = read((number - 1) * step, step)
        answer = request("upload_part", **target, PartNumber=number, Body=data, ContentMD5=_md5(data))
        return {"PartNumber": number, "ETag": answer["ETag"]}

    senders = ThreadPoolExecutor(SENDERS)
    try:
        parts = list(senders.map(send, range(1, -(-length // step) + 1)))
        request("complete_multipart_upload", **target, MultipartUpload={"Parts": parts})
    except BaseException:
        senders.shutdown(cancel_futures=True)  # a part that arrives after the end of its upload would stay for ever
        with suppress(Exception):  # what went wrong before is the news
            _abort(target, ABORT_PATIENCE_SECONDS)
        raise
    finally:
        senders.shutdown()


def _begin_parts(bucket: str, key: str) -> str:
    """Id of a new upload, the only one to this key: a lost answer leaves an upload that nobody knows.

    Another writer whose upload goes with it begins again, as after any loss of it.
    """
    try:
        return str(request("create_multipart_upload", 0.0, Bucket=bucket, Key=key)["UploadId"])
    except Exception as error:
        if not may_pass(error):
            raise
    begun = str(request("create_multipart_upload", Bucket=bucket, Key=key)["UploadId"])
    for upload in _uploads(bucket, key):
        if upload["Key"] == key and upload["UploadId"] != begun:
            _abort(upload)
    return begun


def _uploads(bucket: str, prefix: str) -> list[dict[str, Any]]:
    """Uploads that were begun and neither completed nor aborted: Bucket, Key and UploadId of each."""
    found = request("list_multipart_uploads", Bucket=bucket, Prefix=prefix)
    return [{"Bucket": bucket, "Key": each["Key"], "UploadId": each["UploadId"]} for each in found.get("Uploads", [])]


def _abort(upload: dict[str, Any], patience: float | None = None) -> None:
    with suppress(FileNotFoundError):
        request("abort_multipart_upload", patience, **upload)


def _head(path: str) -> dict[str, Any]:
    bucket, key = _split(path)
    return request("head_object", Bucket=bucket, Key=key)


def _pages(path: str, **options: Any) -> Iterator[dict[str, Any]]:
    """The listing of what is below the prefix, a request a page."""
    bucket, key = _split(path) if "/" in path else (path, "")
    options |= {"Bucket": bucket, "Prefix": f"{key}/" if key else ""}
    while True:
        page = request("list_objects_v2", **options)
        yield page
        if not page.get("IsTruncated"):
            return
        options["ContinuationToken"] = page["NextContinuationToken"]


def _paths(path: str) -> list[str]:
    """Of the object and of all below it."""
    try:
        below = [f"{path}/{name}" for name in stamps(path)]
    except FileNotFoundError:
        return []
    return [path, *below] if stamp(path) is not None else below


def _split(path: str) -> tuple[str, str]:
    bucket, _, key = path.partition("/")
    return bucket, key


def _md5(data: bytes) -> str:
    """What every S3 server compares with the bytes that arrived, and refuses them if it differs."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
