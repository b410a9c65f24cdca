"""When a schedule is due: times of its cron line, and whether its source holds other data than the last run took.

Cron lines are read by `cronsim`. At a change to summer time a time of day that does not exist falls due once, as the clock jumps over
it; at the change back a time of day that exists twice falls due the first time only. Lines that are due every hour keep to the hours
that pass.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from zoneinfo import ZoneInfo

from cronsim import CronSim

from components import storage
from components.config import fingerprint
from components.errors import UserError
from pipelines.schedule.config import Trigger


def next_due(trigger: Trigger, after: datetime) -> datetime | None:
    """The first due time later than `after`, in UTC; None without a cron line."""
    return next(_due_times(trigger, after), None)


def due_between(trigger: Trigger, after: datetime, until: datetime) -> list[datetime]:
    """Due times later than `after` and not later than `until`, in order, in UTC; none without a cron line."""
    found = []
    for due in _due_times(trigger, after):
        if due > until:
            break
        found.append(due)
    return found


def _due_times(trigger: Trigger, after: datetime) -> Iterator[datetime]:
    if trigger.cron is not None:
        for due in CronSim(trigger.cron, after.astimezone(ZoneInfo(trigger.time_zone))):
            yield due.astimezone(UTC)


@dataclass(frozen=True)
class Listing:
    """What a source holds, seen from outside."""

    fingerprint: str
    changed: datetime  # of the file that changed last


def look(source: str) -> Listing:
    """Lists the files of a source, hidden ones aside, and reads none. Raises UserError when there are none, or it cannot be listed."""
    place = source if storage.is_remote(source) else os.path.expanduser(source)
    single = storage.stamp(place)
    found = storage.stamps(place) if single is None else {place.rpartition("/")[2]: single}
    stamps = {path: stamp for path, stamp in found.items() if not _hidden(path)}
    if not stamps:
        raise UserError(f"source {source} holds no files; give a folder or URL with data")
    changed = max(stamp.changed for stamp in stamps.values())
    return Listing(fingerprint({path: [stamp.bytes, stamp.tag] for path, stamp in stamps.items()}), datetime.fromtimestamp(changed, UTC))


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(path).parts)
