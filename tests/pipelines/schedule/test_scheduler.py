"""The scheduler on a clock that the test drives: real triggers, real files, simulated days."""

from __future__ import annotations

import itertools
import json
import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from components import storage
from components.errors import UserError
from pipelines.schedule.runner import Progressed
from pipelines.schedule.state import Outcome, Run, Schedule
from tests.pipelines.schedule.test_triggers import moments
from tests.pipelines.schedule.world import World, utc

DAILY = {"cron": "30 2 * * *", "time_zone": "Europe/Berlin"}
NOON = {"cron": "0 12 * * *"}
HOUR = timedelta(hours=1)
FAILS = Progressed("ended", 1, "CUDA error: out of memory")


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated days outlive no power cut."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, utc("2026-03-01 00:00"))


def statuses(schedule: Schedule) -> list[str]:
    return [run.status for run in schedule.runs()]


@pytest.mark.parametrize("start", ["2026-03-01 00:00", "2026-10-01 00:00"])
def test_sixty_days_with_a_change_of_the_clock(tmp_path: Path, start: str) -> None:
    world = World(tmp_path, utc(start))
    schedule = world.add(trigger=DAILY)
    end = utc(start) + timedelta(days=60)
    world.serve(end)
    expected = [due for due in moments("Europe/Berlin", 2026, 2, 30) if utc(start) < due < end]
    assert [run.started for run in schedule.runs()] == expected
    assert len(expected) == 60
    assert set(statuses(schedule)) == {"succeeded"}
    assert [event.kind for event in schedule.events()] == ["started", "succeeded"] * 60
    assert [attempt.began for attempt in world.runs.begun] == expected
    assert schedule.runs()[0].why == "promoted: better by far"


@pytest.mark.parametrize(("missed", "caught_up"), [("once", 1), ("skip", 0)])
def test_missed_times_are_caught_up_once_or_skipped(world: World, missed: str, caught_up: int) -> None:
    schedule = world.add(trigger=NOON | {"missed": missed})
    world.serve(utc("2026-03-02 18:00"))  # two runs
    world.clock.time = utc("2026-03-09 18:00")  # and a week without a scheduler
    world.serve(utc("2026-03-10 18:00"))
    started = [run.started for run in schedule.runs()]
    assert started == [utc("2026-03-01 12:00"), utc("2026-03-02 12:00"), *[utc("2026-03-09 18:00")] * caught_up, utc("2026-03-10 12:00")]
    (event,) = world.told(schedule, "missed")
    assert event.text.startswith("7 due times from 2026-03-03 12:00:00 UTC to 2026-03-09 12:00:00 UTC passed unseen")
    assert ("caught up by the run due 2026-03-09 12:00:00 UTC" in event.text) == bool(caught_up)
    if caught_up:
        assert schedule.runs()[2].id == "20260309T120000Z"


def test_a_short_absence_is_no_miss(world: World) -> None:
    schedule = world.add(trigger=NOON | {"missed": "skip", "grace_seconds": 600})
    world.clock.time = utc("2026-03-01 12:09")
    world.serve(utc("2026-03-01 18:00"))
    world.clock.time = utc("2026-03-02 12:11")
    world.serve(utc("2026-03-02 18:00"))
    assert [run.id for run in schedule.runs()] == ["20260301T120000Z"]
    assert len(world.told(schedule, "missed")) == 1


@pytest.mark.parametrize(("overlap", "begun"), [("skip", [0, 6, 12]), ("after", [0, 5, 10])])
def test_a_due_time_while_a_run_is_on(world: World, overlap: str, begun: list[int]) -> None:
    schedule = world.add(trigger={"cron": "0 */2 * * *"}, overlap=overlap)
    world.runs.lasts = timedelta(hours=5)
    start = utc("2026-03-01 02:00")
    world.serve(utc("2026-03-01 17:00"))
    assert [attempt.began - start for attempt in world.runs.begun] == [hours * HOUR for hours in begun]
    assert max(len(world.runs.on), 0) <= 1
    if overlap == "skip":
        assert len(world.told(schedule, "overlapped")) == 5
        assert "due 2026-03-01 04:00:00 UTC, while run 20260301T020000Z was on" in world.told(schedule, "overlapped")[0].text
    else:  # of two due times in a run the last goes on after it
        assert [run.id for run in schedule.runs()] == ["20260301T020000Z", "20260301T060000Z", "20260301T120000Z"]
        assert "due 2026-03-01 04:00:00 UTC, waiting for run" in world.told(schedule, "overlapped")[0].text


