"""Models as MLflow runs: settings, curves, scores, pictures and lineage, logged from finished artifacts by the process of the command.

    raymill train classifier data/fashion --track store                     into the store's own database, store/mlflow.db
    raymill train classifier data/fashion --track http://127.0.0.1:5000     to a server; credentials as MLflow has them
    raymill track classifier --track http://127.0.0.1:5000                  an artifact that is there already

A model has one run in an experiment, found by its fingerprint: what a killed process logged by half, the next one completes. What cannot
be logged never stops a training.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import shlex
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from components import storage
from components.errors import UserError, brief
from components.redaction import redacted
from components.report.sweep import TRIALS
from components.training.record import read_metrics
from pipelines.reporting import lineage
from pipelines.stage import PassedOn, Progress
from pipelines.store import COMMIT, Artifact, Store, open_artifact
from pipelines.tracking_server import alone, connect, database, explained, is_server, require_mlflow, tracking_url

TAG = "raymill."
VALUE_CHARACTERS, METRICS_AT_ONCE, PARAMETERS_AT_ONCE, DIGEST_CHARACTERS = 6000, 1000, 100, 36  # MLflow's own limits
MODEL_FILES = ("model/config.json", "run.json")

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Tracking:
    """The MLflow runs of the models of a store, on one server or in one database."""

    def __init__(self, url: str | None, store: Store) -> None:
        """`url` as for `--track` (None: as the store was opened). Raises UserError when it cannot be used, or MLflow is not installed."""
        self.store, self.url = store, tracking_url(url, store)
        self.client = connect(self.url)

    def log(self, artifact: Artifact) -> dict[str, str]:
        """Logs what the artifact holds: a model, the models of a sweep, or pictures of what the models that it was made from can do.

        Returns artifact name -> run id. Raises UserError when the server cannot take it; calling again completes what is there by half.
        """
        if is_model(artifact):
            return {artifact.name: self.log_model(artifact)}
        pictures = _pictures(artifact)
        models = self._trials(artifact) or (self._parents(artifact) if pictures else [])
        runs = {model.name: self.log_model(model) for model in models}
        for run in runs.values():
            with explained(self.url):
                self._log_pictures(run, artifact, pictures)
        return runs

    def log_model(self, artifact: Artifact) -> str:
        """The run of the artifact's model, made or completed where needed."""
        with explained(self.url), alone(self.url, self.store, artifact.name) as lease:
            experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or read_run(artifact)["job"]["family"])
            found = self._find(experiment, artifact)
            if found is not None and found[1] == "FINISHED":
                return found[0]
            lease.check()
            run = found[0] if found is not None else self._create(experiment, artifact)
            self._fill(run, artifact)
            return run

    def _find(self, experiment: str, artifact: Artifact) -> tuple[str, str] | None:
        """Id and status of the artifact's run."""
        query = f"tags.`{TAG}fingerprint` = '{artifact.fingerprint}'"
        runs = self.client.search_runs([experiment], query, order_by=["attributes.start_time ASC"])
        return (runs[0].info.run_id, runs[0].info.status) if runs else None

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            beside = None if is_server(self.url) else (database(self.url).parent / "mlflow").as_uri()
            try:
                return self.client.create_experiment(name, beside)
            except MlflowException:  # made by another process meanwhile
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            raise UserError(f"experiment {name!r} of MLflow at {redacted(self.url)} was deleted; restore it, or set MLFLOW_EXPERIMENT_NAME")
        return found.experiment_id

    def _create(self, experiment: str, artifact: Artifact) -> str:
        tags = {key: redacted(value)[:VALUE_CHARACTERS] for key, value in _tags(artifact).items()}
        return self.client.create_run(experiment, _times(artifact)[0], tags, artifact.name).info.run_id

    def _fill(self, run_id: str, artifact: Artifact) -> None:
        """All that a run has besides its tags. What is there already stays as it is, since every value follows from the artifact."""
        from mlflow.entities import Metric, Param

        run = read_run(artifact)
        for part in _parts(sorted(_parameters(run).items()), PARAMETERS_AT_ONCE):
            self.client.log_batch(run_id, params=[Param(_key(name), redacted(value)[:VALUE_CHARACTERS]) for name, value in part])
        points = (Metric(_key(name), value, time, step) for name, value, time, step in _points(artifact, run))
        for metrics in _parts(points, METRICS_AT_ONCE):
            self.client.log_batch(run_id, metrics=metrics)
        self._log_data(run_id, artifact, run)
        self.client.log_dict(run_id, run["scores"], "scores.json")
        self._log_pictures(run_id, artifact, _pictures(artifact))
        self.client.set_terminated(run_id, "FINISHED", _times(artifact)[1])

    def _log_data(self, run_id: str, artifact: Artifact, run: Mapping[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        url = run["job"]["data"]
        data = Dataset(
            name=url.rstrip("/").rsplit("/", 1)[-1],
            digest=data_fingerprint(artifact, run)[:DIGEST_CHARACTERS],
            source_type="raymill",
            source=json.dumps({"url": redacted(url)}),
        )
        self.client.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "training")])])

    def _log_pictures(self, run_id: str, artifact: Artifact, files: Sequence[str]) -> None:
        """Pictures of an artifact in a folder of its name, so that those of several never meet."""
        there = {file.path for file in self.client.list_artifacts(run_id, artifact.name)} if files else set()
        for file in files:
            if f"{artifact.name}/{file}" in there:
                continue
            with tempfile.TemporaryDirectory() as scratch:
                storage.download(artifact.path(file), str(Path(scratch) / file))
                self.client.log_artifact(run_id, str(Path(scratch) / file), str(Path(artifact.name, file).parent))

    def _trials(self, artifact: Artifact) -> list[Artifact]:
        """The finished trials of a sweep."""
        if TRIALS not in artifact.manifest.files:
            return []
        names = [trial["artifact"] for trial in storage.read_json(artifact.path(TRIALS))["trials"]]
        return self._models(name for name in names if name is not None)

    def _parents(self, artifact: Artifact) -> list[Artifact]:
        """The models of this store that the artifact was made from."""
        return self._models(f"{stage}-{fingerprint}" for stage, fingerprint in artifact.manifest.inputs.items())

    def _models(self, names: Iterator[str]) -> list[Artifact]:
        urls = [self.store.place("artifacts", name) for name in names]
        return [model for url in urls if storage.exists(storage.join(url, COMMIT)) and is_model(model := open_artifact(url))]


