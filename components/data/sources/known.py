"""What earlier looks at a source found, so that looking again costs what is new: checksums by the files' stamps, scans by their content.

Kept as one file a source, about 200 bytes for each file that the source has now. It may be thrown away at any time, one that is damaged
is none, and of two writers the last one's stays: both are right, since every entry holds for itself.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypedDict

from components import storage
from components.errors import UserError
from components.stamp import Stamp

HASHING_THREADS = 4
SETTLED_SECONDS = 2.0  # a file changed later than this before it was hashed may change again within its clock tick: not remembered
KEPT_LOOKS = 8  # ways of reading (size, columns ...) whose scans are kept, those used last
FORMAT_VERSION = 1


class _Content(TypedDict):
    format_version: int
    hashes: dict[str, list[Any]]  # path -> bytes, tag and SHA-256
    scans: dict[str, dict[str, list[Any]]]  # way of reading -> path -> SHA-256 of what was scanned, what was found


class KnownFiles:
    """What is known of the files of one source, by path; kept at `place`, a URL, or for the life of this object only."""

    def __init__(self, place: str | None = None) -> None:
        self._place = place
        self._content = _read(place)
        self._present: set[str] = set()
        self._changed = False

    def hashes(self, stamps: Mapping[str, Stamp | None], read: Callable[[str], str]) -> dict[str, str]:
        """The SHA-256 of each file; `read(path)` computes it where the stamp is none, or not the one that was seen before."""
        self._present |= stamps.keys()
        unknown = [path for path, stamp in stamps.items() if not self._knows(path, stamp)]
        with ThreadPoolExecutor(HASHING_THREADS) as threads:
            found = dict(zip(unknown, threads.map(lambda path: self._hash(path, stamps[path], read), unknown), strict=True))
        return {path: found[path] if path in found else self._content["hashes"][path][2] for path in stamps}

    def _knows(self, path: str, stamp: Stamp | None) -> bool:
        known = self._content["hashes"].get(path)
        return known is not None and stamp is not None and known[:2] == [stamp.bytes, stamp.tag]

    def _hash(self, path: str, stamp: Stamp | None, read: Callable[[str], str]) -> str:
        started = time.time()
        sha256 = read(path)
        if stamp is not None and started - stamp.changed > SETTLED_SECONDS:
            self._content["hashes"][path] = [stamp.bytes, stamp.tag, sha256]
            self._changed = True
        return sha256

    def scan(self, look: str, path: str, content: Iterable[str], scan: Callable[[], Any]) -> Any:
        """What `scan()` finds, a JSON value, in the group of files that `path` names and whose SHA-256 are `content`.

        `look` is the fingerprint of all else that decides what is found. Nothing is remembered of a scan that raises.
        """
        scans = self._content["scans"]
        if next(reversed(scans), None) != look:
            scans[look] = scans.pop(look, {})  # the last one now
        joined = " ".join(content)
        known = scans[look].get(path)
        if known is None or known[0] != joined:
            known = scans[look][path] = [joined, scan()]
            self._changed = True
        return known[1]

    def save(self) -> None:
        """Leaves what is known to later looks. Where that cannot be written, they read the files again."""
        if self._place is None or not (self._changed or self._content["hashes"].keys() - self._present):
            return
        hashes = _only(self._present, self._content["hashes"])
        scans = {look: _only(self._present, found) for look, found in list(self._content["scans"].items())[-KEPT_LOOKS:]}
        try:
            _write(self._place, _Content(format_version=FORMAT_VERSION, hashes=hashes, scans=scans))
        except UserError:
            return
        self._changed = False


def _only(paths: set[str], entries: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {path: entry for path, entry in entries.items() if path in paths}


def _read(place: str | None) -> _Content:
    """What was kept, behind its own checksum; a reader cannot be misled by bytes that were altered."""
    empty = _Content(format_version=FORMAT_VERSION, hashes={}, scans={})
    try:
        checksum, _, text = storage.read_bytes(place).partition(b"\n") if place is not None else (b"", b"", b"")
    except UserError:  # mostly because there is none yet
        return empty
    if checksum.decode(errors="replace") != hashlib.sha256(text).hexdigest():
        return empty
    content: _Content = json.loads(text)
    return content if content["format_version"] == FORMAT_VERSION else empty


def _write(place: str, content: _Content) -> None:
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    storage.write_bytes(place, hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