def test_cron_says_when_to_look_and_new_data_whether_to_run(world: World) -> None:
    schedule = world.add(trigger=NOON | {"new_data": True})
    for day in (1, 3, 4):
        world.clock.at.append((utc(f"2026-03-0{day} 08:00"), lambda day=day: world.bring(f"day {day}")))
    world.serve(utc("2026-03-07 00:00"))
    assert [run.id for run in schedule.runs()] == ["20260301T120000Z", "20260303T120000Z", "20260304T120000Z"]
    quiet = world.told(schedule, "nothing new")
    assert [event.at for event in quiet] == [utc(f"2026-03-0{day} 12:00") for day in (2, 5, 6)]
    assert quiet[0].text == "due 2026-03-02 12:00:00 UTC: the source is as run 20260301T120000Z took it"


def test_due_times_are_told_in_the_schedules_time_zone(world: World) -> None:
    schedule = world.add(trigger={"cron": "30 2 * * *", "time_zone": "Europe/Berlin"})
    world.serve(utc("2026-03-01 12:00"))
    assert schedule.runs()[0].cause == "due 2026-03-01 02:30:00 CET"


def test_new_data_alone_is_polled_for_and_settles_first(world: World) -> None:
    schedule = world.add(trigger={"new_data": True, "poll_seconds": 600, "settle_seconds": 1800})
    world.clock.at = [
        (utc("2026-03-01 08:00"), lambda: world.bring("one")),
        (utc("2026-03-01 08:20"), lambda: world.bring("one, and more")),
        (utc("2026-03-01 14:00"), lambda: world.bring("two")),
        (utc("2026-03-01 14:35"), lambda: world.bring("three")),  # while the run for two is on
        (utc("2026-03-01 20:00"), lambda: world.bring("one, and more", utc("2026-03-01 08:20"))),  # what was there before, files and dates
    ]
    world.serve(utc("2026-03-02 12:00"))
    begun = [run.started for run in schedule.runs()]
    assert begun[0] == utc("2026-03-01 08:50")
    assert timedelta(0) <= begun[1] - utc("2026-03-01 14:30") <= timedelta(minutes=10)
    assert timedelta(0) <= begun[2] - utc("2026-03-01 15:05") <= timedelta(minutes=10)
    assert timedelta(0) <= begun[3] - utc("2026-03-01 20:00") <= timedelta(minutes=10)
    assert len(begun) == 4
    assert len({run.id for run in schedule.runs()}) == 4
    assert len(world.told(schedule, "unsettled")) >= 3
    assert len(schedule.events()) < 20, "a look that finds nothing is not an event"


def test_data_from_the_future_does_not_wait_for_ever(world: World) -> None:
    schedule = world.add(trigger=NOON | {"new_data": True, "settle_seconds": 1800})
    world.bring("one", utc("2099-01-01 00:00"))
    world.serve(utc("2026-03-01 18:00"))
    assert statuses(schedule) == ["succeeded"]


def test_a_source_that_is_away_is_told_once_and_looked_at_again(world: World) -> None:
    schedule = world.add(trigger=NOON | {"new_data": True, "settle_seconds": 0})
    world.clock.at = [(utc("2026-03-01 13:00"), lambda: world.bring("one"))]
    world.serve(utc("2026-03-01 18:00"))
    (event,) = world.told(schedule, "cannot look")
    assert "holds no files" in event.text
    (run,) = schedule.runs()
    assert run.id == "20260301T120000Z"
    assert timedelta(0) <= run.started - utc("2026-03-01 13:00") <= timedelta(minutes=2)


