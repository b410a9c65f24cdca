"""What a pipeline reads from outside, told apart by content: the same files anywhere give the same fingerprint.

Hashes of local files are kept in the store by (path, size, time of change), so that a second run does not read the data again.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components import storage
from components.config import fingerprint
from components.data.index import INDEX, read_index
from components.errors import UserError
from pipelines.store import COMMIT, Store, describe, open_artifact

SETTLED_SECONDS = 2.0  # a file changed later than this before it was hashed may change again within its clock tick: not remembered


@dataclass(frozen=True)
class Source:
    """Where it lies and what it holds."""

    url: str
    fingerprint: str


class SourceReader:
    """Fingerprints sources, with the help of the hashes that earlier runs left in the store."""

    def __init__(self, store: Store) -> None:
        self._place = store.place("cache", "sources.json")
        self._known = self._seen = _remembered(self._place)

    def read(self, url: str, origin: str) -> Source:
        """The source at `url`, a file, folder, data set or artifact; `origin` is the option that gave it.

        An artifact stands for itself and a data set for its index, which has the checksum of every shard; else the content of every
        file counts, and its path below `url`. Raises UserError when there is nothing.
        """
        if url.startswith(("http://", "https://")):
            return Source(url, fingerprint("what its checksums say"))  # the config has them, and nothing is read without
        if not storage.is_remote(url):
            url = os.path.abspath(os.path.expanduser(url))
        if not storage.exists(url) and not storage.list_names(url):
            raise UserError(f"{origin}: {url} does not exist; give a file or folder")
        if storage.exists(storage.join(url, COMMIT)):
            return Source(url, open_artifact(url).fingerprint)
        if storage.exists(storage.join(url, INDEX)):
            return Source(url, read_index(url).fingerprint)
        hashes = _remote_hashes(url) if storage.is_remote(url) else self._local_hashes(Path(url))
        if not hashes:
            raise UserError(f"{origin}: folder {url} holds no files")
        return Source(url, fingerprint(hashes))

    def remember(self) -> None:
        """Leaves the hashes to later runs. A read-only store still works; it only reads the source again next time."""
        if self._seen != self._known:
            try:
                storage.write_json(self._place, self._seen)
            except UserError:
                return

    def _local_hashes(self, path: Path) -> dict[str, str]:
        """Path below `path` -> SHA-256 of each file; hidden files and folders do not count."""
        files = (
            [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file() and not _hidden(file.relative_to(path)))
        )
        hashes, self._seen = {}, dict(self._seen)
        for file in files:
            status, started = file.stat(), time.time()
            stamp = [status.st_size, status.st_mtime_ns]
            entry = self._seen.get(str(file))
            digest = entry[2] if entry is not None and entry[:2] == stamp else storage.sha256_file(str(file))
            if started - status.st_mtime > SETTLED_SECONDS:
                self._seen[str(file)] = [*stamp, digest]
            hashes[file.name if file == path else str(file.relative_to(path))] = digest
        return hashes


def _remembered(place: str) -> dict[str, Any]:
    try:
        return storage.read_json(place) if storage.exists(place) else {}
    except UserError:  # a damaged cache is no cache
        return {}


def _remote_hashes(url: str) -> dict[str, str]:
    if storage.size(url) is not None:
        return {url.rsplit("/", 1)[-1]: describe(url).sha256}
    names = [name for name in storage.list_files(url) if not _hidden(Path(name))]
    return {name: describe(storage.join(url, name)).sha256 for name in names}


def _hidden(below: Path) -> bool:
    return any(part.startswith(".") for part in below.parts)
