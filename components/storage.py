"""One seam for files and folders on a local path or on `s3://bucket/prefix`; URLs are strings, a bare path is local.

Writes are atomic to a reader: it sees the file of before or the whole file of after. Every failure that the user can mend
(missing, read-only, disk full, unreachable, no credentials) is a UserError that names the URL and the cause, and holds no secret.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, cast

from components import object_store, s3_client
from components.errors import UserError
from components.object_store import Version
from components.stamp import Stamp

COPY_BYTES = 8 * 2**20


def is_remote(url: str) -> bool:
    """True for `s3://`; raises UserError for a scheme that is not supported, and for credentials in the URL."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", url)
    if scheme and scheme[1] not in ("s3", "file"):
        raise UserError(f"storage: {url!r} has the scheme {scheme[1]!r}; expected a local path or s3://bucket/prefix")
    if scheme and "@" in url.removeprefix(scheme[0]).partition("/")[0]:
        raise UserError(f"storage: {url!r} was given with credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE")
    return scheme is not None and scheme[1] == "s3"


def join(url: str, *parts: str) -> str:
    """The URL of `parts` below `url`, with single slashes between. Raises UserError for an `s3://` that names no bucket."""
    if url.startswith("s3://"):
        _key(url)
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def exists(url: str) -> bool:
    """Whether a file, or a folder or prefix with something in it, is there."""
    with _failures("look at", url):
        if not is_remote(url):
            return os.path.exists(_local(url))
        return object_store.stamp(_key(url)) is not None or object_store.holds_objects(_key(url))


def size(url: str) -> int | None:
    """Bytes of the file, or None when there is none."""
    found = stamp(url)
    return None if found is None else found.bytes


def stamp(url: str) -> Stamp | None:
    """The state of the file, or None when there is none."""
    with _failures("look at", url):
        if is_remote(url):
            return object_store.stamp(_key(url))
        return _stamp(_local(url)) if os.path.isfile(_local(url)) else None


def read_bytes(url: str) -> bytes:
    with _failures("read", url):
        if is_remote(url):
            return object_store.read_bytes(_key(url))
        with open(_local(url), "rb") as file:
            return file.read()


def open_read(url: str) -> BinaryIO:
    """A seekable binary file for streamed reading; from S3 it comes in ranges that survive a restart of the server."""
    with _failures("read", url):
        if is_remote(url):
            return cast(BinaryIO, object_store.open_read(_key(url), lambda: _failures("read", url)))
        return open(_local(url), "rb")


def write_bytes(url: str, data: bytes) -> None:
    """Writes the whole file in one atomic step, making the folders above it."""
    with _failures("write", url):
        if is_remote(url):
            object_store.write_bytes(_key(url), data)
            return
        with _replacing(_local(url)) as file:
            file.write(data)


def read_json(url: str) -> Any:
    """The value in a JSON file; raises UserError when it is missing or not JSON."""
    try:
        return json.loads(read_bytes(url))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot read {url}: it is not valid JSON ({error}); it was cut short or altered") from None


def write_json(url: str, value: Any) -> None:
    """Writes `value` as JSON, sorted by key, so that equal values give equal bytes."""
    write_bytes(url, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode())


def list_names(url: str) -> list[str]:
    """Names of the files and folders directly below, sorted; [] when there is nothing. Unfinished writes are left out."""
    with _failures("list", url):
        if is_remote(url):
            return object_store.list_names(_key(url))
        try:
            return sorted(name for name in os.listdir(_local(url)) if not _is_unfinished(name))
        except FileNotFoundError:
            return []


def list_files(url: str) -> list[str]:
    """Relative paths of all files below, sorted; [] when there is nothing."""
    return sorted(file_sizes(url))


def file_sizes(url: str) -> dict[str, int]:
    """Bytes of every file below, by relative path with forward slashes; {} when there is nothing."""
    return {path: found.bytes for path, found in stamps(url).items()}


def stamps(url: str) -> dict[str, Stamp]:
    """The state of every file below, by relative path with forward slashes; {} when there is nothing."""
    with _failures("list", url):
        if is_remote(url):
            try:
                return object_store.stamps(_key(url))
            except FileNotFoundError:
                return {}
        root, found = _local(url), dict[str, Stamp]()
        for folder, _, names in os.walk(root, onerror=_raise_unless_missing, followlinks=True):
            below = os.path.relpath(folder, root).replace(os.sep, "/")
            above = "" if below == "." else f"{below}/"
            found |= {above + name: _stamp(os.path.join(folder, name)) for name in names if not _is_unfinished(name)}
        return found


def remove(url: str) -> None:
    """Removes a file or a whole tree; nothing there is no error. A symbolic link goes, what it points to stays."""
    with _failures("remove", url):
        if is_remote(url):
            object_store.remove(_key(url))
            return
        path = _local(url)
        with suppress(FileNotFoundError):
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)


def abandon_uploads(url: str) -> None:
    """Removes the parts that killed processes sent for files below an `s3://` folder where nobody writes now; a server may not let us."""
    if is_remote(url):
        with suppress(UserError), _failures("clean up", url):
            object_store.abandon_uploads(_key(url))


