"""The metrics hub without Ray: what it exports, how it bounds that, and when it forgets."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from clusters.monitoring.hub import KEEP_SECONDS, LOST_SECONDS, MAX_RUNS, MAX_SCHEDULES, MAX_STAGES, MAX_TERMS, MetricsHub
from clusters.monitoring.states import RunState, ScheduleState, StageState
from tests.prometheus import needs_promtool, promtool

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def hub(clock: Clock) -> MetricsHub:
    return MetricsHub(clock)


def text_of(hub: MetricsHub) -> str:
    registry = CollectorRegistry()
    registry.register(hub)
    return generate_latest(registry).decode()


def series(hub: MetricsHub) -> Series:
    """Every series as Prometheus' own client reads it; none may be there twice."""
    samples = [sample for family in text_string_to_metric_families(text_of(hub)) for sample in family.samples]
    found = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
    assert len(found) == len(samples)
    return found


def value(hub: MetricsHub, name: str, **labels: str) -> float | None:
    return series(hub).get((name, frozenset(labels.items())))


def stage(**values: Any) -> StageState:
    return StageState(**{"status": "running", "started_at": 100.0, "progressed_at": 160.0, **values})


ROW = {
    "step": 40.0,
    "steps": 100.0,
    "loss.model": 0.25,
    "commitment": 0.5,
    "gradient_norm.model": 2.0,
    "lr.model": 1e-3,
    "held_out.accuracy": 0.75,
    "samples_per_second": 640.0,
    "step_seconds": 0.1,
    "peak_memory_bytes": 2e9,
    "model_flops_per_second": 1e12,
    "model_flop_utilisation": 0.4,
    "workers": 2.0,
    "checkpoint.step": 30.0,
    "checkpoint.time": 150.0,
}


def full(hub: MetricsHub) -> None:
    """One of everything."""
    training = stage(family="vqvae", restarts=1, data_wait_seconds=12.5, numbers=ROW)
    shards = stage(status="done", numbers={"step": 3, "steps": 4, "shards.done": 3, "shards.total": 4, "shards.rows": 300})
    trials = stage(numbers={"trials.running": 2, "trials.waiting": 5, "best.accuracy": 0.9})
    hub.run(RunState(name="tokens-1", started_at=90.0, stages={"images": shards, "tokenizer": training, "sweep": trials}))
    hub.schedule(
        "daily",
        ScheduleState(
            status="waiting",
            heartbeat_at=500.0,
            last_success_at=400.0,
            next_fire_at=600.0,
            runs={"succeeded": 29, "failed": 1},
            decisions={"promoted": 3, "kept": 26},
        ),
    )


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("raymill_run_state", {"run": "tokens-1", "state": "running"}, 1),
        ("raymill_run_state", {"run": "tokens-1", "state": "lost"}, 0),
        ("raymill_run_start_timestamp_seconds", {"run": "tokens-1"}, 90),
        ("raymill_run_heartbeat_timestamp_seconds", {"run": "tokens-1"}, 1_000_000),
        ("raymill_stage_state", {"run": "tokens-1", "stage": "images", "state": "done"}, 1),
        ("raymill_stage_steps_done", {"run": "tokens-1", "stage": "tokenizer"}, 40),
        ("raymill_stage_steps", {"run": "tokens-1", "stage": "tokenizer"}, 100),
        ("raymill_stage_last_progress_timestamp_seconds", {"run": "tokens-1", "stage": "tokenizer"}, 160),
        ("raymill_stage_restarts_total", {"run": "tokens-1", "stage": "tokenizer"}, 1),
        ("raymill_preprocess_shards_done", {"run": "tokens-1", "stage": "images"}, 3),
        ("raymill_preprocess_shards", {"run": "tokens-1", "stage": "images"}, 4),
        ("raymill_preprocess_rows_done", {"run": "tokens-1", "stage": "images"}, 300),
        ("raymill_sweep_trials", {"run": "tokens-1", "stage": "sweep", "state": "waiting"}, 5),
        ("raymill_sweep_best_score", {"run": "tokens-1", "stage": "sweep", "score": "accuracy"}, 0.9),
        ("raymill_schedule_state", {"schedule": "daily", "state": "waiting"}, 1),
        ("raymill_schedule_heartbeat_timestamp_seconds", {"schedule": "daily"}, 500),
        ("raymill_schedule_last_success_timestamp_seconds", {"schedule": "daily"}, 400),
        ("raymill_schedule_next_fire_timestamp_seconds", {"schedule": "daily"}, 600),
        ("raymill_schedule_runs_total", {"schedule": "daily", "outcome": "failed"}, 1),
        ("raymill_schedule_runs_total", {"schedule": "daily", "outcome": "skipped"}, 0),
        ("raymill_promotion_decisions_total", {"schedule": "daily", "outcome": "promoted"}, 3),
    ],
)
def test_what_is_told_is_exported(hub: MetricsHub, name: str, labels: dict[str, str], expected: float) -> None:
    full(hub)
    assert value(hub, name, **labels) == expected


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("loss", {"phase": "model"}, 0.25),
        ("term", {"term": "commitment"}, 0.5),
        ("gradient_norm", {"phase": "model"}, 2.0),
        ("learning_rate", {"phase": "model"}, 1e-3),
        ("held_out_score", {"score": "accuracy"}, 0.75),
        ("samples_per_second", {}, 640),
        ("step_duration_seconds", {}, 0.1),
        ("data_wait_seconds_total", {}, 12.5),
        ("peak_memory_bytes", {}, 2e9),
        ("model_flops_per_second", {}, 1e12),
        ("model_flop_utilization_ratio", {}, 0.4),
        ("workers", {}, 2),
        ("last_checkpoint_step", {}, 30),
        ("last_checkpoint_timestamp_seconds", {}, 150),
    ],
)
def test_what_training_measures_is_exported_by_family(hub: MetricsHub, name: str, labels: dict[str, str], expected: float) -> None:
    full(hub)
    assert value(hub, f"raymill_training_{name}", run="tokens-1", stage="tokenizer", family="vqvae", **labels) == expected
    assert sum(key[0].startswith("raymill_training_") for key in series(hub)) == 14  # no number stands twice, none at other stages


