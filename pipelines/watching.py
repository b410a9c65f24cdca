"""How a run goes on, kept as one value that the cluster's metrics hub is told, beside what people see on the console."""

from __future__ import annotations

import json
import math
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipelines.store import Artifact

if TYPE_CHECKING:
    from clusters.monitoring.states import RunState, RunStatus, StageStatus
    from pipelines.stage import Progress

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # what Ray's job supervisor tells the command that it runs


@dataclass
class _Stage:
    status: StageStatus
    started_at: float = field(default_factory=time.time)
    progressed_at: float = field(default_factory=time.time)
    family: str = ""
    restarts: int = 0
    data_wait_seconds: float = 0.0
    numbers: dict[str, float] = field(default_factory=dict)


class Watched:
    """A `pipelines.stage.Progress` that passes everything on to what shows it and keeps the state that it comes to."""

    def __init__(self, shown: Progress, name: str) -> None:
        self.name = run_name(name)
        self._shown = shown
        self._started_at = time.time()
        self._status: RunStatus = "running"
        self._stages: dict[str, _Stage] = {}
        self._lock = threading.Lock()  # `state` is asked for by another thread

    def begins(self, stage: str) -> None:
        with self._lock:
            self._stages[stage] = _Stage("running")
        self._shown.begins(stage)

    def reports(self, stage: str, row: Mapping[str, Any]) -> None:
        with self._lock:
            _take(self._stages.setdefault(stage, _Stage("running")), row)
        self._shown.reports(stage, row)

    def waits(self, stage: str, owner: str) -> None:
        with self._lock:
            self._stages[stage] = _Stage("waiting")
        self._shown.waits(stage, owner)

    def ends(self, stage: str, artifact: Artifact, made: bool) -> None:
        with self._lock:
            self._stages.setdefault(stage, _Stage("done")).status = "done"
        self._shown.ends(stage, artifact, made)

    def closes(self, failed: bool) -> None:
        """The run has ended."""
        with self._lock:
            self._status = "failed" if failed else "finished"

    def state(self) -> RunState:
        """What the hub is told, as it is now; from any thread."""
        from clusters.monitoring.states import RunState

        with self._lock:
            stages = {name: vars(stage) for name, stage in self._stages.items()}
            return RunState.parse({"name": self.name, "started_at": self._started_at, "status": self._status, "stages": stages}, "run")


def run_name(name: str) -> str:
    """The run's name in the metrics: that of its Ray job, or `name` with a few random digits."""
    job = json.loads(os.environ.get(JOB) or "{}").get("metadata", {}).get("job_submission_id")
    return str(job or f"{name}-{secrets.token_hex(3)}")


def _take(stage: _Stage, row: Mapping[str, Any]) -> None:
    stage.status, stage.progressed_at = "running", time.time()
    stage.family = row.get("family", stage.family)
    numbers = dict(_numbers(row))
    stage.restarts = int(numbers.pop("restarts", stage.restarts))
    stage.data_wait_seconds += numbers.pop("data_wait_seconds", 0.0)
    stage.numbers |= numbers


def _numbers(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The finite numbers of a row, by dotted name."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            yield prefix + name, float(value)
