"""What drivers and schedulers tell the metrics hub: the whole state of a run or a schedule, each time.

A state that is lost costs nothing, since the next one says it all; a hub that was started again knows everything after one of each.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from components.config import Config

Seconds = Annotated[float, Field(ge=0)]  # a duration, or a moment of Unix time

RunStatus = Literal["running", "finished", "failed"]
StageStatus = Literal["waiting", "running", "done", "failed"]
ScheduleStatus = Literal["waiting", "running", "paused"]


class _Told(Config):
    """Keys that a newer Raymill has added are passed over: the hub of a cluster outlives the drivers that share it."""

    model_config = ConfigDict(extra="ignore")


class StageState(_Told):
    """One stage of a run. `numbers` are its newest ones, by the names of the rows that it reports; nested names are dotted."""

    status: StageStatus
    started_at: Seconds
    progressed_at: Seconds = Field(description="when it last reported a row")
    family: str = Field("", description="the model family that it trains")
    restarts: int = Field(0, ge=0)
    data_wait_seconds: Seconds = Field(0.0, description="that steps waited for data, in all")
    numbers: dict[str, float] = Field(default_factory=dict)


class RunState(_Told):
    """One driver at work on a pipeline, a sweep or a training."""

    name: str
    started_at: Seconds
    status: RunStatus = "running"
    stages: dict[str, StageState] = Field(default_factory=dict)


class ScheduleState(_Told):
    """A schedule and the scheduler that acts for it. Counts are those since the schedule was made, by outcome."""

    status: ScheduleStatus
    heartbeat_at: Seconds | None = Field(None, description="when the acting scheduler last looked; None: it is not there to stay")
    last_success_at: Seconds | None = None
    next_fire_at: Seconds | None = None
    runs: dict[str, int] = Field(default_factory=dict, description='such as {"succeeded": 29, "failed": 1}')
    decisions: dict[str, int] = Field(default_factory=dict, description='such as {"promoted": 3, "kept": 26}')


class ScheduleStates(_Told):
    """All schedules that a scheduler acts for, by name."""

    schedules: dict[str, ScheduleState] = Field(default_factory=dict)
