"""Spaces: what they hold, what is drawn from them, and what may not be one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from components.errors import UserError
from components.sweep.search import random_values
from components.sweep.space import Space, in_order


def space(**values: Any) -> Space:
    return Space.parse(values, "test")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "nothing given"),
        ({"log": [1, 2], "uniform": [1, 2]}, "log and uniform given"),
        ({"choice": []}, "empty choice"),
        ({"uniform": [0.6, 0.1]}, r"uniform: \[0.6, 0.1\] is empty"),
        ({"uniform": [0.5, 0.5]}, "is empty"),
        ({"log": [0, 1]}, "begins above 0"),
        ({"log": [-1, 1]}, "begins above 0"),
        ({"integer": [1.5, 3]}, "integer"),
        ({"uniform": [1]}, "missing|required"),
        ({"uniform": [0, float("inf")]}, "finite"),
        ({"unifrom": [1, 2]}, "did you mean 'uniform'"),
        ({"uniform": [0, 1], "when": "sgd"}, "key: value"),
    ],
)
def test_what_is_no_space(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        space(**values)


@pytest.mark.parametrize(
    ("given", "transform"),
    [
        ({"uniform": [-1.0, 3.0]}, lambda x: (x + 1) / 4),
        ({"log": ["1e-4", 0.1]}, lambda x: (np.log(x) - np.log(1e-4)) / np.log(1000)),
    ],
)
def test_numbers_are_even_in_the_scale_of_their_space(given: dict[str, Any], transform: Any) -> None:
    drawn = np.array([random_values({"k": space(**given)}, 0, n)["k"] for n in range(2000)])
    assert stats.kstest(transform(drawn), "uniform").pvalue > 0.01


@pytest.mark.parametrize(("given", "values"), [({"integer": [2, 5]}, [2, 3, 4, 5]), ({"choice": ["a", [1, 2], None]}, ["a", [1, 2], None])])
def test_every_value_is_as_likely(given: dict[str, Any], values: list[Any]) -> None:
    drawn = [random_values({"k": space(**given)}, 0, n)["k"] for n in range(1200)]
    counts = [drawn.count(value) for value in values]
    assert sum(counts) == len(drawn)
    assert stats.chisquare(counts).pvalue > 0.01


def test_a_draw_depends_on_seed_and_number_alone() -> None:
    one = {"a": space(uniform=[0, 1]), "b": space(log=[1, 10])}
    first = [random_values(one, 0, n) for n in range(8)]
    assert [random_values(one, 0, n) for n in reversed(range(8))] == first[::-1]
    assert random_values(one, 1, 0) != first[0]
    assert len({values["a"] for values in first}) == 8
    fewer = {"b": one["b"]}
    assert [random_values(fewer, 0, n)["b"] for n in range(8)] == [values["b"] for values in first]


def test_values_have_few_digits_and_stay_inside() -> None:
    third = space(uniform=[1 / 3, 2 / 3])
    for n in range(200):
        value = random_values({"k": third}, 0, n)["k"]
        assert 1 / 3 <= value <= 2 / 3
        assert value in (1 / 3, 2 / 3) or len(f"{value!r}".removeprefix("0.")) <= 6


def test_a_key_exists_where_its_condition_holds() -> None:
    spaces = {
        "momentum": space(uniform=[0, 1], when={"name": "sgd", "depth": [1, 2]}),
        "name": space(choice=["adamw", "sgd"]),
        "depth": space(integer=[1, 3]),
        "nesterov": space(choice=[True, False], when={"momentum": 0.5}),
    }
    drawn = [random_values(spaces, 0, n) for n in range(200)]
    for values in drawn:
        assert ("momentum" in values) == (values["name"] == "sgd" and values["depth"] < 3)
        assert "nesterov" not in values
    assert 0.2 < np.mean(["momentum" in values for values in drawn]) < 0.5
    assert list(drawn[0]) == [key for key in spaces if key in drawn[0]]


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ({"nome": "sgd"}, "'nome', which does not vary; did you mean 'name'"),
        ({"name": "sdg"}, "name='sdg', which it never is"),
        ({"key": 1}, "on each other"),
    ],
)
def test_conditions_that_cannot_be(when: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        in_order({"name": space(choice=["adamw", "sgd"]), "key": space(integer=[1, 2], when=when)})


@pytest.mark.parametrize("given", [{"log": [0.1, 1.0]}, {"choice": [1, "a"], "when": {"b": [1, 2]}}, {"integer": [0, 3]}])
def test_json_and_back(given: dict[str, Any]) -> None:
    assert space(**given).to_json() == given
    assert Space.parse(space(**given).to_json(), "test") == space(**given)
