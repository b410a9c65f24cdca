"""Looks at a source and plans its shards: which rows go to which split and shard, and what columns and classes there are.

Adding files to a source changes only the specifications of the shards that they fall in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from components.config import fingerprint
from components.data.arrow import LABEL
from components.data.columns import Column
from components.data.prepare_config import PrepareConfig
from components.data.selection import SPACE, Keep, cut_names, first_words, keep_of, words_of
from components.data.shards import Part, ShardSpec
from components.data.sources import PICTURES, READERS, find_kind
from components.data.sources.folder import SourceFile, SourceFolder
from components.data.sources.known import KnownFiles
from components.data.sources.pictures import places_of
from components.data.sources.reader import IMAGE, SCAN_VERSION, Group, Scan
from components.errors import UserError

DEFAULT_HOLDOUT = 0.1
_SCANS = TypeAdapter(dict[str, Scan])
_SOME_KINDS_ONLY = ("columns", "class_names")  # options that not every kind of source knows


@dataclass(frozen=True)
class Plan:
    """The shards to be, by split, in the order of the index; and the rest of the index."""

    shards: dict[str, tuple[ShardSpec, ...]]
    columns: dict[str, Column]
    class_names: tuple[str, ...]
    made_by: dict[str, Any]


@dataclass(frozen=True)
class _Candidate:
    """Rows of one split of one group, each with its word, from which splits and limits choose."""

    group: Group
    words: np.ndarray  # (rows,) uint64
    label: int | None = None  # where folders tell it


@dataclass(frozen=True)
class _Found:
    """What a source holds."""

    candidates: dict[str, list[_Candidate]]  # by the source's own splits
    columns: dict[str, Column]
    class_names: tuple[str, ...]


def plan(url: str, config: PrepareConfig, known: KnownFiles | None = None) -> Plan:
    """The shards of the data set that `config` makes of the source at `url`; files that are `known` are not read.

    Raises UserError naming the file that is damaged or does not fit the others, and for options without effect on this source.
    """
    source = SourceFolder(url, config.checksums)
    kind, paths = find_kind(source)
    for option in _SOME_KINDS_ONLY:
        if getattr(config, option) and option not in READERS[kind].options:
            raise UserError(f"option {option} has no effect on source {url}, which holds {kind} files; leave it out")
    known = known or KnownFiles()
    files = source.hashed(paths, known)
    scanner = _Scanner(kind, config, known)
    found = _look_at_pictures(url, files, config, scanner) if kind == PICTURES else _look_at_tables(url, files, config, scanner)
    if config.picture.changes and not _is_picture(found.columns.get(IMAGE)):
        raise UserError(f"options size and channels have no effect on source {url}, which holds no pictures; leave them out")
    shards = {}
    for split, (origin, keep) in _choose(url, found.candidates, config).items():
        shards[split] = tuple(_specs(url, kind, origin, found, keep, config))
        if not shards[split]:
            raise UserError(f"source {url}: split {split!r} would have no rows; change holdout or limit")
    made_by = {"tool": "raymill prepare", "kind": kind, "config": config.to_json()}
    content = fingerprint([[file.path, file.sha256] for file in files])
    return Plan(shards, found.columns, found.class_names, {**made_by, "source": content})


class _Scanner:
    """Scans groups of files of one kind, each content once."""

    def __init__(self, kind: str, config: PrepareConfig, known: KnownFiles) -> None:
        self.kind, self._config, self._known = kind, config, known
        self._look = fingerprint([SCAN_VERSION, kind, config.picture.to_json(), config.columns])

    def groups(self, files: list[SourceFile]) -> list[Group]:
        return READERS[self.kind].groups(files)

    def scan(self, group: Group) -> dict[str, Scan]:
        """What the group holds, by split; raises UserError as the reader does."""

        def look() -> Any:
            return _SCANS.dump_python(READERS[self.kind].scan(group, self._config), mode="json")

        found = self._known.scan(self._look, group[0].path, [file.sha256 for file in group], look)
        return _SCANS.validate_python(found)


def _look_at_pictures(url: str, files: list[SourceFile], config: PrepareConfig, scanner: _Scanner) -> _Found:
    places = places_of([file.path for file in files], url)
    names = tuple(sorted({place.class_name for place in places if place.class_name is not None}))
    labels: Mapping[str | None, int] = {name: label for label, name in enumerate(names)}
    candidates: dict[str, list[_Candidate]] = {}
    words = first_words(config.seed, [file.path for file in files])
    for row, (file, place) in enumerate(zip(files, places, strict=True)):
        candidates.setdefault(place.split, []).append(_Candidate((file,), words[row : row + 1], labels.get(place.class_name)))
    first = scanner.scan((files[0],))["train"]
    return _Found(candidates, first.columns | ({LABEL: Column(dtype="int64")} if names else {}), names)


def _look_at_tables(url: str, files: list[SourceFile], config: PrepareConfig, scanner: _Scanner) -> _Found:
    scans: list[tuple[Group, str, Scan]] = [
        (group, split, scan) for group in scanner.groups(files) for split, scan in scanner.scan(group).items() if scan.rows
    ]
    if not scans:
        raise UserError(f"source {url} has no rows in its {scanner.kind} files, the first is {files[0].place}")
    candidates: dict[str, list[_Candidate]] = {}
    columns = scans[0][2].columns
    for group, split, scan in scans:
        if scan.columns != columns:
            raise UserError(f"{group[0].place} has {_say(scan.columns)}, {scans[0][0][0].place} has {_say(columns)}; they must agree")
        words = words_of(config.seed, group[0].path, np.arange(scan.rows))
        candidates.setdefault(split, []).append(_Candidate(group, words))
    return _Found(candidates, columns, _class_names(scans, columns, config))


def _class_names(scans: list[tuple[Group, str, Scan]], columns: Mapping[str, Column], config: PrepareConfig) -> tuple[str, ...]:
    group, _, scan = max(scans, key=lambda found: found[2].largest_label)
    names = config.class_names
    if LABEL not in columns:
        if names:
            raise UserError(f"option class_names has no effect: {group[0].place} has no column {LABEL!r}; leave it out")
        return ()
    if names and scan.largest_label >= len(names):
        raise UserError(f"{group[-1].place} has the label {scan.largest_label}, but class_names has only {len(names)} names")
    return names or tuple(str(label) for label in range(scan.largest_label + 1))


def _choose(url: str, candidates: dict[str, list[_Candidate]], config: PrepareConfig) -> dict[str, tuple[str, Keep]]:
    """For each split of the data set, the split of the source that its rows come from and which of them it keeps."""
    if "train" not in candidates:
        raise UserError(f"source {url} has only the splits {sorted(candidates)}, expected one for training; rename a file or folder")
    spans = {split: (split, 0, SPACE) for split in candidates}
    if "test" not in candidates:
        cut = _holdout_cut(candidates["train"], config.holdout or DEFAULT_HOLDOUT)
        spans |= {"train": ("train", cut, SPACE), "test": ("train", 0, cut)}
    elif config.holdout is not None:
        raise UserError(f"option holdout={config.holdout} has no effect on source {url}, which has a test split of its own; leave it out")
    words = {split: [candidate.words for candidate in found] for split, found in candidates.items()}
    return {split: (origin, keep_of(words[origin], low, high, config.limit, config.seed)) for split, (origin, low, high) in spans.items()}


def _holdout_cut(candidates: list[_Candidate], share: float) -> int:
    """Rows with words below it are held out: the share of them, but at least one of several."""
    words = np.concatenate([candidate.words for candidate in candidates])
    return max(int(share * SPACE), int(words.min()) + 1 if len(words) > 1 else 0)


def _specs(url: str, kind: str, origin: str, found: _Found, keep: Keep, config: PrepareConfig) -> Iterator[ShardSpec]:
    row_bytes = sum(np.dtype(column.dtype).itemsize * int(np.prod(column.shape)) for column in found.columns.values())
    most = max(1, min(config.rows_per_shard, config.shard_mib * 2**20 // max(1, row_bytes)))
    cut = _cut_pictures if kind == PICTURES else _cut_tables
    for parts in cut(found.candidates[origin], keep, most):
        yield ShardSpec(source=url, kind=kind, split=origin, parts=parts, columns=found.columns, config=config)


def _cut_pictures(candidates: list[_Candidate], keep: Keep, most: int) -> Iterator[tuple[Part, ...]]:
    mask = keep.mask(np.concatenate([candidate.words for candidate in candidates]))
    kept = [candidate for candidate, taken in zip(candidates, mask.tolist(), strict=True) if taken]
    for run in cut_names([candidate.group[0].path for candidate in kept], most):
        yield tuple(Part(files=_names(candidate.group), label=candidate.label) for candidate in kept[run])


def _cut_tables(candidates: list[_Candidate], keep: Keep, most: int) -> Iterator[tuple[Part, ...]]:
    for candidate in candidates:
        for first in range(0, len(candidate.words), most):
            words = candidate.words[first : first + most]
            if keep.mask(words).any():
                yield (Part(files=_names(candidate.group), first=first, count=len(words), keep=None if keep.all else keep),)


def _names(group: Group) -> tuple[tuple[str, str], ...]:
    return tuple((file.path, file.sha256) for file in group)


def _is_picture(column: Column | None) -> bool:
    return column is not None and column.dtype == "uint8" and len(column.shape) == 3 and column.shape[0] in (1, 3)


def _say(columns: Mapping[str, Column]) -> str:
    return "columns " + ", ".join(f"{name} {column.dtype}{list(column.shape) or ''}" for name, column in sorted(columns.items()))