class Tracker(PassedOn):
    """Progress that also logs what stages made, in a thread: training waits for no server."""

    def __init__(self, progress: Progress, store: Store) -> None:
        """Raises UserError at once for what can be known to fail; a server that is down is not."""
        require_mlflow()
        super().__init__(progress)
        self._store, self._url = store, tracking_url(None, store)
        self._arrived: queue.SimpleQueue[Artifact | None] = queue.SimpleQueue()
        self._waiting: list[Artifact] = []
        self._problem = ""
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)  # a killed run is logged when it is run again
        self._thread.start()

    def ends(self, stage: str, artifact: Artifact, made: bool) -> None:
        super().ends(stage, artifact, made)
        self._arrived.put(artifact)

    def close(self) -> str | None:
        """Waits for what is being logged, as long as the server answers. Returns a warning when something was not, and how to log it."""
        self._arrived.put(None)
        self._thread.join()
        if not self._waiting:
            return None
        names = ", ".join(artifact.name for artifact in self._waiting)
        where = ["--track", redacted(self._url), "--store", redacted(self._store.url)]
        command = shlex.join(["raymill", "track", self._waiting[-1].name, *where])
        return f"not logged: {names} ({self._problem}); training is not affected; log it later: {command}"

    def _work(self) -> None:
        """Logs what arrived, oldest first. After a failure all waits for the next arrival: a server may be back by then."""
        while True:
            artifact = self._arrived.get()
            if artifact is None:
                return
            self._waiting.append(artifact)
            try:
                tracking = Tracking(self._url, self._store)
                while self._waiting:
                    tracking.log(self._waiting[0])
                    self._waiting.pop(0)
            except UserError as error:
                self._problem = str(error)
            except Exception as error:  # of ours: a training is worth more than its log
                logger.exception("tracking failed")
                self._problem = brief(error)


