"""Halving: the verdicts of a rule written out, in whatever order scores arrive."""

from __future__ import annotations

import random

import pytest

from components.sweep.halving import Course, Verdict, rungs, verdicts

RUNGS = (2, 6)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((18, 2, 2, 3), (2, 6)),  # 18 is the end
        ((19, 2, 2, 3), (2, 6, 18)),
        ((100, 7, 10, 2), (14, 21, 42, 84)),  # the first evaluation from 10, 20, 40, 80 on
        ((40, 20, 1, 4), (20,)),  # several milestones at one evaluation
        ((10, 20, 1, 2), ()),
    ],
)
def test_rungs(given: tuple[int, int, int, int], expected: tuple[int, ...]) -> None:
    assert rungs(*given) == expected


def plain(table: list[list[float]], factor: int) -> list[int | None]:
    """Where each trial is stopped, by the rule's words: lower is better, two rungs."""
    stopped: list[int | None] = []
    for n, scores in enumerate(table):
        at = None
        for rung in (0, 1):
            there = [table[m][rung] for m in range(n + 1) if rung == 0 or m == n or stopped[m] is None or stopped[m] == RUNGS[1]]
            better = sum(other < scores[rung] for other in there)
            keep = (len(there) + factor - 1) // factor
            if better >= keep:
                at = RUNGS[rung]
                break
        stopped.append(at)
    return stopped


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_the_rule(factor: int) -> None:
    chance = random.Random(factor)
    table = [[chance.choice(range(20)) / 10 for _ in RUNGS] for _ in range(60)]
    courses = [Course(dict(zip(RUNGS, scores, strict=True)), ended=True) for scores in table]
    found = verdicts(courses, RUNGS, factor, "min")
    assert all(verdict.certain for verdict in found)
    assert [verdict.stopped_at for verdict in found] == plain(table, factor)
    assert 0 < sum(verdict.stopped_at is None for verdict in found) < 60
    flipped = [Course({step: -score for step, score in course.scores.items()}, True) for course in courses]
    assert verdicts(flipped, RUNGS, factor, "max") == found


def test_a_verdict_once_certain_stays_whatever_arrives_when() -> None:
    chance = random.Random(0)
    table = [[chance.random() for _ in RUNGS] for _ in range(12)]
    final = plain(table, 3)
    for _ in range(50):
        come = [0] * 12  # rungs reached so far
        while any(reached < 3 for reached in come):
            n = chance.choice([n for n in range(12) if come[n] < 3])
            come[n] += 1
            courses = [Course(dict(list(zip(RUNGS, table[n], strict=True))[: come[n]]), come[n] == 3) for n in range(12)]
            for verdict, stopped_at in zip(verdicts(courses, RUNGS, 3, "min"), final, strict=True):
                if verdict.stopped_at is not None:
                    assert verdict == Verdict(stopped_at)
                elif verdict.certain:
                    assert stopped_at is None


def test_trial_zero_never_waits_and_later_ones_wait_for_it_alone() -> None:
    late = [Course({}, False), Course({2: 1.0, 6: 1.0}, True), Course({2: 0.5}, False)]
    assert [verdict.certain for verdict in verdicts(late, RUNGS, 2, "min")] == [False, False, False]
    now = [Course({2: 0.9}, False), *late[1:]]
    assert verdicts(now, RUNGS, 2, "min") == [Verdict(None, False), Verdict(2), Verdict(None, False)]


def test_one_that_failed_before_a_rung_holds_nobody_up_and_no_number_is_the_end() -> None:
    courses = [Course({}, True), Course({2: float("nan")}, True), Course({2: 5.0}, False), Course({2: float("nan")}, False)]
    found = verdicts(courses, (2,), 2, "min")
    assert found[0] == Verdict()
    assert found[1] == Verdict(2)
    assert found[2] == Verdict()
    assert found[3] == Verdict(2)


def test_without_rungs_nobody_is_stopped() -> None:
    assert verdicts([Course({1: 0.1}, False), Course({1: 9.0}, True)], (), 3, "min") == [Verdict(), Verdict()]
