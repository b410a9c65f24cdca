"""The config of a schedule: what is retrained, when, on which data, and what a candidate must show to become champion.

name: fashion
source: s3://bucket/pictures
preset: quick
set: {model.train.steps: 2000}
trigger: {cron: "30 2 * * *", time_zone: Europe/Berlin, new_data: true}
gate: {margin: 0.002}
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, Literal, Self
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError
from pydantic import Field, ValidationInfo, field_validator, model_validator

from components import storage
from components.config import Config, read_yaml
from components.errors import did_you_mean
from components.redaction import holds_secret
from pipelines.catalogue import PIPELINES

CRON_FIELDS = "minute hour day-of-month month day-of-week"


class Trigger(Config):
    """When a schedule looks, and whether it then runs. Given both, the cron line says when to look and new data whether to run."""

    cron: str | None = Field(None, description="five fields: minute hour day-of-month month day-of-week")
    time_zone: str = Field("UTC", description="IANA name of the cron line's time zone")
    new_data: bool = Field(False, description="run when the source's listing differs from that of the last run")
    poll_seconds: float = Field(60.0, gt=0, description="how often to look for new data where there is no cron line")
    settle_seconds: float = Field(60.0, ge=0, description="data that changed less long ago is not taken yet")
    missed: Literal["once", "skip"] = Field("once", description="due times that nobody saw: caught up by one run, or left out")
    grace_seconds: float = Field(300.0, ge=0, description="a due time seen later than this counts as missed")

    @field_validator("cron")
    @classmethod
    def _cron_line_is_one(cls, line: str | None) -> str | None:
        if line is None:
            return None
        line = " ".join(line.split())
        if len(line.split()) != 5:  # the parser takes a sixth, for seconds
            raise ValueError(f"a cron line has five fields, {CRON_FIELDS}, for example '30 2 * * *'; this has {len(line.split())}")
        try:
            next(CronSim(line, datetime.now(UTC)))
        except CronSimError as error:
            raise ValueError(f"{str(error).lower()}; the fields are {CRON_FIELDS}, for example '30 2 * * *'") from None
        except StopIteration:
            raise ValueError("no such date comes in the next 50 years") from None
        return line

    @field_validator("time_zone")
    @classmethod
    def _time_zone_is_known(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (KeyError, OSError, ValueError):  # unknown, a folder of names, no relative path
            near = get_close_matches(name, available_timezones(), n=1)
            raise ValueError(
                f"unknown time zone; {f'did you mean {near[0]!r}?' if near else 'give an IANA name such as Europe/Berlin'}"
            ) from None
        return name

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        if self.cron is None and not self.new_data:
            raise ValueError("nothing triggers a run; give cron, for example '30 2 * * *', or new_data: true, or both")
        if self.cron is None:
            self._has_no_effect(("time_zone", "missed", "grace_seconds"), "without cron")
        else:
            self._has_no_effect(("poll_seconds",), "with cron, which says when to look")
        if not self.new_data:
            self._has_no_effect(("settle_seconds",), "without new_data: true")
        return self

    def _has_no_effect(self, names: tuple[str, ...], when: str) -> None:
        for name in names:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}={getattr(self, name)!r} has no effect {when}; leave it out")


class Gate(Config):
    """What a candidate must show against the champion, on the same held-out rows, to take its place."""

    stage: str = Field("model", description="stage whose model is judged")
    score: str | None = Field(None, description="default: the family's headline score")
    best: Literal["min", "max"] | None = Field(None, description="which way `score` is better; the headline score says it itself")
    margin: float = Field(0.0, ge=0, description="the candidate must be better by more than this")
    confidence: float = Field(0.95, gt=0, lt=1, description="of the paired bootstrap interval")
    resamples: int = Field(2000, gt=0)
    block_rows: int | None = Field(None, gt=0, description="rows drawn together in a resample; default: rows / 200")
    split: str = Field("test", description="the held-out rows")
    floor: float | None = Field(None, description="score that the first champion must reach, when there is none to compare with")

    @model_validator(mode="after")
    def _score_and_its_direction_go_together(self) -> Self:
        if (self.score is None) != (self.best is None):
            raise ValueError(f"score={self.score} and best={self.best} go together: set both, or neither for the family's headline score")
        return self


class ScheduleConfig(Config):
    """A schedule as a value.

    One run of it at a time. What a due time does while a run is on is `overlap`: `skip` leaves it out and says so, `after` runs it once the
    other ends (of several such due times only the last). Data that arrives during a run is seen after it, whatever `overlap` says. A run
    by hand obeys it too: it is refused (`skip`) or waits (`after`).
    """

    name: str
    pipeline: str = "model"
    source: str = Field(description="folder or URL of the data: the pipeline's data=")
    preset: str | None = None
    set: dict[str, Any] = Field(default_factory=dict, description="overrides of the pipeline's config by dotted name")
    workers: int = Field(2, ge=0, description="Ray workers of a run; 0: without Ray")
    start: Literal["scratch", "warm"] = Field("scratch", description="warm: training begins with the champion's weights")
    trigger: Trigger
    overlap: Literal["skip", "after"] = "skip"
    gate: Gate = Gate()
    registered_name: str = Field("", description="the registered model's; default: the schedule's name")
    tracking: str | None = Field(None, description="URL of the MLflow server; default: the store's own database")
    keep: int = Field(3, ge=1, description="how many of the older data sets and candidates stay")
    retries: int = Field(2, ge=0, description="how often a failed run is tried again")
    backoff_seconds: float = Field(60.0, gt=0, description="before the first retry; doubled for each one after")
    timeout_seconds: float | None = Field(None, gt=0, description="an attempt that takes longer is killed; default: never")

    @classmethod
    def read(cls, path: str) -> ScheduleConfig:
        """The schedule in a local YAML file; raises UserError naming the file, the key and what was expected."""
        return cls.parse(read_yaml(path), path)

    @field_validator("name")
    @classmethod
    def _name_is_a_folder(cls, name: str) -> str:
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", name):
            raise ValueError("give 1 to 40 small letters, digits and dashes, for example nightly-fashion: it names a folder and a job")
        return name

    @field_validator("pipeline")
    @classmethod
    def _pipeline_is_known(cls, name: str) -> str:
        if name not in PIPELINES and name != "model":
            raise ValueError(f"unknown pipeline; {did_you_mean(name, {*PIPELINES, 'model'})}")
        return name

    @field_validator("source")
    @classmethod
    def _source_can_be_listed(cls, url: str) -> str:
        if url.startswith(("http://", "https://")):
            raise ValueError("a web address cannot be listed for new data; give a folder or s3://bucket/prefix")
        storage.is_remote(url)
        return url

    @field_validator("set")
    @classmethod
    def _data_is_the_source(cls, values: dict[str, Any]) -> dict[str, Any]:
        for key, place in (("data", "source"), ("preset", "preset")):
            if key in values:
                raise ValueError(f"{key} is given by {place}; leave it out of set")
        return values

    @field_validator("tracking", "set")
    @classmethod
    def _holds_no_secret(cls, value: Any) -> Any:
        if holds_secret(str(value)):
            raise ValueError("others can read it in the store; give passwords by MLFLOW_TRACKING_PASSWORD or a profile")
        return value

    @field_validator("registered_name")
    @classmethod
    def _registered_name_is_the_schedules(cls, name: str, info: ValidationInfo) -> str:
        if "/" in name or ":" in name:
            raise ValueError("a registered model's name holds neither / nor :")
        return name or str(info.data.get("name", ""))
