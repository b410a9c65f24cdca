"""What must hold after a month of retraining (`benchmarks/month.py`), and what was found."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

from benchmarks.month import (
    CHECKPOINT_EVERY,
    COPIED,
    CORRECTED,
    NAME,
    NOTHING,
    RUN_KILLED,
    SCHEDULER_KILLED,
    SHUFFLED,
    STEPS,
    Night,
    World,
)
from pipelines.cli import main
from pipelines.registry import Registry
from pipelines.schedule.decision import Decision
from pipelines.schedule.keeping import CHAMPIONS_BEFORE

QUIET_SECONDS = 2.0


class Checked(NamedTuple):
    """One promise."""

    what: str
    holds: bool
    found: str


def check(world: World) -> list[Checked]:
    """Everything, in the order of a reader's questions; the last ones move the champion back and forth."""
    checks = (_runs, _kills, _bad_day, _better, _quiet_days, _preparing, _kept, _by_hand)
    return [each for part in checks for each in part(world)]


def _runs(world: World) -> Iterator[Checked]:
    """The ids follow from the dates alone."""
    due = [night.run_id for night in world.nights if night.happens != NOTHING]
    found = [run.id for run in world.schedule.runs()]
    yield Checked("one run a night with data, none twice, whatever the clocks do", found == due, f"{len(found)} runs")
    kinds = Counter((event.run, event.kind) for event in world.schedule.events() if event.kind in ("started", "succeeded"))
    ends = {run.status for run in world.schedule.runs()}
    yield Checked("each began once and ended once, and well", set(kinds.values()) == {1} and ends == {"succeeded"}, ", ".join(sorted(ends)))
    versions = Registry(None, world.store).versions(NAME)
    judged = [night for night in world.nights if _candidate(night)]
    runs = [version.tags["run"] for version in versions]
    yield Checked("one version a candidate in the registry", runs == [night.run_id for night in judged], f"{len(runs)} versions")


def _kills(world: World) -> Iterator[Checked]:
    for night in world.nights:
        if night.happens in (SCHEDULER_KILLED, RUN_KILLED):
            events = [event.kind for event in world.schedule.events() if event.run == night.run_id]
            middle = ["taken over"] if night.happens == SCHEDULER_KILLED else ["attempt failed", "retrying"]
            yield Checked(f"{night.happens}: the same run goes on", events == ["started", *middle, "succeeded"], ", ".join(events))
            again = night.starts == 2 and night.seen_step <= night.resumed_from < STEPS
            found = f"killed after checkpoint {night.seen_step}, resumed from {night.resumed_from}, checkpoints every {CHECKPOINT_EVERY}"
            yield Checked(f"{night.happens}: no step before the last checkpoint is trained again", again, found)


def _bad_day(world: World) -> Iterator[Checked]:
    for night in world.nights:
        decision = night.decision
        if night.happens != SHUFFLED or decision is None:
            continue
        champion = _champion_at(world, night)
        assert night.outside is not None
        assert champion.outside is not None
        found = f"accuracy {night.outside:.3f} on outside pictures, the champion's {champion.outside:.3f}"
        yield Checked("shuffled labels train a worse model", night.outside < champion.outside, found)
        yield Checked("it is kept out", decision.outcome == "kept", decision.outcome)
        page = html.unescape(Path(world.store.place("schedules", NAME, "page.html")).read_text())
        shown = " ".join(_command(world, "schedule", "show", NAME).split())
        yield Checked("page and `schedule show` say why", decision.reason in page and decision.reason in shown, decision.reason)


def _better(world: World) -> Iterator[Checked]:
    first, last = _champions(world)[0], _champions(world)[-1]
    assert first.outside is not None
    assert last.outside is not None
    found = f"{first.outside:.3f} of day {first.number}, {last.outside:.3f} of day {last.number}"
    yield Checked("the last champion is better than the first on outside pictures", last.outside > first.outside, found)


def _quiet_days(world: World) -> Iterator[Checked]:
    quiet = [event.kind for event in world.schedule.events()].count("nothing new")
    for night in world.nights:
        if night.happens not in (NOTHING, COPIED):
            continue
        (seconds, run), (_, own) = night.cost("run"), night.cost("scheduler")
        told = night.decision.outcome if night.decision is not None else quiet
        holds = told == ("nothing_new" if night.happens == COPIED else 1) and run + own < QUIET_SECONDS
        found = f"{run + own:.2f} CPU s; the run took {seconds:.2f} s"
        yield Checked(f"{night.happens}: nothing is trained, less than {QUIET_SECONDS:g} s of work", holds, found)


def _preparing(world: World) -> Iterator[Checked]:
    """A file has rows of both splits: two shards. The first night finds two files, and a corrected one is made anew beside the night's."""
    judged = [night for night in world.nights if _candidate(night)]
    expected = [4 if night.number == 1 or night.happens == CORRECTED else 2 for night in judged]
    found = f"{sum(night.made for night in judged)} made, {sum(night.shards for night in judged)} taken over or made"
    yield Checked("each night makes the shards of new files alone", [night.made for night in judged] == expected, found)


def _kept(world: World) -> Iterator[Checked]:
    keep = world.schedule.config().keep
    stages = Counter(artifact.manifest.stage for artifact in world.store.artifacts())
    most = keep + 1 + CHAMPIONS_BEFORE
    yield Checked(f"at most {most} data sets and models stay", max(stages.values()) <= most, f"{dict(stages)}")
    left = [file.name for part in ("runs", "staging") for file in Path(world.store.place(part)).glob("*")]
    yield Checked("nothing half made stays", not left, ", ".join(left) or "nothing")


def _by_hand(world: World) -> Iterator[Checked]:
    registry, champions = Registry(None, world.store), _champions(world)
    if len(champions) < 2:
        yield Checked("rollback and promote", False, "there was one champion only")
        return
    before, last = (_version(champions[-2]), _version(champions[-1]))
    _command(world, "rollback", NAME, "--reason", "a look back")
    now = registry.champion(NAME)
    yield Checked("rollback makes the champion before it champion", now is not None and now.version == before, f"version {before}")
    _command(world, "promote", NAME, str(last), "--reason", "it was right")
    now = registry.champion(NAME)
    yield Checked("promote makes the last one champion again", now is not None and now.version == last, f"version {last}")


def _candidate(night: Night) -> bool:
    return night.decision is not None and night.decision.candidate is not None


def _champions(world: World) -> list[Night]:
    return [night for night in world.nights if night.decision is not None and night.decision.outcome == "promoted"]


def _champion_at(world: World, night: Night) -> Night:
    """Whose candidate was champion when that night's was judged."""
    return [each for each in _champions(world) if each.number < night.number][-1]


def _version(night: Night) -> int:
    decision = night.decision
    assert isinstance(decision, Decision)
    assert decision.candidate is not None
    assert decision.candidate.version is not None
    return decision.candidate.version


def _command(world: World, *words: str) -> str:
    """What a Raymill command prints, which has to end well."""
    with redirect_stdout(StringIO()) as said:
        code = main([*words, "--store", world.store.url])
    assert code == 0, f"{words} ended with {code}"
    return said.getvalue()