def log_lineage(store: Store, artifact: Artifact) -> dict[str, str]:
    """Logs the models of an artifact and of all that it was made from. Returns artifact name -> run id; raises UserError for no model."""
    tracking = Tracking(None, store)
    runs: dict[str, str] = {}
    for each in lineage(store, artifact):
        runs |= tracking.log(each)
    if not runs:
        raise UserError(f"artifact {artifact.name} holds no model and was made from none; give one that raymill train or run made")
    return runs


def is_model(artifact: Artifact) -> bool:
    """Whether the artifact holds a model and the record of its training."""
    return all(file in artifact.manifest.files for file in MODEL_FILES)


def read_run(artifact: Artifact) -> dict[str, Any]:
    """What `run.json` of a model says."""
    return storage.read_json(artifact.path("run.json"))


def data_fingerprint(artifact: Artifact, run: Mapping[str, Any]) -> str:
    """Of the data that a model learnt from: the input `data`, or the one whose artifact was read."""
    inputs = artifact.manifest.inputs
    name, _, fingerprint = run["job"]["data"].rstrip("/").rsplit("/", 1)[-1].rpartition("-")
    return fingerprint if inputs.get(name) == fingerprint else inputs.get("data", artifact.fingerprint)


def _tags(artifact: Artifact) -> dict[str, str]:
    manifest, run = artifact.manifest, read_run(artifact)
    tags = {
        "fingerprint": artifact.fingerprint,
        "artifact": artifact.name,
        "url": artifact.url,
        "stage": manifest.stage,
        "family": run["job"]["family"],
        "data_fingerprint": data_fingerprint(artifact, run),
        "command": manifest.command,
        "version.raymill": metadata.version("raymill"),
        "version.ray": metadata.version("ray"),
        **{f"version.{name}": version for name, version in run["versions"].items()},
        **{f"input.{name}": value for name, value in manifest.inputs.items()},
        **{f"source.{name}": url for name, url in manifest.sources.items()},
    }
    return {TAG + name: value for name, value in tags.items()}


def _parameters(run: Mapping[str, Any]) -> dict[str, str]:
    """Every setting by its dotted name, as text: the model's as fitted to the data, and what the training ran on."""
    ran = {name: run[name] for name in ("workers", "device", "parameters") if name in run}
    settings = {"family": run["job"]["family"], "model": run["config"], "train": run["job"]["train"], "ran": ran}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in _flat(settings, "")}


def _flat(values: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{name}.")
        else:
            yield above + name, value


def _points(artifact: Artifact, run: Mapping[str, Any]) -> Iterator[tuple[str, float, int, int]]:
    """(name, value, milliseconds, step) of every number in the metric rows, and of the published model's scores.

    The time of a row is reckoned back from the end of the training by what the steps between took.
    """
    rows, ended = read_metrics(artifact.url), _times(artifact)[1]
    steps = [0, *(row["step"] for row in rows)]
    spent = [row.get("step_seconds", 0.0) * (row["step"] - before) for row, before in zip(rows, steps, strict=False)]
    left = sum(spent)
    for row, seconds in zip(rows, spent, strict=True):
        left -= seconds
        for name, value in row.items():
            if name != "step" and _is_number(value):
                yield name, float(value), ended - round(1000 * left), row["step"]
    for name, value in run["scores"].items():
        if _is_number(value):
            yield f"score.{name}", float(value), ended, run["steps"]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _times(artifact: Artifact) -> tuple[int, int]:
    """When the artifact was begun and when it was published, in milliseconds."""
    ended = datetime.fromisoformat(artifact.manifest.made_at).timestamp()
    return round(1000 * (ended - artifact.manifest.seconds)), round(1000 * ended)


def _pictures(artifact: Artifact) -> list[str]:
    return [file for file in artifact.manifest.files if file.endswith(".png") and not file.startswith("model/")]


def _key(name: str) -> str:
    """A name with no more than the characters that MLflow allows."""
    return re.sub(r"[^\w\-. /:]", "_", name)[:250]


def _parts(values: Iterable[T], size: int) -> Iterator[list[T]]:
    remaining = iter(values)
    while part := list(islice(remaining, size)):
        yield part
