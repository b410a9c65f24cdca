"""The estimator: a pure function of what it is told, and better than chance."""

from __future__ import annotations

import math

import pytest

from components.sweep.search import Ended, random_values, tpe_values
from components.sweep.space import Space, Values

SPACES = {
    "lr": Space(log=(1e-5, 1.0)),
    "depth": Space(integer=(1, 8)),
    "kind": Space(choice=("a", "b", [1, 2])),
    "decay": Space(uniform=(0.0, 1.0), when={"kind": ("b",)}),
}


def loss(values: Values) -> float:
    """Least at lr=0.01, depth 3, kind b, decay 0.7."""
    other = abs(values["decay"] - 0.7) if values["kind"] == "b" else 1.0
    return abs(math.log10(values["lr"]) + 2) + abs(values["depth"] - 3) / 4 + other


def search(seed: int, trials: int, sign: int = 1) -> list[Ended]:
    history: list[Ended] = []
    for number in range(trials):
        values = tpe_values(SPACES, seed, number, 0, history, "min" if sign == 1 else "max")
        history.append(Ended(values, sign * loss(values), 100, complete=True))
    return history


def test_it_is_a_pure_function_and_keeps_to_the_spaces() -> None:
    history = search(0, 16)
    again = [tpe_values(SPACES, 0, number, 0, history[:number], "min") for number in range(16)]
    assert again == [ended.values for ended in history]
    assert tpe_values(SPACES, 0, 16, 1, history, "min") != tpe_values(SPACES, 0, 16, 0, history, "min")
    for values in again:
        assert 1e-5 <= values["lr"] <= 1
        assert values["depth"] in range(1, 9)
        assert values["kind"] in ("a", "b", [1, 2])
        assert ("decay" in values) == (values["kind"] == "b")


@pytest.mark.parametrize("sign", [1, -1])
def test_it_finds_better_values_than_chance(sign: int) -> None:
    late = [sign * ended.score for ended in search(0, 40, sign)[25:]]
    chance = [loss(random_values(SPACES, 0, number)) for number in range(200)]
    assert sum(late) / len(late) < 0.7 * sum(chance) / len(chance)


def test_scores_that_are_no_numbers_say_nothing() -> None:
    history = search(0, 12)
    broken = [*history, Ended(history[0].values, math.nan, 5, complete=False)]
    assert tpe_values(SPACES, 0, 13, 0, broken, "min") == tpe_values(SPACES, 0, 13, 0, history, "min")
