"""Rows of sharded children on storage: every worker writes those that it owns into a file of its own, and a manifest says which they are.

So any number of workers can read them again, each only the files that its own rows lie in.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from components import storage
from components.errors import UserError
from components.training.communication import Communication


@dataclass(frozen=True)
class RowSlice:
    """Rows [first, last) of a sharded child: name -> (last - first, ...)."""

    first: int
    last: int
    tensors: dict[str, Tensor]


Rows = dict[str, RowSlice]  # by child
Spans = Mapping[str, tuple[int, int]]  # child -> [first, last)
RowFiles = dict[str, dict[str, list[int]]]  # file -> child -> [first, last], as a manifest has it


def on_host(rows: Rows) -> Rows:
    """Copies in host memory."""
    return {
        child: RowSlice(part.first, part.last, {name: t.detach().to("cpu", copy=True).contiguous() for name, t in part.tensors.items()})
        for child, part in rows.items()
    }


def upload_rows(scratch: Path, url: str, rows: Rows, writers: Communication) -> tuple[RowFiles, dict[str, str]]:
    """Puts this worker's rows into the folder at `url`, when rank 0 has come so far as to have cleared it.

    Returns all workers' files, once they are there: for the manifest, and their SHA-256 by name. No rows, no file.
    """
    writers.barrier()
    mine: dict[str, tuple[dict[str, list[int]], str]] = {}
    if rows:
        name = f"rows-{writers.rank:05d}-of-{writers.size:05d}.safetensors"
        local = scratch / name
        safetensors.torch.save_file({f"{child}/{key}": t for child, part in rows.items() for key, t in part.tensors.items()}, local)
        storage.upload(str(local), storage.join(url, name))
        mine[name] = {child: [part.first, part.last] for child, part in rows.items()}, storage.sha256_file(str(local))
        local.unlink()
    every = {name: entry for files in writers.gather_objects(mine) for name, entry in files.items()}
    return {name: spans for name, (spans, _) in every.items()}, {name: sum_ for name, (_, sum_) in every.items()}


def read_rows(url: str, files: RowFiles, sums: Mapping[str, str], spans: Spans) -> Rows:
    """The rows of `spans` from the files of the folder at `url`, each checked against its SHA-256 in `sums`.

    Raises UserError for a file that was altered, and when rows are missing.
    """
    parts: dict[str, dict[str, list[Tensor]]] = {child: {} for child in spans}
    for file, held in sorted(files.items(), key=lambda entry: list(entry[1].values())):
        if not any(_wanted(held[child], span) for child, span in spans.items()):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            local = str(Path(scratch) / file)
            storage.download(storage.join(url, file), local)
            require_sum(storage.join(url, file), storage.sha256_file(local), sums[file])
            with safe_open(local, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118  # not a dict
                    child, _, name = key.partition("/")
                    if child in spans and _wanted(held[child], spans[child]):
                        low, high = (min(max(end, held[child][0]), held[child][1]) - held[child][0] for end in spans[child])
                        parts[child].setdefault(name, []).append(opened.get_slice(key)[low:high])
    rows = {child: RowSlice(*spans[child], {name: torch.cat(found) for name, found in parts[child].items()}) for child in spans}
    for child, part in rows.items():
        for name, tensor in part.tensors.items():
            if len(tensor) != part.last - part.first:
                raise UserError(f"{url}: {child}.{name} has {len(tensor)} of rows {part.first} to {part.last}; it belongs to another model")
    return rows


def require_sum(place: str, found: str, expected: str) -> None:
    """Raises UserError when the file at `place` is not the one that was written."""
    if found != expected:
        raise UserError(f"{place} was altered: sha256 {found}, expected {expected}; make it again or restore the file")


def _wanted(held: list[int], span: tuple[int, int]) -> bool:
    """Whether a file has some of the rows; for a worker that owns none any file will do, to learn the shapes."""
    return span[0] == span[1] or (held[0] < span[1] and span[0] < held[1])
