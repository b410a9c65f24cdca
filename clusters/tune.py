"""The trials of a sweep on Ray Tune: one process each, warm from one trial to the next.

Tune places trials, reuses their processes and restarts those that die. What there is to try and who is stopped is the guide's to say
(`components/sweep/trial.py`), and a trial's state is in its own run folder: nothing that Tune keeps is ever read back. No trial starts a
`TorchTrainer` of its own, which would cost many seconds each time.
"""

from __future__ import annotations

import json
import logging
import queue
import tempfile
import threading
import time
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from clusters.session import log_folder
from components.errors import UserError
from components.sweep.trial import Guide, Outcome, Trial, is_evaluation, run_trial
from components.training.job import TrainingJob
from components.training.outlet import Outlet, Row

logger = logging.getLogger(__name__)

MAX_FAILURES = 3
REST_SECONDS = 0.5  # between the questions of a process that has nothing to do
NEWS = "news"  # the one key of Tune's results that is ours: JSON text, so that Tune neither flattens nor judges it


def run_trials(guide: Guide, cpus: float, gpus: float | None = None, at_most: int | None = None) -> None:
    """Runs the trials of `guide` on the cluster that this process is connected to, `at_most` of them at once.

    `cpus` and `gpus` are those of one trial; None: one GPU where the cluster has any. Raises UserError when no node holds them and for a
    user's mistake in a trial, RuntimeError when a trial died more than `MAX_FAILURES` times.
    """
    if gpus is None:
        gpus = min(1.0, ray.cluster_resources().get("GPU", 0.0))
    resources = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    at_once = min(capacity(resources), at_most or capacity(resources))
    desk = _Desk(guide, gpu=gpus > 0)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what trials come to is told here, and traced in the workers' logs
    with tempfile.TemporaryDirectory(prefix="raymill-tune-") as scratch:
        tuner = tune.Tuner(
            tune.with_resources(TrialProcess, resources),
            tune_config=tune.TuneConfig(
                search_alg=_Search(desk),
                scheduler=_Schedule(desk),
                num_samples=-1,
                max_concurrent_trials=at_once,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=scratch,
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                stop=_StopAll(desk),
                verbose=0,
            ),
        )
        tuner.fit()
    if desk.problem is not None:
        raise desk.problem


def capacity(resources: dict[str, float]) -> int:
    """How many trials of these resources the cluster holds; raises UserError when no node holds one."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    held = sum(min(int(node.get(name, 0.0) / amount + 1e-9) for name, amount in resources.items() if amount) for node in nodes)
    if held == 0:
        asked = " and ".join(f"{amount:g} {name}" for name, amount in resources.items() if amount)
        largest = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in resources}
        there = " and ".join(f"{amount:g} {name}" for name, amount in largest.items())
        raise UserError(f"a trial asks for {asked}, but no node of the cluster has more than {there}; ask for less or add nodes")
    return held


class TrialProcess(tune.Trainable):
    """One process of a cluster that runs trial after trial, each in a thread of its own that does not wait for verdicts.

    Without a job it rests: Tune ends processes that it has no trial for, and a new one takes seconds to start.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._news: queue.Queue[dict[str, Any] | BaseException] = queue.Queue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(config, self._news, self._stop), name="trial", daemon=True)
        self._rests = config["job"] is None
        if not self._rests:
            self._thread.start()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        """Lets the trial leave at its next metric row, and waits for it: its last checkpoint gets onto storage."""
        self._stop.set()
        if not self._rests:
            self._thread.join()

    def step(self) -> dict[str, Any]:
        """The trial's next evaluation, or its end."""
        if self._rests:
            time.sleep(REST_SECONDS)
            return {NEWS: "{}", "done": False}
        news = self._news.get()
        if isinstance(news, BaseException):
            raise news
        return {NEWS: json.dumps(news), "done": "row" not in news}

    @staticmethod
    def _run(config: dict[str, Any], news: queue.Queue[Any], stop: threading.Event) -> None:
        device = torch.device("cuda" if config["gpu"] else "cpu")

        def report(row: Row) -> bool:
            if is_evaluation(row) and not stop.is_set():
                news.put({"row": row})
            return not stop.is_set()

        try:
            outcome = run_trial(TrainingJob.parse(config["job"], "trial"), Outlet(device), report)
            news.put({"outcome": None if outcome is None else outcome.to_json()})
        except UserError as error:
            news.put({"user_error": str(error)})
        except BaseException as error:
            news.put(error)
        if device.type == "cuda":
            torch.cuda.empty_cache()