def test_a_failed_run_is_tried_again_with_growing_pauses(world: World) -> None:
    schedule = world.add(trigger=NOON, retries=3, backoff_seconds=600)
    world.runs.results = [FAILS] * 3
    world.serve(utc("2026-03-02 00:00"))
    (run,) = schedule.runs()
    assert (run.status, run.attempts) == ("succeeded", 4)
    ends = [attempt.ends for attempt in world.runs.begun]
    pauses = [after.began - end for after, end in zip(world.runs.begun[1:], ends, strict=False)]
    assert pauses == [timedelta(minutes=minutes) for minutes in (10, 20, 40)]
    assert [attempt.id for attempt in world.runs.begun] == [f"fashion-20260301T120000Z{tail}" for tail in ("", "-2", "-3", "-4")]
    assert "attempt 1 of 4: CUDA error: out of memory; again at 2026-03-01 12:40:00 UTC" in world.told(schedule, "attempt failed")[0].text


def test_a_run_that_keeps_failing_is_recorded_and_the_next_due_time_comes(world: World) -> None:
    schedule = world.add(trigger=NOON, retries=1, backoff_seconds=60)
    world.runs.results = [FAILS] * 2
    world.serve(utc("2026-03-03 00:00"))
    assert statuses(schedule) == ["failed", "succeeded"]
    assert schedule.runs()[0].why == "CUDA error: out of memory (2 attempts)"


def test_a_mistake_of_the_user_is_not_tried_again(world: World) -> None:
    schedule = world.add(trigger=NOON)
    world.runs.results = [Progressed("ended", 2, "unknown family 'vqvea'; did you mean 'vqvae'?")]
    world.serve(utc("2026-03-03 00:00"))
    assert statuses(schedule) == ["failed", "succeeded"]
    assert schedule.runs()[0].why == "unknown family 'vqvea'; did you mean 'vqvae'?"
    assert len(world.runs.begun) == 2


def test_failed_data_is_not_run_again_until_it_changes_or_its_next_due_time(world: World) -> None:
    polled = world.add("polled", trigger={"new_data": True, "settle_seconds": 0, "poll_seconds": 1800}, retries=0)
    nightly = world.add("nightly", trigger=NOON | {"new_data": True, "settle_seconds": 0}, retries=0)
    world.bring("bad", utc("2026-02-28 00:00"))
    world.runs.results = [FAILS, FAILS]
    world.serve(utc("2026-03-02 18:00"))
    assert statuses(polled) == ["failed"]
    assert statuses(nightly) == ["failed", "succeeded"]
    world.bring("good")
    world.serve(utc("2026-03-03 00:00"))
    assert statuses(polled) == ["failed", "succeeded"]


def test_a_run_that_takes_too_long_is_ended(world: World) -> None:
    schedule = world.add(trigger=NOON, retries=0, timeout_seconds=3600)
    world.runs.lasts = timedelta(hours=3)
    world.serve(utc("2026-03-02 00:00"))
    (run,) = schedule.runs()
    assert (run.status, run.why) == ("failed", "took longer than 3600 s (timeout_seconds)")
    assert run.ended is not None
    assert run.ended - run.started <= timedelta(minutes=66)


def test_several_schedules_share_one_scheduler_and_one_place(world: World) -> None:
    schedules = [world.add(name, trigger=NOON) for name in ("one", "two", "three")]
    world.serve(utc("2026-03-02 00:00"))
    assert [statuses(schedule) for schedule in schedules] == [["succeeded"]] * 3
    spans = sorted((attempt.began, attempt.ends) for attempt in world.runs.begun)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    assert not any(world.told(schedule, "missed") for schedule in schedules), "who waits for another's run is not late"


