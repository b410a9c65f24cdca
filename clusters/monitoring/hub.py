"""States of runs and schedules in, Prometheus series out.

    hub = MetricsHub()
    with serve_metrics(hub):                    # clusters/metrics.py
        hub.run(RunState(...))

Names and units follow https://prometheus.io/docs/practices/naming/: base units, `_total` on counters, moments instead of ages. The number
of series is bounded whatever the hub is told: it refuses what is beyond its limits and counts that, and forgets runs that ended.
"""

from __future__ import annotations

import platform
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from pydantic import ValidationError

from clusters.monitoring.states import RunState, RunStatus, ScheduleState, ScheduleStatus, StageState, StageStatus

LOST_SECONDS = 60.0  # a driver that has not been heard of for so long is lost; drivers speak every 15 s at least
KEEP_SECONDS = 600.0  # series of a run that ended or was lost go away after this
MAX_RUNS, MAX_STAGES, MAX_TERMS, MAX_SCHEDULES = 128, 32, 48, 128
MAX_NAME = 128  # characters of a label

Limit = Literal["runs", "stages", "terms", "schedules", "malformed"]
RUN_STATES = (*get_args(RunStatus), "lost")
STAGE_STATES = (*get_args(StageStatus), "lost")
TOLD_OUTCOMES = {"runs": ("succeeded", "failed", "skipped"), "decisions": ("promoted", "kept")}  # at 0 from the start, so that rates see 1


@dataclass(frozen=True)
class Number:
    """A gauge made of a stage's numbers: of the one called `key`, or, with a `label`, of each that begins with `key`."""

    key: str
    metric: str
    about: str
    label: str = ""


STAGE_NUMBERS = (
    Number("step", "raymill_stage_steps_done", "Steps, shards, trials or pictures that a stage has done."),
    Number("steps", "raymill_stage_steps", "Steps, shards, trials or pictures that a stage has to do in all."),
    Number("shards.done", "raymill_preprocess_shards_done", "Shards of the data set that are there."),
    Number("shards.total", "raymill_preprocess_shards", "Shards of the data set in all."),
    Number("shards.rows", "raymill_preprocess_rows_done", "Rows in the shards that are there."),
    Number("trials.", "raymill_sweep_trials", "Trials of a sweep by state.", "state"),
    Number("best.", "raymill_sweep_best_score", "Held-out score of the best finished trial so far.", "score"),
)
TRAINING_NUMBERS = (
    Number("loss.", "raymill_training_loss", "Loss of a phase, mean over the batches since the last row.", "phase"),
    Number("gradient_norm.", "raymill_training_gradient_norm", "Largest gradient norm since the last row, before clipping.", "phase"),
    Number("lr.", "raymill_training_learning_rate", "Learning rate of a phase.", "phase"),
    Number("held_out.", "raymill_training_held_out_score", "Score on held-out rows at the last evaluation.", "score"),
    Number("samples_per_second", "raymill_training_samples_per_second", "Rows trained per second, over all workers."),
    Number("step_seconds", "raymill_training_step_duration_seconds", "Mean time of an optimizer step."),
    Number("peak_memory_bytes", "raymill_training_peak_memory_bytes", "Most memory so far of worker 0: of its GPU, or of the process."),
    Number("model_flops_per_second", "raymill_training_model_flops_per_second", "Operations of the model per second, over all workers."),
    Number("model_flop_utilisation", "raymill_training_model_flop_utilization_ratio", "Operations of the model over the hardware's peak."),
    Number("workers", "raymill_training_workers", "Data-parallel workers that train."),
    Number("checkpoint.time", "raymill_training_last_checkpoint_timestamp_seconds", "When the last checkpoint was complete on storage."),
    Number("checkpoint.step", "raymill_training_last_checkpoint_step", "Step of the last checkpoint that is complete on storage."),
)
TERM = Number("", "raymill_training_term", "Any other number that a family reports, by its name: terms of its loss, accuracies.", "term")


@dataclass
class _Run:
    """A run as it was last told, and when that was."""

    state: RunState
    heard_at: float
    status: str = ""  # a RunStatus, or lost
    ended_at: float | None = None


