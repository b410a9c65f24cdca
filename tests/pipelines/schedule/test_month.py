"""A few simulated days, and by `-m slow` the whole month: real schedulers, real runs, real kills (`benchmarks/month.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.month import CORRECTED, MONTH, NOTHING, SCHEDULER_KILLED, SHUFFLED, World
from benchmarks.month_checks import check

pytest.importorskip("mlflow")

DAYS = {2: SCHEDULER_KILLED, 3: NOTHING, 4: SHUFFLED, 5: CORRECTED}


@pytest.mark.parametrize(("days", "happenings"), [(5, DAYS), pytest.param(30, MONTH, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_days_of_retraining(days: int, happenings: Mapping[int, str], tmp_path: Path) -> None:
    world = World(tmp_path, happenings=happenings)
    try:
        world.begin()
        for number in range(1, days + 1):
            world.live(number)
        found = check(world)
    finally:
        world.close()
    assert len(found) > 10
    assert not [f"{each.what}: {each.found}" for each in found if not each.holds]
