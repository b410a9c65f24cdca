"""The store: what stages make, as folders named by what they were made from, published by one atomic step, lineage inside.

    store/artifacts/<stage>-<fingerprint>/   artifact.json names and checksums every file; without it the folder does not exist
    store/runs/<stage>-<fingerprint>/        the work folder of a stage in the making (checkpoints); outlives a killed process
    store/locks/                             who is making which artifact now (`components/lease.py`)
    store/staging/                           a local store only: drafts that are renamed into artifacts/
    store/cache/                             what may be thrown away at any time

A local store and an s3:// one hold the same. There a draft lies where the artifact will, and `artifact.json`, written last, publishes it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError, computed_field

from components import storage
from components.config import Config, fingerprint
from components.data.index import INDEX, read_index
from components.errors import UserError, did_you_mean
from components.lease import LEASE_SECONDS, Lease, LeaseLost, clear, held, is_held
from components.redaction import redacted

COMMIT = "artifact.json"
FORMAT_VERSION = 1
LOOKING_THREADS = 16
MENDABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}  # by whoever owns the disk


class Recipe(Config):
    """All that decides what an artifact holds. Where it is made, and by how many workers, is no part of it."""

    stage: str
    version: int
    config: dict[str, Any]
    inputs: dict[str, str]  # argument of the stage -> fingerprint

    @computed_field  # type: ignore[prop-decorator]  # in artifact.json too, for those who read it
    @property
    def fingerprint(self) -> str:
        return fingerprint({"stage": self.stage, "version": self.version, "config": self.config, "inputs": self.inputs})

    @property
    def name(self) -> str:
        return f"{self.stage}-{self.fingerprint}"


class FileEntry(Config):
    bytes: int
    sha256: str


class Manifest(Recipe):
    """What `artifact.json` holds: the recipe, where its sources lay, every file with its checksum, and how it came about."""

    format_version: Literal[1] = 1
    sources: dict[str, str]  # those of the inputs that are no artifacts -> where they lay
    files: dict[str, FileEntry]
    seconds: float
    made_at: str
    command: str


@dataclass(frozen=True)
class Artifact:
    """A published artifact: a folder or s3 prefix and its manifest."""

    url: str
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    def path(self, *parts: str) -> str:
        """The URL of a file or folder of the artifact; `assert` guards against names that it does not hold."""
        inside = "/".join(parts)
        assert any(file == inside or file.startswith(f"{inside}/") for file in self.manifest.files), f"{self.name} holds no {inside}"
        return storage.join(self.url, *parts)

    def verify(self) -> None:
        """Reads every byte; raises UserError naming the first file that is missing or altered, and both checksums."""
        for file, expected in self.manifest.files.items():
            place = storage.join(self.url, file)
            found = describe(place)
            if found != expected:
                raise UserError(
                    f"{place} was altered: {found.bytes} bytes with sha256 {found.sha256}, expected {expected.bytes} bytes "
                    f"with {expected.sha256}; remove {self.url} to make it again"
                )


@dataclass(frozen=True)
class Draft:
    """An artifact in the making. Whatever lies below `out` when it is published becomes the artifact."""

    folder: Path  # on this machine; on a remote store its files are uploaded at the end
    out: str  # the same place for workers on any machine: where the artifact will lie on a remote store, `folder` on a local one
    work: str  # survives a kill; removed once the artifact is published
    lease: Lease  # on making it; checked before it is published

    def adopt(self, url: str, name: str) -> None:
        """Copies the file or folder at `url` into the draft as `name`; nothing at `url` is moved, so a kill loses nothing."""
        if storage.size(url) is not None:
            storage.download(url, str(self.folder / name))
            return
        for file in storage.list_files(url):
            storage.download(storage.join(url, file), str(self.folder / name / file))


class Store:
    """The artifacts below `url`, a local folder or an s3:// prefix. Nothing is created before the first draft.

    `lease_seconds` is for how long a killed process keeps others from making the same artifact on s3://.
    `tracking` is where MLflow tracks and registers the models (`pipelines/tracking_server.py`).
    """

    def __init__(self, url: str, lease_seconds: float = LEASE_SECONDS, tracking: str | None = None) -> None:
        self.url = url if storage.is_remote(url) else os.path.abspath(url)
        self.tracking = tracking
        self._local = not storage.is_remote(url)
        self._lease_seconds = lease_seconds

    def place(self, *parts: str) -> str:
        return storage.join(self.url, *parts)

    def find(self, recipe: Recipe) -> Artifact | None:
        """The artifact made by `recipe`, if it is there. Raises UserError when files of it are missing or cut short."""
        url = self.place("artifacts", recipe.name)
        if not storage.exists(storage.join(url, COMMIT)):
            return None
        artifact = open_artifact(url)
        if self._local:
            _check_sizes(artifact)
        return artifact

    def artifacts(self) -> list[Artifact]:
        """All published artifacts, oldest first."""
        urls = [self.place("artifacts", name) for name in storage.list_names(self.place("artifacts"))]
        found = [open_artifact(url) for url in urls if storage.exists(storage.join(url, COMMIT))]
        return sorted(found, key=lambda artifact: artifact.manifest.made_at)

    def newest(self, stage: str, count: int) -> list[str]:
        """The places of the artifacts of a stage that were published last, newest first by the storage's clock; none is opened."""
        names = storage.list_names(self.place("artifacts"))
        urls = [self.place("artifacts", name) for name in names if re.fullmatch(rf"{re.escape(stage)}-[0-9a-f]{{16}}", name)]
        with ThreadPoolExecutor(LOOKING_THREADS) as threads:
            stamps = list(threads.map(lambda url: storage.stamp(storage.join(url, COMMIT)), urls))
        published = sorted((stamp.changed, url) for stamp, url in zip(stamps, urls, strict=True) if stamp is not None)
        return [url for _, url in reversed(published[-count:])]

    def resolve(self, reference: str) -> Artifact:
        """The artifact that `reference` means: its folder, its name, the start of its name, or a stage (the newest of it).

        `models:/NAME@champion` and `models:/NAME/VERSION` are those of the registered model NAME. Raises UserError, with the nearest name,
        when there is none, and when a start is not unique.
        """
        if reference.startswith("models:/"):
            from pipelines.registry import Registry  # which needs MLflow

            return open_artifact(Registry(None, self).find(reference).artifact)
        if storage.exists(storage.join(reference, COMMIT)):
            return open_artifact(reference)
        artifacts = self.artifacts()
        of_stage = [artifact for artifact in artifacts if artifact.manifest.stage == reference]
        if of_stage:
            return of_stage[-1]
        begins = [artifact for artifact in artifacts if artifact.name.startswith(reference)]
        if len(begins) > 1:
            raise UserError(f"{reference!r} is the start of {len(begins)} artifacts in {self.url}: {', '.join(a.name for a in begins)}")
        if not begins:
            known = {artifact.name for artifact in artifacts} | {artifact.manifest.stage for artifact in artifacts}
            raise UserError(f"no artifact {reference!r} in store {self.url}; {did_you_mean(reference, known)}")
        return begins[0]

    @contextmanager
    def drafting(self, recipe: Recipe, waiting: Callable[[str], None]) -> Iterator[Draft]:
        """A fresh draft of `recipe`, removed again unless it is published. One process at a time, of all machines: others wait.

        The caller looks for the artifact again once inside, since the process it waited for may have made it. After a mistake of the user
        the work folder goes too, unless it holds checkpoints. Raises LeaseLost when another process took over, whose it all is then.
        """
        work = self.place("runs", recipe.name)
        drafted = self._local_draft if self._local else self._remote_draft
        try:
            with self._explained(), self._leased(recipe, waiting) as lease, drafted(recipe) as (folder, out):
                yield Draft(folder, out, work, lease)
        except LeaseLost:
            raise
        except UserError:
            if not storage.list_names(storage.join(work, "checkpoints")):
                storage.remove(work)
            raise

    @contextmanager
    def _local_draft(self, recipe: Recipe) -> Iterator[tuple[Path, str]]:
        folder = Path(self.place("staging", recipe.name))
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder, str(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _remote_draft(self, recipe: Recipe) -> Iterator[tuple[Path, str]]:
        out = self.place("artifacts", recipe.name)
        if not storage.exists(storage.join(out, COMMIT)):
            storage.remove(out)
            storage.abandon_uploads(out)
        with tempfile.TemporaryDirectory(prefix="raymill-") as scratch:
            yield Path(scratch), out

    def publish(self, draft: Draft, recipe: Recipe, sources: dict[str, str], seconds: float, command: str) -> Artifact:
        """Makes the draft visible as an artifact by one atomic step, then removes its work folder. Raises LeaseLost if it is another's."""
        url = self.place("artifacts", recipe.name)
        told, sizes = _told_by_index(draft.out), storage.file_sizes(draft.out)
        files = {
            file: told[file] if file in told and told[file].bytes == size else describe(storage.join(draft.out, file))
            for file, size in sizes.items()
        }
        if not self._local:
            local = {str(path.relative_to(draft.folder)): path for path in sorted(draft.folder.rglob("*")) if path.is_file()}
            files |= {file: describe(str(path)) for file, path in local.items()}
        manifest = Manifest(
            **recipe.model_dump(exclude={"fingerprint"}),
            sources={name: redacted(place) for name, place in sources.items()},
            files=dict(sorted(files.items())),
            seconds=round(seconds, 3),
            made_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            command=redacted(command),
        )
        storage.write_json(str(draft.folder / COMMIT), manifest.to_json())
        if not self._local:
            storage.upload_folder(str(draft.folder), url, last=COMMIT, before_last=draft.lease.check)
        else:
            _sync(draft.folder)
            shutil.rmtree(url, ignore_errors=True)  # at most the remains of an artifact whose manifest was removed by hand
            os.makedirs(os.path.dirname(url), exist_ok=True)
            os.rename(draft.folder, url)
            _sync_folder(Path(url).parent)
        storage.remove(draft.work)
        return Artifact(url, manifest)

    def discard(self, recipe: Recipe) -> None:
        """Removes the work folder of `recipe`, unless a process is at it."""
        if not is_held(self._lock(recipe.name)):
            storage.remove(self.place("runs", recipe.name))

    def remove(self, artifact: Artifact) -> None:
        """Removes an artifact of this store in one atomic step; killed, it leaves what `sweep` or the next maker clears away."""
        with held(self._lock(artifact.name), lambda owner: None, seconds=self._lease_seconds):
            if not self._local:
                storage.remove(storage.join(artifact.url, COMMIT))
                storage.remove(artifact.url)
                return
            staged = self.place("staging", artifact.name)
            storage.remove(staged)
            os.makedirs(os.path.dirname(staged), exist_ok=True)
            os.rename(artifact.url, staged)
            storage.remove(staged)

    def sweep(self) -> None:
        """Removes what killed processes left and nobody needs: drafts and locks without a maker, work folders of published artifacts."""
        for name in storage.list_names(self.place("runs")):
            if storage.exists(self.place("artifacts", name, COMMIT)):
                storage.remove(self.place("runs", name))
        if self._local:
            for name in storage.list_names(self.place("staging")):
                if not is_held(self._lock(name)):
                    storage.remove(self.place("staging", name))
        else:
            for name in storage.list_names(self.place("locks")):
                clear(self.place("locks", name))

    def tidy(self) -> None:
        """Removes the store's own folders where they are empty, so that a failed first run leaves nothing behind."""
        for folder in ("staging", "locks", "runs", "cache", "artifacts", "") if self._local else ():
            try:
                os.rmdir(self.place(folder) if folder else self.url)
            except OSError:  # missing or in use
                continue

    def _leased(self, recipe: Recipe, waiting: Callable[[str], None]) -> AbstractContextManager[Lease]:
        return held(self._lock(recipe.name), waiting, seconds=self._lease_seconds)

    def _lock(self, name: str) -> str:
        return self.place("locks", f"{name}.lock")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            elsewhere = error.filename is not None and not str(error.filename).startswith(self.url)
            if elsewhere or error.errno not in MENDABLE:
                raise
            raise UserError(f"store {self.url} cannot be written: {error.strerror or error}; choose another with --store") from error


def open_artifact(url: str) -> Artifact:
    """The artifact in the folder or prefix `url`; raises UserError when there is none or it is not one that this version reads."""
    place = storage.join(url, COMMIT)
    values = storage.read_json(place)
    found = values.get("format_version") if isinstance(values, dict) else None
    if found != FORMAT_VERSION:
        raise UserError(f"{place} has format version {found!r}, this Raymill reads {FORMAT_VERSION}; remove {url} to make it again")
    named = values.pop("fingerprint", None)
    try:
        manifest = Manifest.model_validate(values)
    except ValidationError:
        raise UserError(f"{place} is not the manifest of an artifact; remove {url} to make it again") from None
    if named != manifest.fingerprint:
        raise UserError(
            f"{place} was altered: it names fingerprint {named}, and describes {manifest.fingerprint}; remove {url} to make it again"
        )
    return Artifact(url, manifest)


def _check_sizes(artifact: Artifact) -> None:
    for file, expected in artifact.manifest.files.items():
        place = Path(artifact.url) / file
        found = place.stat().st_size if place.is_file() else None
        if found != expected.bytes:
            state = "is missing" if found is None else f"has {found} bytes, expected {expected.bytes}"
            raise UserError(f"{place} {state}; remove {artifact.url} to make it again")


def _told_by_index(url: str) -> dict[str, FileEntry]:
    """What the index of a data set says of its shards, so that they need not be read; {} when there is none at `url`."""
    try:
        index = read_index(url) if storage.exists(storage.join(url, INDEX)) else None
    except UserError:  # a file of that name which is no index
        index = None
    entries = (entry for shards in index.splits.values() for entry in shards) if index is not None else ()
    return {entry.file: FileEntry(bytes=entry.bytes, sha256=entry.sha256) for entry in entries}


def describe(url: str) -> FileEntry:
    """Bytes and SHA-256 of a file, read through once."""
    digest, length = hashlib.sha256(), 0
    with storage.open_read(url) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
            length += len(block)
    return FileEntry(bytes=length, sha256=digest.hexdigest())


def _sync(folder: Path) -> None:
    """Puts every file and folder below `folder` on the disk, so that a power cut after the rename finds them whole.

    A file that has another name too was carried over from an artifact, whose publication has done that.
    """
    for path in folder.rglob("*"):
        if path.is_dir() or path.stat().st_nlink == 1:
            _sync_folder(path)
    _sync_folder(folder)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