def read_version(url: str, patience: float | None = None) -> Version | None:
    """A small file on `s3://` with what tells its versions apart; None when there is none."""
    with _failures("read", url):
        return object_store.read_version(_key(url), patience)


def write_if(url: str, data: bytes, etag: str | None, patience: float | None = None) -> str:
    """Writes a small file on `s3://` if it is of version `etag` still (None: not there) and returns its new version.

    Raises `ConditionFailed` when it is not; as an answer may be lost, the caller looks whether the bytes there are its own.
    """
    with _failures("write", url):
        return object_store.write_if(_key(url), data, etag, patience)


def remove_if(url: str, etag: str, patience: float | None = None) -> None:
    """Removes a file on `s3://` that is of version `etag` still; raises `ConditionFailed` when it is another one's."""
    with _failures("remove", url):
        object_store.remove_if(_key(url), etag, patience)


def upload(local_file: str, url: str) -> None:
    """Copies a local file to `url` in one atomic step."""
    with _failures("write", url):
        if is_remote(url):
            object_store.upload(local_file, _key(url))
            return
        with open(_local(local_file), "rb") as source, _replacing(_local(url)) as file:
            shutil.copyfileobj(source, file, COPY_BYTES)


def download(url: str, local_file: str) -> None:
    """Copies `url` to a local file in one atomic step."""
    with open_read(url) as source, _failures("write", local_file), _replacing(local_file) as file:
        shutil.copyfileobj(source, file, COPY_BYTES)


def copy(url: str, to: str) -> None:
    """Copies a file in one atomic step: a hard link on one file system, a copy on the server within S3, else its bytes through here.

    Neither of two linked files may be changed in place, and nothing here does: a write gives the name a new file. The new name of a
    link survives a power cut once something is written beside it.
    """
    if is_remote(url) and not is_remote(to):
        download(url, _local(to))
    elif is_remote(url):
        with _failures(f"copy {url} to", to):
            object_store.copy(_key(url), _key(to))
    elif is_remote(to) or not _link(_local(url), _local(to)):
        with open_read(url):  # a file that is missing is named as such
            upload(url, to)


def upload_folder(local: str, url: str, last: str, before_last: Callable[[], None] = lambda: None) -> None:
    """Copies every file below the local folder, `last` (a relative path) after all others: the commit. `before_last` may raise."""
    files = list_files(local)
    assert last in files, f"{local} holds no {last} to commit with"
    for file in [f for f in files if f != last]:
        upload(join(local, file), join(url, file))
    before_last()
    upload(join(local, last), join(url, last))


def sha256_file(local_path: str) -> str:
    """The SHA-256 of a local file, in hexadecimal."""
    with _failures("read", local_path), open(_local(local_path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _local(url: str) -> str:
    return url.removeprefix("file://")


def _stamp(path: str) -> Stamp:
    status = os.stat(path)
    return Stamp(status.st_size, str(status.st_mtime_ns), status.st_mtime)


def _link(path: str, to: str) -> bool:
    """Whether `to` now names the same file as `path`; not every file system can do that, and none across devices."""
    folder, name = os.path.split(os.path.abspath(to))
    draft = _draft_of(folder, name)
    with _failures(f"copy {path} to", to):
        os.makedirs(folder, exist_ok=True)
        try:
            os.link(os.path.realpath(path), draft)
            os.replace(draft, to)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return False
        finally:
            with suppress(FileNotFoundError):  # there only if something failed, or if both were one file already
                os.unlink(draft)
        return True


_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS}


def _key(url: str) -> str:
    """`bucket/key` of an S3 URL."""
    key = url.removeprefix("s3://").strip("/")
    if not key:
        raise UserError(f"storage: {url!r} names no bucket; expected s3://bucket/prefix")
    return key


def _is_unfinished(name: str) -> bool:
    return name.startswith(".") and name.endswith(".unfinished")


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


@contextmanager
def _replacing(path: str) -> Iterator[BinaryIO]:
    """A new file that takes the name `path` when the block ends well and is gone when it does not."""
    folder, name = os.path.split(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    draft = _draft_of(folder, name)
    try:
        with open(draft, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(draft)
        raise
    _sync_folder(folder)


def _draft_of(folder: str, name: str) -> str:
    return os.path.join(folder, f".{name[:100]}.{secrets.token_hex(6)}.unfinished")


def _sync_folder(folder: str) -> None:
    """Makes the new name itself survive a power cut; some network file systems know no such call, and need none."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


@contextmanager
def _failures(action: str, url: str) -> Iterator[None]:
    """Turns the failures that a user can mend into UserError naming the URL and the cause."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause = _cause(error, url)
        if cause is None:
            raise
        raise UserError(f"cannot {action} {url}: {cause}") from None


def _cause(error: Exception, url: str) -> str | None:
    if isinstance(error, OSError) and error.errno in _ADVICE:
        return _ADVICE[error.errno]
    if is_remote(url):
        explained = s3_client.explain(error)
        if explained is not None:
            return explained
    elif isinstance(error, FileNotFoundError):
        return "there is no such file or folder; check the path"
    return str(error.strerror or error) if isinstance(error, OSError) else None


_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space or choose another place",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another place",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.EACCES: "permission denied; choose another place or change its permissions",
    errno.EPERM: "the operation is not permitted; choose another place or change its permissions",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "it is a folder, expected a file",
}
