"""What is kept of a run, on storage and ours alone: `run.json` (parameters, versions, timings) and every metric row.

Rows are appended in parts (`metrics/00000020.jsonl`, named by their last step), since an object store cannot append. A resumed run first
takes back the rows that lie beyond its checkpoint, so that each step stands in the record once.
"""

from __future__ import annotations

import json
import time
from typing import Any

from components import storage

FLUSH_SECONDS = 10.0


class RunRecord:
    """The record of the run at `url`, written by rank 0."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._rows: list[dict[str, Any]] = []
        self._flushed = time.monotonic()

    def start(self, step: int, parameters: dict[str, Any]) -> None:
        """Opens the record for a run that goes on from `step`: counts the start, takes back later rows and sizes.

        `sizes` tells from which step on how many `workers` there were: [{"step": 0, "workers": 1}, {"step": 40, "workers": 3}].
        """
        info = self.info()
        self._take_back(step)
        sizes = [size for size in info.get("sizes", []) if size["step"] < step]
        if not sizes or sizes[-1]["workers"] != parameters["workers"]:
            sizes.append({"step": step, "workers": parameters["workers"]})
        info |= parameters | {"starts": info.get("starts", 0) + 1, "resumed_from": step, "sizes": sizes}
        storage.write_json(self._place("run.json"), info)

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Puts the rows gathered so far on storage."""
        if self._rows:
            text = "".join(json.dumps(row) + "\n" for row in self._rows)
            storage.write_bytes(self._place("metrics", f"{self._rows[-1]['step']:08d}.jsonl"), text.encode())
            self._rows = []
        self._flushed = time.monotonic()

    def finish(self, results: dict[str, Any]) -> None:
        self.flush()
        storage.write_json(self._place("run.json"), self.info() | results)

    def info(self) -> dict[str, Any]:
        place = self._place("run.json")
        return storage.read_json(place) if storage.exists(place) else {}

    def _take_back(self, step: int) -> None:
        for name in storage.list_names(self._place("metrics")):
            place = self._place("metrics", name)
            if int(name.split(".")[0]) <= step:
                continue
            kept = [row for row in _parse(storage.read_bytes(place)) if row["step"] <= step]
            storage.remove(place)
            if kept:
                text = "".join(json.dumps(row) + "\n" for row in kept)
                storage.write_bytes(self._place("metrics", f"{kept[-1]['step']:08d}.jsonl"), text.encode())

    def _place(self, *parts: str) -> str:
        return storage.join(self.url, *parts)


def read_metrics(url: str) -> list[dict[str, Any]]:
    """Every metric row of the run at `url`, in order of steps."""
    folder = storage.join(url, "metrics")
    return [row for name in storage.list_names(folder) for row in _parse(storage.read_bytes(storage.join(folder, name)))]


def _parse(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.decode().splitlines()]
