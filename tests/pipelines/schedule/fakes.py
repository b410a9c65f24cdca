"""Stands in for `pipelines/schedule/retrain.py` in child processes: a run that lasts until the test lets it end.

`sitecustomize.py` of the folder that `install` makes puts it into every Python process below; the folder also has the log of all runs.
"""

from __future__ import annotations

import os
import sys
import time
import types
from pathlib import Path
from typing import Any

FOLDER = "RAYMILL_TEST_RUNS"


class Decision:
    def __init__(self, outcome: str, reason: str) -> None:
        self.outcome, self.reason = outcome, reason

    def to_json(self) -> dict[str, Any]:
        return {"outcome": self.outcome, "reason": self.reason}


def retrain(config: Any, run_id: str, store: Any, workers: Any, progress: Any, command: str) -> Decision:
    """Writes down that it begins and ends; ends once there is a file `go` in its folder."""
    folder = Path(os.environ[FOLDER])
    _log(folder, f"begin {run_id} {os.getpid()}")
    while not (folder / "go").exists():
        time.sleep(0.02)
    if (folder / "fail").exists():
        raise RuntimeError((folder / "fail").read_text())
    _log(folder, f"end {run_id} {os.getpid()}")
    return Decision("promoted", "0.91 against 0.90")


def record_failure(config: Any, run_id: str, store: Any, problem: str) -> None:
    _log(Path(os.environ[FOLDER]), f"gave up {run_id}: {problem}")


def module() -> types.ModuleType:
    """What stands in for `pipelines.schedule.retrain`."""
    found = types.ModuleType("pipelines.schedule.retrain")
    found.retrain, found.record_failure = retrain, record_failure  # type: ignore[attr-defined]
    return found


def stand_in() -> None:
    """For the whole of this process."""
    sys.modules["pipelines.schedule.retrain"] = module()


def install(folder: Path) -> dict[str, str]:
    """The environment in which every Python process has it."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("from tests.pipelines.schedule.fakes import stand_in\n\nstand_in()\n")
    root = Path(__file__).parents[3]
    path = os.pathsep.join([str(folder), str(root)])
    return {**os.environ, "PYTHONPATH": path, FOLDER: str(folder), "RAYMILL_METRICS_PORT": "0"}  # several processes share no port


def log(folder: Path) -> list[list[str]]:
    """What the runs wrote down, line by line, in words."""
    place = folder / "log"
    return [line.split() for line in place.read_text().splitlines()] if place.exists() else []


def _log(folder: Path, line: str) -> None:
    with open(folder / "log", "a", encoding="utf-8") as file:
        file.write(f"{line}\n")
