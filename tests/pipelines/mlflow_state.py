"""What MLflow holds, for tests: databases made once and copied, all that can be read of runs, and a client that dies after a call."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pipelines import registry, tracking
from pipelines.store import Artifact, Draft, Recipe, Store
from pipelines.tracking_server import connect


def empty_database(folder: Path) -> Path:
    """A database with MLflow's tables, whose making takes a second."""
    place = folder / "mlflow.db"
    connect(f"sqlite:///{place}").search_experiments()
    return place


def copy_database(source: Path, to: Path) -> None:
    """Puts the content of one database into another, under the eyes of who has it open: opening one takes MLflow half a second."""
    with closing(sqlite3.connect(source)) as there, closing(sqlite3.connect(to)) as here:
        there.backup(here)


def runs_of(url: str) -> dict[str, dict[str, Any]]:
    """Artifact name -> everything that its one run has, but what MLflow draws by chance."""
    client = connect(url)
    found: dict[str, dict[str, Any]] = {}
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            name = run.data.tags["raymill.artifact"]
            assert name not in found, f"two runs of {name}"
            found[name] = {
                "experiment": experiment.name,
                "status": run.info.status,
                "times": (run.info.start_time, run.info.end_time),
                "name": run.info.run_name,
                "params": run.data.params,
                "tags": run.data.tags,
                "curves": {key: [_point(each) for each in client.get_metric_history(run.info.run_id, key)] for key in run.data.metrics},
                "data": [(each.dataset.name, each.dataset.digest, each.dataset.source) for each in run.inputs.dataset_inputs],
                "files": _files(client, run.info.run_id, None),
            }
    return found


def _point(metric: Any) -> tuple[int, float, int]:
    return metric.step, metric.value, metric.timestamp


def _files(client: Any, run_id: str, folder: str | None) -> list[str]:
    listed = client.list_artifacts(run_id, folder)
    return sorted(name for each in listed for name in (_files(client, run_id, each.path) if each.is_dir else [each.path]))


class Killed(BaseException):
    """Ends the process, as far as the code can tell."""


class Mortal:
    """A client whose process is killed once the call number `last` has done its work; `calls` counts them."""

    def __init__(self, client: Any, last: int) -> None:
        self._client, self._last, self.calls = client, last, 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def call(*arguments: Any, **named: Any) -> Any:
            result = method(*arguments, **named)
            self.calls += 1
            if self.calls == self._last:
                raise Killed(name)
            return result

        return call


def kill_after(monkeypatch: pytest.MonkeyPatch, last: int) -> Callable[[], int]:
    """Clients made from now on die after their call number `last`, counted over all of them; returns what counts the calls."""
    made: list[Mortal] = []

    def mortal(url: str) -> Any:
        if not made:
            made.append(Mortal(connect(url), last))
        return made[0]

    for module in (tracking, registry):
        monkeypatch.setattr(module, "connect", mortal)
    return lambda: made[0].calls if made else 0


def copied_world(first_world: Path, database: Path, folder: Path) -> Store:
    """A store with the artifacts of the world and an empty database."""
    shutil.copytree(first_world / "store", folder / "store")
    shutil.copy(database, folder / "store" / "mlflow.db")
    return Store(str(folder / "store"), tracking="store")


def publish(store: Store, recipe: Recipe, files: dict[str, bytes]) -> Artifact:
    """An artifact of these files."""
    with store.drafting(recipe, lambda owner: None) as draft:
        _write(draft, files)
        return store.publish(draft, recipe, {}, 1.0, "raymill run made-for-a-test")


def _write(draft: Draft, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        place = draft.folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
