"""What a pipeline reads from outside, told apart by content: the same files anywhere give the same fingerprint.

What was found in a source is kept in the store, so that a second run reads only the files that are new or changed.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import Any, cast

from components import storage
from components.config import fingerprint
from components.data.index import INDEX, read_index
from components.data.sources.known import KnownFiles
from components.errors import UserError
from components.stamp import Stamp
from pipelines.store import COMMIT, Store, open_artifact


@dataclass(frozen=True)
class Source:
    """Where it lies and what it holds."""

    url: str
    fingerprint: str
    files: KnownFiles = field(default_factory=KnownFiles, compare=False, repr=False)  # what the look at it found, for who reads it next


class SourceReader:
    """Fingerprints sources, with the help of what earlier runs left in the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._looked_at: list[KnownFiles] = []

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
        root, stamps = _look_at(url)
        if not stamps:
            raise UserError(f"{origin}: folder {url} holds no files")
        files = KnownFiles(self._store.place("cache", f"source-{fingerprint(url)}.json"))
        self._looked_at.append(files)
        return Source(url, fingerprint(files.hashes(stamps, lambda path: _sha256(storage.join(root, path)))), files)

    def remember(self) -> None:
        """Leaves what was found to later runs. A read-only store still works; the sources are only read again next time."""
        for files in self._looked_at:
            files.save()


def _look_at(url: str) -> tuple[str, dict[str, Stamp]]:
    """The folder of the files and the stamp of each by path below it; hidden files and folders do not count."""
    from components.families.model_folder import COMMIT as MODEL_COMMIT  # which needs torch
    from components.families.model_folder import SAMPLER

    only = storage.stamp(url)
    if only is not None:
        root, _, name = url.rpartition("/")
        return root or "/", {name: only}
    stamps = {path: stamp for path, stamp in storage.stamps(url).items() if not any(part.startswith(".") for part in path.split("/"))}
    if {MODEL_COMMIT, SAMPLER} <= stamps.keys():  # how a model draws unless told otherwise is no part of it
        del stamps[SAMPLER]
    return url, stamps


def _sha256(url: str) -> str:
    with storage.open_read(url) as file:
        return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()
