"""The Pareto front beside its definition."""

from __future__ import annotations

import random

from components.sweep.front import pareto_front


def test_on_the_front_are_those_that_no_other_beats() -> None:
    source = random.Random(0)
    for count in (1, 2, 7, 40):
        points = [(float(source.randint(1, 6)), float(source.randint(-3, 3))) for _ in range(count)]
        unbeaten = {a for a in points if not any(b[0] <= a[0] and b[1] <= a[1] and b != a for b in points)}
        front = pareto_front(points)
        assert [points[place] for place in front] == sorted(unbeaten)
        assert all(points.index(points[place]) == place for place in front)


def test_of_nothing_there_is_no_front() -> None:
    assert pareto_front([]) == []