def test_a_schedule_may_come_change_and_go_while_the_scheduler_runs(world: World) -> None:
    world.add("first", trigger=NOON)
    late = Schedule(world.store, "late")
    evening = {"cron": "0 18 * * *"}
    world.clock.at = [
        (utc("2026-03-02 00:00"), lambda: world.add("late", trigger=NOON)),
        (utc("2026-03-05 00:00"), lambda: world.add("late", trigger=evening)),
        (utc("2026-03-08 18:10"), late.remove),
    ]
    world.serve(utc("2026-03-15 00:00"))
    hours = [run.started.strftime("%d %H") for run in late.runs()]
    assert hours[:3] == ["02 12", "03 12", "04 12"] or hours[:2] == ["03 12", "04 12"]  # seen at the next beat, a day in this world
    assert hours[-3:] == ["06 18", "07 18", "08 18"]
    assert late.added() is None
    assert len(Schedule(world.store, "first").runs()) == 14


def test_a_damaged_schedule_does_not_stop_the_others(world: World) -> None:
    world.add("good", trigger=NOON)
    bad = world.add("bad", trigger=NOON)
    storage.write_bytes(bad.place("schedule.json"), b"{")
    world.serve(utc("2026-03-02 00:00"))
    assert statuses(Schedule(world.store, "good")) == ["succeeded"]
    told = [line for line in world.lines if "not valid JSON" in line]
    assert len(told) == 1, "told once"
    with pytest.raises(UserError, match="not valid JSON"):
        world.scheduler().serve(once=True)


def test_a_stop_in_order_is_told_and_the_run_goes_on(world: World) -> None:
    schedule = world.add(trigger=NOON)
    world.serve(utc("2026-03-01 12:10"))
    assert [event.kind for event in schedule.events()] == ["started", "stopped"]
    world.serve(utc("2026-03-01 18:00"))
    assert [event.kind for event in schedule.events()] == ["started", "stopped", "taken over", "succeeded"]
    assert {attempt.id for attempt in world.runs.begun} == {"fashion-20260301T120000Z"}
    assert len(world.runs.begun) == 2


def test_a_job_outlives_its_scheduler_and_is_found_again(world: World) -> None:
    schedule = world.add(trigger=NOON)
    world.runs.outlives = True
    world.serve(utc("2026-03-01 12:10"))
    world.serve(utc("2026-03-01 12:20"))
    world.clock.time = utc("2026-03-01 15:00")  # it ends while nobody is there
    world.serve(utc("2026-03-01 18:00"))
    assert len(world.runs.begun) == 1
    assert statuses(schedule) == ["succeeded"]


def test_a_removed_schedule_ends_its_run(world: World) -> None:
    schedule = world.add(trigger=NOON)
    world.runs.lasts = timedelta(days=5)
    world.clock.at = [(utc("2026-03-01 13:00"), schedule.remove)]
    world.serve(utc("2026-03-03 00:00"))
    (run,) = schedule.runs()
    assert (run.status, run.why) == ("failed", "the schedule was removed")
    assert schedule.events()[-1].kind == "failed"


def test_once_runs_what_is_due_and_leaves(world: World) -> None:
    schedule = world.add(trigger=NOON)
    world.clock.end = utc("2026-03-05 00:00")
    world.scheduler().serve(once=True)
    assert schedule.runs() == []
    world.clock.time = utc("2026-03-01 12:01")
    world.scheduler().serve(once=True)
    assert statuses(schedule) == ["succeeded"]
    assert world.clock.time < utc("2026-03-01 13:00")


def test_a_store_that_is_moved_goes_on_elsewhere(world: World, tmp_path: Path) -> None:
    world.add(trigger=NOON)
    world.serve(utc("2026-03-03 12:10"))  # in the middle of a run
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (world.folder / "store").rename(elsewhere / "store")
    moved = World(elsewhere, utc("2026-03-03 14:00"))
    moved.serve(utc("2026-03-05 00:00"))
    runs = Schedule(moved.store, "fashion").runs()
    assert [run.id for run in runs] == [f"2026030{day}T120000Z" for day in (1, 2, 3, 4)]
    assert {run.status for run in runs} == {"succeeded"}