class _Desk:
    """Between Tune's identifiers and the guide's numbers. The first exception ends the sweep: Tune would make it one trial's failure."""

    def __init__(self, guide: Guide, gpu: bool) -> None:
        self._guide, self._gpu = guide, gpu
        self._numbers: dict[str, int] = {}
        self._live: set[str] = set()  # with those that rest
        self._most = 0  # of them at once, each in a process
        self._waiting: list[Trial] = []  # for a process that has just been told not to rest any longer
        self.problem: Exception | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return object, ()  # Tune pickles its parts into a record that nobody reads

    def __deepcopy__(self, memo: dict[int, Any]) -> _Desk:
        return self

    def next(self, trial_id: str) -> dict[str, Any] | str | None:
        try:
            if self.problem is not None or self._has_ended():
                return Searcher.FINISHED
            trial = self._waiting.pop(0) if self._waiting else self._guide.next()
        except Exception as error:
            self.problem = error
            return Searcher.FINISHED
        if trial is None and len(self._live) >= self._most:
            return None
        self._live.add(trial_id)
        self._most = max(self._most, len(self._live))
        if trial is not None:
            self._numbers[trial_id] = trial.number
        return {"job": None if trial is None else trial.job.to_json(), "gpu": self._gpu}

    def rests(self, trial_id: str) -> bool:
        return trial_id not in self._numbers

    def rests_on(self) -> bool:
        """Whether there is still nothing for a process that rests."""
        try:
            if not self._waiting and not self._guide.exhausted() and (trial := self._guide.next()) is not None:
                self._waiting.append(trial)
            return self.problem is None and not self._waiting and not self._has_ended()
        except Exception as error:
            self.problem = self.problem or error
            return False

    def _has_ended(self) -> bool:
        return not self._waiting and self._guide.exhausted()

    def takes(self, trial_id: str, result: dict[str, Any] | None) -> bool:
        """Hands a result to the guide; returns whether the trial goes on."""
        news = json.loads(result[NEWS]) if result and NEWS in result else {}
        try:
            if "user_error" in news:
                raise UserError(news["user_error"])
            if news.get("outcome") is not None:
                self._guide.ends(self._numbers[trial_id], Outcome.parse(news["outcome"], "outcome"))
            return "row" in news and self._guide.reports(self._numbers[trial_id], news["row"])
        except Exception as error:
            self.problem = self.problem or error
            return False

    def leaves(self, trial_id: str) -> None:
        self._live.discard(trial_id)

    def loses(self, trial_id: str) -> None:
        if self.rests(trial_id):
            return
        logger.warning("the process of trial %s died; another takes it up", self._numbers[trial_id])

    def gives_up(self, trial_id: str) -> None:
        named = "a process that rests" if self.rests(trial_id) else f"trial {self._numbers[trial_id]}"
        self.problem = self.problem or RuntimeError(
            f"{named} failed {MAX_FAILURES + 1} times; the logs of its processes are in {log_folder()}"
        )


class _Search(Searcher):
    """Tune's way of asking what to try."""

    def __init__(self, desk: _Desk) -> None:
        super().__init__()
        self._desk = desk

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        return self._desk.next(trial_id)  # type: ignore[return-value]  # FINISHED is a text

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._desk.leaves(trial_id)
        if error:
            self._desk.gives_up(trial_id)


class _Schedule(FIFOScheduler):
    """Tune's way of asking whether a trial goes on."""

    def __init__(self, desk: _Desk) -> None:
        super().__init__()
        self._desk = desk

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        desk, name = self._desk, trial.trial_id
        goes_on = desk.rests_on() if desk.rests(name) else desk.takes(name, result)
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if self._desk.rests(trial.trial_id):
            return
        if "row" not in json.loads(result.get(NEWS, "{}")):  # else it was stopped at this row, which has been taken
            self._desk.takes(trial.trial_id, result)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._desk.loses(trial.trial_id)


class _StopAll(Stopper):
    """Ends the run of Tune after a problem."""

    def __init__(self, desk: _Desk) -> None:
        self._desk = desk

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._desk.problem is not None
