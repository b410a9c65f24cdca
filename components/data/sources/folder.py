"""The files of a source: a local path, an s3:// prefix, or an http(s) URL whose files and checksums the config names.

What comes by http(s) goes through the node-local cache, so that every worker node fetches a file once.
"""

from __future__ import annotations

import hashlib
import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, BinaryIO, cast

from components import storage
from components.data.cache import ContentCache
from components.data.sources.known import KnownFiles
from components.errors import UserError, did_you_mean
from components.redaction import redacted
from components.stamp import Stamp

TRIES, TIMEOUT_SECONDS = 4, 60


class SourceFolder:
    """Names, checksums and content of a source's files, by path relative to it. A single file is a folder of one."""

    def __init__(self, url: str, checksums: Mapping[str, str]) -> None:
        self.url = url
        self._checksums = dict(checksums)
        self._http = url.startswith(("http://", "https://"))
        if self._http:
            _require_plain(url)
        if self._http and not checksums:
            raise UserError(f"source {url}: give its files and their SHA-256, for example checksums='{{images.npz: 0123...}}'")

    @cached_property
    def files(self) -> tuple[str, ...]:
        """Sorted paths; hidden ones, and those that begin with an underscore, are left out. Raises UserError when there is none."""
        if self._http:
            return tuple(sorted(self._checksums))
        found = sorted(path for path in self._stamps if path == self._root[1] or not _is_hidden(path))
        for path in self._checksums:
            if path not in found:
                raise UserError(f"source {self.url} has no file {path!r}, which checksums names; {did_you_mean(path, found)}")
        if not found:
            problem = "holds no files" if storage.exists(self.url) else "does not exist"
            raise UserError(f"source {self.url} {problem}; give a file or a folder with data")
        return tuple(sorted(self._checksums or found))

    def place(self, path: str) -> str:
        """The URL of a file, for reading and for messages."""
        return storage.join(self._root[0], path)

    def open(self, path: str) -> BinaryIO:
        if not self._http:
            return storage.open_read(self.place(path))
        place = self.place(path)
        return ContentCache().use(self._checksums[path], place, lambda: _get(place), lambda local: local.open("rb"))

    def hashed(self, paths: list[str], known: KnownFiles) -> list[SourceFile]:
        """Files with their checksums, those that are not known read through.

        Raises UserError naming the file and both checksums when one is not what the config says.
        """
        hashes = known.hashes({path: self._stamps.get(path) for path in paths}, self._sha256)
        return [self._checked(path, sha256) for path, sha256 in hashes.items()]

    def known(self, path: str, sha256: str) -> SourceFile:
        """A file whose checksum an earlier look has told."""
        self._checksums[path] = sha256
        return SourceFile(path, sha256, self.place(path), self)

    def _sha256(self, path: str) -> str:
        with self.open(path) as file:
            return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()

    def _checked(self, path: str, found: str) -> SourceFile:
        expected = self._checksums.get(path, found)
        if found != expected:
            raise UserError(f"{self.place(path)} has sha256 {found}, the config's checksums say {expected}; fetch it again or correct them")
        return SourceFile(path, found, self.place(path), self)

    @cached_property
    def _stamps(self) -> dict[str, Stamp]:
        """Of all files, by path; none where only a request for the content tells."""
        if self._http:
            return {}
        name = self._root[1]
        only = storage.stamp(self.url) if name else None
        return {name: only} if only is not None else storage.stamps(self.url)

    @cached_property
    def _root(self) -> tuple[str, str]:
        """(URL that the paths are relative to, the only file or '')."""
        if self._http:
            parts = urllib.parse.urlsplit(self.url)
            folder, _, name = parts.path.rpartition("/")
            if name in self._checksums:
                return urllib.parse.urlunsplit(parts._replace(path=folder)), name
            return self.url, ""
        if storage.size(self.url) is None:
            return self.url, ""
        folder, _, name = self.url.rpartition("/")
        return folder if folder or not self.url.startswith("/") else "/", name


@dataclass(frozen=True)
class SourceFile:
    """One file of a source and the content it had when it was looked at; two are equal when place and content are."""

    path: str
    sha256: str
    place: str
    folder: SourceFolder = field(compare=False, repr=False)

    def open(self) -> BinaryIO:
        return self.folder.open(self.path)

    def read(self) -> bytes:
        """The whole content; raises UserError when it is no longer what it was."""
        with self.open() as file:
            data = file.read()
        found = hashlib.sha256(data).hexdigest()
        if found != self.sha256:
            raise UserError(f"{self.place} changed while it was read: sha256 {self.sha256} before, {found} now; run prepare again")
        return data


def _require_plain(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if "@" in parts.netloc or parts.query:
        raise UserError(f"source {redacted(url)} was given with a password or a query; fetch its files, and give the folder they lie in")


def _is_hidden(path: str) -> bool:
    return any(part.startswith((".", "_")) for part in path.split("/"))


def _get(url: str) -> tuple[BinaryIO, int]:
    """The body behind a URL and its length; tries again when the server does not answer or is overloaded."""
    for pause in range(1, TRIES + 1):
        try:
            response = urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS)
            length = response.headers.get("Content-Length")
            if length is None:
                raise UserError(f"{url}: the server does not say how long the file is; fetch it by hand and give its folder")
            return cast(BinaryIO, _Body(url, response)), int(length)
        except urllib.error.HTTPError as error:
            if error.code < 500 or pause == TRIES:
                raise UserError(f"{url} cannot be fetched: the server answered {error.code} {error.reason}; check the URL") from None
        except (OSError, http.client.HTTPException) as error:
            if pause == TRIES:
                raise UserError(f"{url} cannot be fetched: {error}; check the URL and the network") from None
        time.sleep(0.25 * 2**pause)
    raise AssertionError("the last try raises")


class _Body:
    """The body of a response, whose failures are the user's to mend."""

    def __init__(self, url: str, response: http.client.HTTPResponse) -> None:
        self._url, self._response = url, response

    def read(self, size: int) -> bytes:
        try:
            return self._response.read(size)
        except (OSError, http.client.HTTPException) as error:
            raise UserError(f"{self._url} broke off: {error}; try again") from None

    def __enter__(self) -> _Body:
        return self

    def __exit__(self, *_: object) -> None:
        self._response.close()