@needs_promtool
def test_names_units_and_texts_are_as_promtool_asks(hub: MetricsHub) -> None:
    full(hub)
    assert promtool("check", "metrics", stdin=text_of(hub)) == (0, "")


def test_a_hub_that_was_told_nothing_says_so() -> None:
    found = series(MetricsHub())
    assert {name for name, _ in found} == {"raymill_build_info", "raymill_metrics_refused_total", "raymill_runs_total"}
    assert {labels: count for (name, labels), count in found.items() if name == "raymill_runs_total"} == {
        frozenset({("outcome", outcome)}): 0 for outcome in ("finished", "failed", "lost")
    }


def run(number: int, **values: Any) -> RunState:
    return RunState(**{"name": f"run-{number}", "started_at": 1.0, **values})


def test_runs_that_ended_are_counted_once_and_go_away_with_their_counters(hub: MetricsHub, clock: Clock) -> None:
    before = len(series(hub))
    for _ in range(3):
        hub.run(run(1, status="failed", stages={"prior": stage(family="prior", restarts=2, data_wait_seconds=1)}))
    assert value(hub, "raymill_runs_total", outcome="failed") == 1
    assert value(hub, "raymill_stage_state", run="run-1", stage="prior", state="failed") == 1
    clock.now += KEEP_SECONDS
    assert value(hub, "raymill_stage_restarts_total", run="run-1", stage="prior") == 2
    clock.now += 1
    assert len(series(hub)) == before
    assert value(hub, "raymill_runs_total", outcome="failed") == 1


def test_a_driver_that_is_not_heard_of_is_lost_and_may_come_back(hub: MetricsHub, clock: Clock) -> None:
    state = run(1, stages={"prior": stage()})
    hub.run(state)
    clock.now += LOST_SECONDS
    assert value(hub, "raymill_run_state", run="run-1", state="running") == 1
    clock.now += 1
    assert value(hub, "raymill_run_state", run="run-1", state="lost") == 1
    assert value(hub, "raymill_stage_state", run="run-1", stage="prior", state="running") == 0
    assert value(hub, "raymill_stage_state", run="run-1", stage="prior", state="lost") == 1
    assert value(hub, "raymill_runs_total", outcome="lost") == 1
    hub.run(state)
    assert value(hub, "raymill_run_state", run="run-1", state="running") == 1
    clock.now += LOST_SECONDS + 1
    hub.run(run(2))
    clock.now += KEEP_SECONDS + 1
    assert value(hub, "raymill_run_state", run="run-1", state="lost") is None