class Killed(BaseException):
    """What a process feels of kill -9: nothing. No line after it writes anything."""


def test_a_kill_at_any_write_loses_nothing_and_runs_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four days, with a failure, a day without new data and a missed time, killed before and after each write in turn."""
    write = storage.write_json
    plain, total = _four_days(tmp_path / "plain", monkeypatch, write, None)
    assert total > 30
    for number in range(2 * total):
        found, _ = _four_days(tmp_path / str(number), monkeypatch, write, number)
        assert found == plain, f"killed {'after' if number % 2 else 'before'} write {number // 2}"


def _four_days(folder: Path, monkeypatch: pytest.MonkeyPatch, write: Any, kill: int | None) -> tuple[dict[str, Any], int]:
    """What is left of the days, as far as no kill may change it, and how many writes they took."""
    folder.mkdir()
    world = World(folder, utc("2026-03-01 00:00"))
    schedule = world.add(trigger=NOON | {"new_data": True, "settle_seconds": 0}, overlap="after", retries=2, backoff_seconds=600)
    failed = {"20260302T120000Z"}
    count, dead = 0, False

    def counted(url: str, value: Any) -> None:
        nonlocal count, dead
        if dead:
            raise Killed
        number, count = count, count + 1
        if kill is not None and number == kill // 2:
            dead = True
            if kill % 2:
                write(url, value)
            raise Killed
        write(url, value)

    monkeypatch.setattr(storage, "write_json", counted)
    start = world.runs.start

    def begin(command: list[str], attempt: str) -> None:
        world.runs.results = [FAILS] if command[4] in failed else []
        failed.discard(command[4])
        start(command, attempt)

    world.runs.start = begin  # type: ignore[method-assign]
    for day in range(1, 5):
        if day != 3:
            world.bring(f"day {day}", utc(f"2026-03-0{day} 08:00"))
        if day == 4:
            world.clock.time = utc("2026-03-04 15:00")  # missed
        until = utc(f"2026-03-0{day} 23:00")
        while world.clock.time < until:
            try:
                world.serve(until)
            except Killed:
                dead = False
    monkeypatch.setattr(storage, "write_json", write)
    _check_events(schedule)
    done = {run.id: (run.status, run.cause, run.data) for run in schedule.runs()}
    taken = schedule.taken()
    assert taken is not None
    quiet = [event.text for event in schedule.events() if event.kind in ("nothing new", "missed")]
    state = schedule.state(world.clock.time)
    assert (state.run, state.waiting) == (None, None)
    return {"runs": done, "taken": taken.run, "quiet": sorted(set(quiet))}, count


def _check_events(schedule: Schedule) -> None:
    """Each run was started once and ended once, whatever came between."""
    events = schedule.events()
    for run in schedule.runs():
        kinds = [event.kind for event in events if event.run == run.id]
        assert (kinds[0], kinds[-1]) == ("started", "succeeded")
        assert (kinds.count("started"), kinds.count("succeeded")) == (1, 1)
    assert [event.at for event in events] == sorted(event.at for event in events)


def test_what_a_reader_finds_on_disk(world: World) -> None:
    schedule = world.add(trigger=NOON)
    world.serve(utc("2026-03-01 18:00"))
    folder = Path(schedule.place())
    assert json.loads((folder / "events" / "00000000.json").read_text())["kind"] == "started"
    run = Run.parse(json.loads((folder / "runs" / "20260301T120000Z" / "run.json").read_text()), "run.json")
    assert run == schedule.run("20260301T120000Z")
    assert schedule.outcome("20260301T120000Z") == Outcome(why="promoted: better by far")
    beat = json.loads((folder.parent / ".scheduler.json").read_text())
    assert datetime.fromisoformat(beat["at"]) >= utc("2026-03-01 00:00")
    assert {"host", "pid", "at"} == beat.keys()
