"""Checkpoints: safetensors and JSON, written by a background thread, visible only when whole, the newest and the best kept.

A folder `step_00000100/` holds `model.safetensors`, `optimizer.safetensors`, `average.safetensors` and, written last, `checkpoint.json`
with the checksum of each. Replicated state is written by rank 0 alone; rows of sharded children by the worker that owns them, so that no
worker ever holds them all, and read again by any number of workers.
"""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from components import storage
from components.errors import UserError
from components.training.communication import Communication
from components.training.row_files import Rows, Spans, on_host, read_rows, upload_rows

COMMIT = "checkpoint.json"
FORMAT_VERSION = 1

State = dict[str, dict[str, Tensor]]  # file stem -> tensors by name


def checkpoint_name(step: int) -> str:
    """The folder of a step's checkpoint, inside the run's `checkpoints/`."""
    return f"step_{step:08d}"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint read back: the step that comes next, its state and the held-out score it was kept for."""

    step: int
    family: str
    state: State
    rows: Rows


class CheckpointFolder:
    """The checkpoints of one run below `url`."""

    def __init__(
        self, url: str, keep_last: int = 1, keep_best: int = 0, best_is: str = "min", writers: Communication | None = None
    ) -> None:
        """`writers` are the workers that save together, as a group of their writing threads; without it this process saves alone."""
        self.url = url
        self._writers = writers or Communication()
        self._keep_last, self._keep_best, self._best_is = keep_last, keep_best, best_is
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self.committed: dict[str, float] = {}  # step and Unix time of the last checkpoint that this process completed

    def save(self, step: int, family: str, state: State, score: float | None = None, rows: Rows | None = None) -> None:
        """Copies the state to the host and returns; the write goes on behind. Waits for (and raises from) the write before it.

        With `rows` every worker saves: those are its own.
        """
        self.wait()
        copies = {stem: {name: t.detach().to("cpu", copy=True).contiguous() for name, t in part.items()} for stem, part in state.items()}
        self._pending = self._writer.submit(self._write, step, family, copies, score, on_host(rows or {}))

    def wait(self) -> None:
        """Returns when the last save is on storage; raises what went wrong with it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._writer.shutdown()

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        names = [name for name in storage.list_names(self.url) if name.startswith("step_")]
        return sorted(int(name.removeprefix("step_")) for name in names if storage.exists(storage.join(self.url, name, COMMIT)))

    def place(self, step: int) -> str:
        """The folder of a step's checkpoint, whether it is there or not."""
        return storage.join(self.url, checkpoint_name(step))

    def latest(self, spans: Spans | None = None) -> Checkpoint | None:
        steps = self.steps()
        return self.read(steps[-1], spans) if steps else None

    def best(self, spans: Spans | None = None) -> Checkpoint | None:
        """The checkpoint with the best held-out score; the earlier one of equals."""
        ranked = self._ranked(self._manifests())
        return self.read(ranked[0], spans) if ranked else None

    def read(self, step: int, spans: Spans | None = None) -> Checkpoint:
        """As `read_checkpoint`."""
        return read_checkpoint(self.place(step), spans)

    def _write(self, step: int, family: str, state: State, score: float | None, rows: Rows) -> None:
        folder, first = self.place(step), self._writers.rank == 0
        if first:
            storage.remove(folder)
        with tempfile.TemporaryDirectory() as scratch:
            local = Path(scratch) / "checkpoint"
            local.mkdir()
            row_files, sums = upload_rows(local, folder, rows, self._writers)
            if not first:
                return
            for stem, tensors in state.items():
                safetensors.torch.save_file(tensors, local / f"{stem}.safetensors")
            sums |= {file.name: storage.sha256_file(str(file)) for file in sorted(local.iterdir())}
            manifest: dict[str, Any] = {"format_version": FORMAT_VERSION, "step": step, "family": family, "score": score}
            storage.write_json(str(local / COMMIT), manifest | {"rows": row_files, "sha256": sums})
            storage.upload_folder(str(local), folder, last=COMMIT)
        self.committed = {"step": step, "time": time.time()}
        self._prune()

    def _prune(self) -> None:
        manifests = self._manifests()
        keep = set(sorted(manifests)[-self._keep_last :]) | set(self._ranked(manifests)[: self._keep_best])
        for step in set(manifests) - keep:
            storage.remove(storage.join(self.place(step), COMMIT))  # first the commit: what is half removed is no checkpoint
            storage.remove(self.place(step))

    def _manifests(self) -> dict[int, dict[str, Any]]:
        return {step: storage.read_json(storage.join(self.place(step), COMMIT)) for step in self.steps()}

    def _ranked(self, manifests: dict[int, dict[str, Any]]) -> list[int]:
        sign = 1 if self._best_is == "min" else -1
        scored = [(sign * m["score"], step) for step, m in manifests.items() if m["score"] is not None]
        return [step for _, step in sorted(scored)]


def read_checkpoint(folder: str, spans: Spans | None = None) -> Checkpoint:
    """The state in a complete checkpoint folder, and the rows of sharded children in `spans`.

    Raises UserError naming the file and both checksums when it was altered, or the version when it is of another.
    """
    manifest = storage.read_json(storage.join(folder, COMMIT))
    if manifest.get("format_version") != FORMAT_VERSION:
        raise UserError(f"checkpoint {folder} has format version {manifest.get('format_version')}, this Raymill reads {FORMAT_VERSION}")
    state: State = {}
    row_files = manifest.get("rows", {})
    with tempfile.TemporaryDirectory() as scratch:
        for name in manifest["sha256"].keys() - row_files.keys():
            local = Path(scratch) / name
            storage.download(storage.join(folder, name), str(local))
            found, expected = storage.sha256_file(str(local)), manifest["sha256"][name]
            if found != expected:
                raise UserError(
                    f"checkpoint file {storage.join(folder, name)} was altered: sha256 {found}, expected {expected}; "
                    f"remove {folder} to go on from an earlier checkpoint"
                )
            state[local.stem] = safetensors.torch.load_file(local)
    rows = read_rows(folder, row_files, manifest["sha256"], spans or {})
    return Checkpoint(manifest["step"], manifest["family"], state, rows)
