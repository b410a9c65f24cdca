"""Due times against the calendar itself, minute by minute; listings against files on disk and on a real S3 server."""

from __future__ import annotations

import os
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from components import storage
from components.errors import UserError
from pipelines.schedule.config import Trigger
from pipelines.schedule.triggers import due_between, look, next_due
from tests.pipelines.schedule.world import utc


def moments(zone: str, year: int, hour: int, minute: int) -> list[datetime]:
    """Once a day: when the wall clock first shows the time, or jumps over it. Found by walking through the year in steps of ten minutes."""
    found: dict[date, datetime] = {}
    now, end = datetime(year, 1, 1, tzinfo=ZoneInfo(zone)).astimezone(UTC), datetime(year + 1, 1, 1, tzinfo=ZoneInfo(zone)).astimezone(UTC)
    while now < end:
        wall = now.astimezone(ZoneInfo(zone))
        if (wall.hour, wall.minute) >= (hour, minute) and wall.date() not in found:
            found[wall.date()] = now
        now += timedelta(minutes=10)
    return list(found.values())


@pytest.mark.parametrize(
    ("zone", "hour", "minute"),
    [
        ("Europe/Berlin", 2, 30),
        ("Europe/Berlin", 2, 0),
        ("Europe/Berlin", 3, 0),
        ("America/New_York", 1, 30),
        ("Australia/Lord_Howe", 2, 10),
    ],
)
def test_every_day_has_one_due_time_whatever_the_clock_does(zone: str, hour: int, minute: int) -> None:
    trigger = Trigger(cron=f"{minute} {hour} * * *", time_zone=zone)
    start = datetime(2026, 1, 1, tzinfo=ZoneInfo(zone)) - timedelta(seconds=1)
    due = due_between(trigger, start, datetime(2026, 12, 31, 23, 59, tzinfo=ZoneInfo(zone)))
    assert due == moments(zone, 2026, hour, minute)
    assert len(due) == 365


def test_berlin_in_spring_and_autumn() -> None:
    trigger = Trigger(cron="30 2 * * *", time_zone="Europe/Berlin")
    spring = due_between(trigger, utc("2026-03-28 00:00"), utc("2026-03-30 12:00"))
    assert spring == [utc("2026-03-28 01:30"), utc("2026-03-29 01:00"), utc("2026-03-30 00:30")]  # 02:30 does not exist on the 29th
    autumn = due_between(trigger, utc("2026-10-24 12:00"), utc("2026-10-26 12:00"))
    assert autumn == [utc("2026-10-25 00:30"), utc("2026-10-26 01:30")]  # exists twice on the 25th


def test_hourly_lines_are_due_every_hour_that_passes() -> None:
    trigger = Trigger(cron="0 * * * *", time_zone="Europe/Berlin")
    for day in ("2026-03-29", "2026-10-25"):
        start = utc(f"{day} 00:00")
        assert due_between(trigger, start, start + timedelta(hours=6)) == [start + timedelta(hours=hours) for hours in range(1, 7)]


def test_bounds() -> None:
    trigger = Trigger(cron="0 12 * * *")
    noon = utc("2026-05-01 12:00")
    assert due_between(trigger, noon, noon + timedelta(days=1)) == [noon + timedelta(days=1)]
    assert due_between(trigger, noon, noon + timedelta(hours=23)) == []
    assert due_between(trigger, noon, noon - timedelta(days=9)) == []  # a clock that was set back
    assert next_due(trigger, noon) == noon + timedelta(days=1)
    assert next_due(Trigger(new_data=True), noon) is None
    assert due_between(Trigger(new_data=True), noon, noon + timedelta(days=9)) == []


def test_a_listing_tells_every_change_and_reads_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.bin").write_bytes(b"one")
    with open(folder / "large.bin", "wb") as file:
        file.truncate(2**42)  # 4 TiB of nothing: whoever reads them does not come back
    os.utime(folder / "deep" / "a.bin", (10**9, 10**9))
    os.utime(folder / "large.bin", (10**9 + 5, 10**9 + 5))
    first = look(str(folder))
    assert first.changed == datetime.fromtimestamp(10**9 + 5, UTC)
    assert look(f"{folder}/") == first
    (folder / ".hidden").write_text("x")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "b").write_text("x")
    assert look(str(folder)) == first
    seen = {first.fingerprint}
    (folder / "deep" / "a.bin").write_bytes(b"two")  # equal size
    seen.add(look(str(folder)).fingerprint)
    (folder / "b.bin").write_bytes(b"more")
    seen.add(look(str(folder)).fingerprint)
    (folder / "b.bin").rename(folder / "c.bin")
    seen.add(look(str(folder)).fingerprint)
    (folder / "large.bin").unlink()
    seen.add(look(str(folder)).fingerprint)
    assert len(seen) == 5
    assert look(str(folder / "c.bin")).fingerprint not in seen


def test_a_source_without_files(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="holds no files"):
            look(str(place))


def test_listing_on_s3(s3: str) -> None:
    with pytest.raises(UserError, match="holds no files"):
        look(f"{s3}/source")
    storage.write_bytes(f"{s3}/source/deep/a.bin", b"one")
    first = look(f"{s3}/source")
    assert abs((datetime.now(UTC) - first.changed).total_seconds()) < 600
    storage.write_bytes(f"{s3}/source-of-another/a.bin", b"one")
    assert look(f"{s3}/source/") == first
    storage.write_bytes(f"{s3}/source/deep/a.bin", b"two")
    second = look(f"{s3}/source")
    assert second.fingerprint != first.fingerprint
    storage.remove(f"{s3}/source/deep/a.bin")
    storage.write_bytes(f"{s3}/source/a.bin", b"one")
    assert look(f"{s3}/source").fingerprint not in {first.fingerprint, second.fingerprint}
    alone = look(f"{s3}/source/a.bin")
    storage.write_bytes(f"{s3}/source/a.bin", b"two")
    assert look(f"{s3}/source/a.bin").fingerprint != alone.fingerprint
