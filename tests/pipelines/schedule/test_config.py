"""A schedule on disk and back, and what is said about each mistake in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from components.errors import UserError
from pipelines.schedule.config import ScheduleConfig

FULL: dict[str, Any] = {
    "name": "fashion",
    "source": "s3://bucket/pictures",
    "preset": "quick",
    "set": {"model.train.steps": 2000},
    "trigger": {"cron": "30 2 * * *", "time_zone": "Europe/Berlin", "new_data": True},
    "gate": {"margin": 0.002},
}


def test_there_and_back(tmp_path: Path) -> None:
    text = "name: fashion\nsource: s3://bucket/pictures\npreset: quick\nset: {model.train.steps: 2000}\n"
    text += "trigger: {cron: 30 2 * * *, time_zone: Europe/Berlin, new_data: true}\ngate: {margin: 0.002}\n"
    (tmp_path / "fashion.yaml").write_text(text)
    config = ScheduleConfig.read(str(tmp_path / "fashion.yaml"))
    assert config == ScheduleConfig.parse(FULL, "test")
    assert ScheduleConfig.parse(config.to_json(), "test") == config
    assert config.registered_name == "fashion"
    assert ScheduleConfig.parse(FULL | {"registered_name": "shoes"}, "test").registered_name == "shoes"


@pytest.mark.parametrize(
    ("trigger", "expected"),
    [
        ({}, "nothing triggers a run; give cron"),
        ({"cron": "30 2 * *"}, "five fields, minute hour day-of-month month day-of-week, .* this has 4"),
        ({"cron": "0 30 2 * * *"}, "this has 6"),
        ({"cron": "@daily"}, "this has 1"),
        ({"cron": "61 2 * * *"}, "bad minute; the fields are"),
        ({"cron": "0 0 30 2 *"}, "bad day-of-month"),
        ({"cron": "0 2 * * *", "time_zone": "Europe/Berln"}, "trigger.time_zone='Europe/Berln'.*did you mean 'Europe/Berlin'"),
        ({"cron": "0 2 * * *", "time_zone": "../etc/passwd"}, "give an IANA name such as"),
        ({"cron": "0 2 * * *", "time_zone": ""}, "give an IANA name such as"),
        ({"new_data": True, "missed": "skip"}, "missed='skip' has no effect without cron"),
        ({"new_data": True, "time_zone": "Europe/Berlin"}, "time_zone='Europe/Berlin' has no effect without cron"),
        ({"cron": "0 2 * * *", "new_data": True, "poll_seconds": 5}, "poll_seconds=5.0 has no effect with cron"),
        ({"cron": "0 2 * * *", "settle_seconds": 5}, "settle_seconds=5.0 has no effect without new_data"),
        ({"corn": "0 2 * * *"}, "unknown key 'trigger.corn'; did you mean 'cron'"),
    ],
)
def test_mistakes_in_a_trigger(trigger: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=f"^fashion.yaml: .*{expected}"):
        ScheduleConfig.parse(FULL | {"trigger": trigger}, "fashion.yaml")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"name": "Nightly run"}, "small letters, digits and dashes"),
        ({"name": "../elsewhere"}, "small letters, digits and dashes"),
        ({"pipeline": "tokns"}, "did you mean 'tokens'"),
        ({"source": "https://example.com/data"}, "cannot be listed for new data"),
        ({"source": "gs://bucket/data"}, "has the scheme 'gs'"),
        ({"set": {"data": "elsewhere"}}, "data is given by source"),
        ({"set": {"preset": "full"}}, "preset is given by preset"),
        ({"registered_name": "a/b"}, "holds neither / nor :"),
        ({"gate": {"margin": -1}}, "gate.margin=-1"),
        ({"gate": {"confidence": 1}}, "gate.confidence=1"),
        ({"retries": -1}, "retries=-1"),
    ],
)
def test_other_mistakes(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=f"^fashion.yaml: .*{expected}"):
        ScheduleConfig.parse(FULL | values, "fashion.yaml")