def test_too_many_runs_are_refused_and_counted_but_ended_ones_make_room(hub: MetricsHub, clock: Clock) -> None:
    for number in range(MAX_RUNS + 5):
        hub.run(run(number))
    names = {dict(labels)["run"] for name, labels in series(hub) if name == "raymill_run_state"}
    assert names == {f"run-{number}" for number in range(MAX_RUNS)}
    assert value(hub, "raymill_metrics_refused_total", limit="runs") == 5
    hub.run(run(7, status="finished"))
    clock.now += 1
    hub.run(run(3, status="finished"))
    hub.run(run(1000))
    assert value(hub, "raymill_run_state", run="run-1000", state="running") == 1
    assert value(hub, "raymill_run_state", run="run-7", state="finished") is None
    assert value(hub, "raymill_run_state", run="run-3", state="finished") == 1
    assert value(hub, "raymill_metrics_refused_total", limit="runs") == 5


def test_stages_terms_outcomes_and_schedules_have_limits_too(hub: MetricsHub) -> None:
    terms = {"loss.model": 1.0} | {f"term-{number}": 1.0 for number in range(10 * MAX_TERMS)}
    stages = {f"stage-{number}": stage(family="vqvae", numbers=terms) for number in range(10 * MAX_STAGES)}
    hub.run(run(1, stages=stages))
    for number in range(MAX_SCHEDULES + 2):
        hub.schedule(f"s{number}", ScheduleState(status="waiting", heartbeat_at=1, runs=dict.fromkeys(map(str, range(1000)), 1)))
    found = series(hub)
    counts = {metric: sum(name == metric for name, _ in found) for metric in ("raymill_training_term", "raymill_schedule_runs_total")}
    assert counts["raymill_training_term"] == MAX_STAGES * (MAX_TERMS - 1)
    assert counts["raymill_schedule_runs_total"] == MAX_SCHEDULES * (MAX_TERMS + 3)
    refused = {limit: value(hub, "raymill_metrics_refused_total", limit=limit) for limit in ("stages", "schedules")}
    assert refused == {"stages": 1, "schedules": 2}
    assert value(hub, "raymill_training_loss", run="run-1", stage="stage-0", family="vqvae", phase="model") == 1


@pytest.mark.parametrize("name", ['a"b\\c\nd{}', "naïve 漢字", ""])
def test_hostile_names_stay_inside_their_label(hub: MetricsHub, name: str) -> None:
    hub.run(RunState(name=name, started_at=1, stages={name: stage(family=name or "f", numbers={f"loss.{name}": 2.0})}))
    assert value(hub, "raymill_training_loss", run=name, stage=name, family=name or "f", phase=name) == 2


def test_names_without_end_are_refused(hub: MetricsHub) -> None:
    long = "x" * 10_000
    hub.run(RunState(name=long, started_at=1))
    hub.run(run(1, stages={long: stage(), "a": stage(family=long, numbers={long: 1.0})}))
    hub.schedule(long, ScheduleState(status="waiting", heartbeat_at=1))
    assert long[:1000] not in text_of(hub)
    counts = {limit: value(hub, "raymill_metrics_refused_total", limit=limit) for limit in ("runs", "stages", "terms", "schedules")}
    assert counts == {"runs": 1, "stages": 1, "terms": 1, "schedules": 1}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"name": "a"}', '{"name": "\\ud800", "started_at": 1}', '{"name": "a", "started_at": -1}']
)
def test_what_is_no_state_is_counted_and_passed_over(hub: MetricsHub, text: str) -> None:
    hub.run_json(text)
    assert value(hub, "raymill_metrics_refused_total", limit="malformed") == 1
    assert not any(name == "raymill_run_state" for name, _ in series(hub))


def test_a_newer_drivers_extra_keys_do_not_matter(hub: MetricsHub) -> None:
    hub.run_json('{"name": "a", "started_at": 1, "colour": "blue"}')
    assert value(hub, "raymill_run_state", run="a", state="running") == 1


def test_a_schedule_that_was_removed_goes_at_once(hub: MetricsHub) -> None:
    hub.schedule("daily", ScheduleState(status="paused", heartbeat_at=1))
    assert value(hub, "raymill_schedule_state", schedule="daily", state="paused") == 1
    assert value(hub, "raymill_schedule_last_success_timestamp_seconds", schedule="daily") is None
    hub.schedule("daily", None)
    assert not any("schedule" in name for name, _ in series(hub))
