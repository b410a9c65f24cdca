"""Wall time of a sweep of short trials, beside as many trials that each start a `TorchTrainer` of their own inside Tune.

    python -m benchmarks.sweep
    python -m benchmarks.sweep DATA

The second is the pattern that Ray's documentation has for Train together with Tune. Both train the same models on one worker each, two at
a time, on one local cluster that is up already; a model from the one has the bits of the same model from the other. With DATA, people
as the pipeline `faces` splits them, it is that pipeline's margin sweep: there asha stops trials, which the other side trains to the end.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.table import Table
from benchmarks.work import prepared
from components.storage import read_bytes
from components.training.job import TrainingJob
from pipelines.console import Console
from pipelines.settings import Training, configure
from pipelines.store import Store
from pipelines.sweep import make_sweep, read_trials
from pipelines.sweep_config import SweepConfig, configure_sweep, settings_of
from pipelines.workers import Workers

TRIALS, AT_ONCE, STEPS = 16, 2, 100
VARY = ("train.optimizer.lr=log: [1e-3, 1e-2]",)
OPTIONS = [f"trials={TRIALS}", f"train.steps={STEPS}", "train.batch_size=128", "model.widths=[8,16]", "train.log_every=50"]


def _ours(config: SweepConfig, scratch: str, data: str) -> tuple[float, list[dict[str, Any]]]:
    started = time.time()
    store = Store(str(Path(scratch) / "store"))
    with Workers(AT_ONCE) as workers:
        artifact, _ = make_sweep(config, data, [], None, store, workers, AT_ONCE, Console(quiet=True), "benchmark")
    seconds = time.time() - started
    trials = read_trials(artifact)["trials"]
    for trial in trials:  # None where it was stopped
        trial["model"] = store.resolve(trial["artifact"]).path("model") if trial["artifact"] else None
    return seconds, trials


def _nested(jobs: list[TrainingJob], scratch: str) -> float:
    from ray import tune

    started = time.time()
    tuner = tune.Tuner(
        _launch,
        param_space={"job": tune.grid_search([job.to_json() for job in jobs]), "scratch": scratch},
        tune_config=tune.TuneConfig(max_concurrent_trials=AT_ONCE),
        run_config=tune.RunConfig(name="nested", storage_path=scratch, verbose=0),
    )
    problems = tuner.fit().errors
    assert not problems, problems
    return time.time() - started


def _launch(config: dict[str, Any]) -> None:
    """A trial that is the driver of its own worker group."""
    from ray import tune
    from ray.train import LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    run = RunConfig(
        name=f"train-{tune.get_context().get_trial_id()}",
        storage_path=config["scratch"],
        callbacks=[TuneReportCallback()],
        logging_config=LoggingConfig(log_level="ERROR"),
    )
    TorchTrainer(_train, train_loop_config=config, scaling_config=ScalingConfig(num_workers=1), run_config=run).fit()


def _train(config: dict[str, Any]) -> None:
    import ray.train
    from ray.train.torch import get_device

    from components.training.communication import Communication
    from components.training.job import execute
    from components.training.outlet import Outlet

    execute(TrainingJob.parse(config["job"], "benchmark"), Outlet(get_device(), Communication.current()))
    ray.train.report({"trained": 1})


def _job(settings: Training, data: str, run: Path) -> TrainingJob:
    return TrainingJob(family=settings.family, model=settings.model.to_json(), train=settings.train, data=data, run=str(run))


def main(people: str | None = None) -> Table:
    from clusters.session import ray_cluster

    config = _margins() if people else configure_sweep("classifier", None, None, VARY, OPTIONS)
    with tempfile.TemporaryDirectory() as scratch, ray_cluster(None, cpus=2 * AT_ONCE):
        data = people or prepared(scratch)
        ours, trials = _ours(config, scratch, data)
        runs = [Path(scratch) / "runs" / str(trial["number"]) for trial in trials]
        jobs = [_job(settings_of(config, trial["values"]), data, run) for trial, run in zip(trials, runs, strict=True)]
        nested = _nested(jobs, scratch)
        for trial, run in zip(trials, runs, strict=True):
            same = (run / "model" / "model.safetensors").read_bytes()
            assert trial["model"] is None or read_bytes(f"{trial['model']}/model.safetensors") == same
    stopped = sum(trial["model"] is None for trial in trials)
    table = Table(f"{len(trials)} trials of {config.train.steps} steps, {AT_ONCE} at once", ["who", "s", "s a trial", "ratio"])
    table.add("a TorchTrainer in each Tune trial", nested, nested / len(trials), 1.0)
    table.add(f"raymill sweep, {stopped} stopped", ours, ours / len(trials), nested / ours)
    return table


def _margins() -> SweepConfig:
    from pipelines.faces import FACES

    config = configure(FACES.config(), FACES.presets["base"], "base", None, [f"margins.trials={TRIALS}"])
    return config.margins


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="?", help="people, with a split validation")
    print(main(parser.parse_args().data))