class MetricsHub(Collector):
    """Takes states from any thread and gives their series to a registry. `clock` gives Unix time."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._runs: dict[str, _Run] = {}
        self._schedules: dict[str, ScheduleState] = {}
        self._refused: Counter[str] = Counter({limit: 0 for limit in get_args(Limit)})
        self._outcomes: Counter[str] = Counter({status: 0 for status in RUN_STATES if status != "running"})

    def run(self, state: RunState) -> None:
        """Takes the state of a run, in place of the one before."""
        with self._lock:
            now = self._clock()
            self._look_around(now)
            if len(state.name) > MAX_NAME or (state.name not in self._runs and not self._has_room()):
                self._refused["runs"] += 1
                return
            run = self._runs.setdefault(state.name, _Run(state, now))
            run.state, run.heard_at = self._within_limits(state), now
            if run.status != state.status:
                self._become(run, state.status, now)

    def run_json(self, text: str) -> None:
        """As `run`, of JSON text; one that is no `RunState` is counted and passed over."""
        try:
            state = RunState.model_validate_json(text)
        except ValidationError:
            with self._lock:
                self._refused["malformed"] += 1
            return
        self.run(state)

    def schedule(self, name: str, state: ScheduleState | None) -> None:
        """Takes the state of a schedule, in place of the one before; None: there is no such schedule any more."""
        with self._lock:
            if state is None:
                self._schedules.pop(name, None)
            elif len(name) > MAX_NAME or (name not in self._schedules and len(self._schedules) == MAX_SCHEDULES):
                self._refused["schedules"] += 1
            else:
                counts = {key: self._some(getattr(state, key), MAX_TERMS, "terms") for key in TOLD_OUTCOMES}
                self._schedules[name] = state.model_copy(update=counts)

    # Limits and ends

    def _has_room(self) -> bool:
        """Makes room by forgetting the run that ended first, if there must be."""
        ended = [(run.ended_at, name) for name, run in self._runs.items() if run.ended_at is not None]
        if len(self._runs) >= MAX_RUNS and ended:
            del self._runs[min(ended)[1]]
        return len(self._runs) < MAX_RUNS

    def _within_limits(self, state: RunState) -> RunState:
        stages = {
            name: stage.model_copy(update={"numbers": self._some(stage.numbers, MAX_TERMS, "terms"), "family": stage.family[:MAX_NAME]})
            for name, stage in self._some(state.stages, MAX_STAGES, "stages").items()
        }
        return state.model_copy(update={"stages": stages})

    def _some(self, values: Mapping[str, Any], limit: int, name: Limit) -> dict[str, Any]:
        """The first `limit` of `values`, those that were told first, without names that are too long."""
        kept = dict([item for item in values.items() if len(item[0]) <= MAX_NAME][:limit])
        self._refused[name] += len(values) > len(kept)
        return kept

    def _look_around(self, now: float) -> None:
        """Finds runs that were lost, and forgets those that ended long enough ago."""
        for name, run in list(self._runs.items()):
            if run.status == "running" and now - run.heard_at > LOST_SECONDS:
                self._become(run, "lost", now)
            if run.ended_at is not None and now - run.ended_at > KEEP_SECONDS:
                del self._runs[name]

    def _become(self, run: _Run, status: str, now: float) -> None:
        run.status = status
        run.ended_at = None if status == "running" else now
        if status != "running":
            self._outcomes[status] += 1

    # Series

    def collect(self) -> Iterator[Metric]:
        """All series, as a registry asks for them."""
        with self._lock:
            self._look_around(self._clock())
            metrics = [*self._own(), *_runs(self._runs), *_stages(self._runs), *_schedules(self._schedules)]
        yield from metrics

    def describe(self) -> Iterable[Metric]:
        """Nothing: a registry need not collect to know that nobody else has these names."""
        return ()

    def _own(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("raymill_build_info", "What serves these metrics.", labels=("version", "python"))
        info.add_metric((version("raymill"), platform.python_version()), 1)
        yield info
        refused = CounterMetricFamily("raymill_metrics_refused_total", "States beyond the limits of the hub.", labels=("limit",))
        ended = CounterMetricFamily("raymill_runs_total", "Runs that ended, by outcome.", labels=("outcome",))
        for family, counts in ((refused, self._refused), (ended, self._outcomes)):
            for name, count in sorted(counts.items()):
                family.add_metric((name,), count)
            yield family


def _gauge(name: str, about: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, about, labels=labels)


def _add_states(family: GaugeMetricFamily, labels: tuple[str, ...], states: Iterable[str], current: str) -> None:
    for state in states:
        family.add_metric((*labels, state), float(state == current))


def _runs(runs: Mapping[str, _Run]) -> Iterator[Metric]:
    state = _gauge("raymill_run_state", "1 for the state that a run is in; lost: its driver is not heard of.", "run", "state")
    started = _gauge("raymill_run_start_timestamp_seconds", "When a run's driver started.", "run")
    heard = _gauge("raymill_run_heartbeat_timestamp_seconds", "When a run's driver was last heard of.", "run")
    for name, run in runs.items():
        _add_states(state, (name,), RUN_STATES, run.status)
        started.add_metric((name,), run.state.started_at)
        heard.add_metric((name,), run.heard_at)
    yield from (state, started, heard)


def _stages(runs: Mapping[str, _Run]) -> Iterator[Metric]:
    labels = ("run", "stage")
    state = _gauge("raymill_stage_state", "1 for the state that a stage is in; waiting: another process makes it.", *labels, "state")
    started = _gauge("raymill_stage_start_timestamp_seconds", "When a stage began.", *labels)
    progressed = _gauge("raymill_stage_last_progress_timestamp_seconds", "When a stage last reported progress.", *labels)
    restarts = CounterMetricFamily("raymill_stage_restarts_total", "Worker groups that a stage lost and replaced.", labels=labels)
    waited = CounterMetricFamily("raymill_training_data_wait_seconds_total", "Time that steps waited for data.", labels=(*labels, "family"))
    numbers = {n.metric: _gauge(n.metric, n.about, *labels, *([n.label] if n.label else [])) for n in STAGE_NUMBERS}
    numbers |= {n.metric: _gauge(n.metric, n.about, *labels, "family", *([n.label] if n.label else [])) for n in (*TRAINING_NUMBERS, TERM)}
    for name, run in runs.items():
        for stage_name, stage in run.state.stages.items():
            place = (name, stage_name)
            _add_states(state, place, STAGE_STATES, _status(stage, run))
            started.add_metric(place, stage.started_at)
            progressed.add_metric(place, stage.progressed_at)
            _add_numbers(numbers, place, stage)
            if stage.family:
                restarts.add_metric(place, stage.restarts)
                waited.add_metric((*place, stage.family), stage.data_wait_seconds)
    yield from (state, started, progressed, restarts, waited, *numbers.values())


def _status(stage: StageState, run: _Run) -> str:
    return run.status if stage.status in ("waiting", "running") and run.status in ("failed", "lost") else stage.status


def _add_numbers(families: Mapping[str, GaugeMetricFamily], place: tuple[str, str], stage: StageState) -> None:
    """Adds each number of a stage to the one family that it belongs to; without a model family there are no terms."""
    for name, value in stage.numbers.items():
        of_training = [(n, (*place, stage.family)) for n in TRAINING_NUMBERS] if stage.family else []
        for number, labels in [*((n, place) for n in STAGE_NUMBERS), *of_training]:
            if name == number.key or (number.label and name.startswith(number.key)):
                families[number.metric].add_metric((*labels, *([name.removeprefix(number.key)] if number.label else [])), value)
                break
        else:
            if stage.family:
                families[TERM.metric].add_metric((*place, stage.family, name), value)


def _schedules(schedules: Mapping[str, ScheduleState]) -> Iterator[Metric]:
    state = _gauge("raymill_schedule_state", "1 for the state that a schedule is in.", "schedule", "state")
    moments = {
        "heartbeat_at": _gauge("raymill_schedule_heartbeat_timestamp_seconds", "When the acting scheduler last looked.", "schedule"),
        "last_success_at": _gauge("raymill_schedule_last_success_timestamp_seconds", "When a run last succeeded.", "schedule"),
        "next_fire_at": _gauge("raymill_schedule_next_fire_timestamp_seconds", "When the next run is due.", "schedule"),
    }
    counts = {
        "runs": CounterMetricFamily("raymill_schedule_runs_total", "Runs of a schedule by outcome.", labels=("schedule", "outcome")),
        "decisions": CounterMetricFamily(
            "raymill_promotion_decisions_total", "What a schedule decided of its candidates.", labels=("schedule", "outcome")
        ),
    }
    for name, schedule in schedules.items():
        _add_states(state, (name,), get_args(ScheduleStatus), schedule.status)
        for field, gauge in moments.items():
            if (moment := getattr(schedule, field)) is not None:
                gauge.add_metric((name,), moment)
        for field, family in counts.items():
            for outcome, count in (dict.fromkeys(TOLD_OUTCOMES[field], 0) | getattr(schedule, field)).items():
                family.add_metric((name, outcome), count)
    yield from (state, *moments.values(), *counts.values())
