"""When a run stops for more workers: only if it ends earlier by that, and not too often."""

from __future__ import annotations

import pytest

from clusters.growth import Growth


def growth(rate: float = 1.0) -> Growth:
    """A group that took 10 seconds to start and has trained 20 seconds at `rate` steps a second."""
    group = Growth(interval=30.0, started=0.0)
    group.ready = 10.0
    group.see(0, 10.0)
    group.see(int(20 * rate), 30.0)
    return group


def test_the_time_left_is_that_of_the_present_rate() -> None:
    assert growth(rate=2.0).seconds_left(100, 30.0) == pytest.approx(30.0)
    assert growth(rate=2.0).seconds_left(100, 36.0) == pytest.approx(24.0)


@pytest.mark.parametrize(
    ("size", "larger", "steps", "worthwhile"),
    [
        (1, 3, 43, True),  # 23 s left, 8 with three workers: saves 15.3, costs 15
        (1, 3, 42, False),  # saves 14.7
        (2, 3, 66, True),  # 46 s left, 31 with one more
        (2, 3, 64, False),
        (3, 3, 1000, False),
    ],
)
def test_a_change_must_save_more_than_it_costs(size: int, larger: int, steps: int, worthwhile: bool) -> None:
    assert growth().worthwhile(size, larger, steps, 30.0) is worthwhile


def test_not_twice_within_the_interval_and_not_before_a_rate_is_known() -> None:
    group = growth()
    assert not group.worthwhile(1, 2, 10_000, 29.9)
    assert group.worthwhile(1, 2, 10_000, 30.0)
    group.forget()
    assert not group.worthwhile(1, 2, 10_000, 31.0)
    group.see(5, 31.0)
    assert not group.worthwhile(1, 2, 10_000, 32.0)
