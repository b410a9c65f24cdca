"""Search spaces: which values a config key may take, and under which choice of another varied key it exists at all.

{log: [1e-4, 1e-1]}   {uniform: [0.1, 0.6]}   {integer: [1, 4]}   {choice: [relu, gelu]}   {..., when: {model.kind: conv}}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Self

from pydantic import Field, field_validator, model_serializer, model_validator

from components.config import Config
from components.errors import UserError, did_you_mean

KINDS = ("log", "uniform", "integer", "choice")
DIGITS = 6  # significant digits of a drawn number: it reads well, and no machine's last bit decides anything

Values = dict[str, Any]  # dotted config key -> value
Draw = Callable[[str, "Space"], float | int]  # a number in [0, 1) says nothing of a sampler's own mind: it answers in the space's units


class Space(Config):
    """Values of one key: exactly one of `log`, `uniform`, `integer` (both ends count) and `choice`."""

    log: tuple[float, float] | None = None
    uniform: tuple[float, float] | None = None
    integer: tuple[int, int] | None = None
    choice: tuple[Any, ...] | None = None
    when: dict[str, tuple[Any, ...]] = Field(default_factory=dict, description="other varied key -> values with which this one exists")

    @field_validator("choice", mode="before")
    @classmethod
    def _choices_are_values(cls, choice: Any) -> Any:
        if isinstance(choice, (list, tuple)) and not choice:
            raise ValueError("an empty choice has nothing to try; give at least two values")
        return tuple(map(_number_if_one, choice)) if isinstance(choice, (list, tuple)) else choice

    @field_validator("when", mode="before")
    @classmethod
    def _one_value_or_several(cls, when: Any) -> Any:
        if not isinstance(when, Mapping):
            raise ValueError("write {key: value} or {key: [value, value]}")
        lists = {key: values if isinstance(values, (list, tuple)) else (values,) for key, values in when.items()}
        return {key: tuple(map(_number_if_one, values)) for key, values in lists.items()}

    @model_validator(mode="after")
    def _is_one_space(self) -> Self:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"{' and '.join(given) or 'nothing'} given; give one of log, uniform, integer and choice")
        if self.choice is None and self.low >= self.high:
            raise ValueError(f"{self.kind}: [{self.low}, {self.high}] is empty; give the lower end first")
        if self.log is not None and self.low <= 0:
            raise ValueError(f"log: [{self.low}, {self.high}] reaches down to {self.low}; a logarithmic space begins above 0")
        return self

    @model_serializer
    def _only_what_is_given(self) -> dict[str, Any]:
        given = {self.kind: list(getattr(self, self.kind))}
        return given | ({"when": {key: list(values) for key, values in self.when.items()}} if self.when else {})

    @property
    def kind(self) -> str:
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def low(self) -> float:
        """The lower end; for a choice the place of its first value."""
        return 0 if self.choice is not None else getattr(self, self.kind)[0]

    @property
    def high(self) -> float:
        """The upper end; for a choice the place of its last value."""
        return len(self.choice) - 1 if self.choice is not None else getattr(self, self.kind)[1]

    def at(self, share: float) -> float | int:
        """The point at `share` in [0, 1) of the way from `low` to `high`, evenly in the space's own scale."""
        if self.kind in ("integer", "choice"):
            return int(self.low) + int(share * (self.high - self.low + 1))
        if self.log is not None:
            return math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        return self.low + share * (self.high - self.low)

    def value(self, point: float | int) -> Any:
        """The config value at a point: one of the choices, an integer, or a number of few digits."""
        if self.choice is not None:
            return self.choice[int(point)]
        return int(point) if self.integer is not None else min(max(float(f"{point:.{DIGITS}g}"), self.low), self.high)

    def point(self, value: Any) -> float | int:
        """The inverse of `value`."""
        return self.choice.index(value) if self.choice is not None else value

    def exists(self, values: Mapping[str, Any]) -> bool:
        """Whether the key exists beside the `values` of other keys."""
        return all(key in values and values[key] in allowed for key, allowed in self.when.items())


def draw(spaces: Mapping[str, Space], point: Draw) -> Values:
    """One value for each key that exists, each asked of `point` once the keys that it depends on have theirs."""
    values: Values = {}
    for key in in_order(spaces):
        if spaces[key].exists(values):
            values[key] = spaces[key].value(point(key, spaces[key]))
    return {key: values[key] for key in spaces if key in values}


def in_order(spaces: Mapping[str, Space]) -> list[str]:
    """Keys, each after those that its `when` names. Raises UserError for a name that does not vary, a value it never has, and a circle."""
    for key, space in spaces.items():
        for other, allowed in space.when.items():
            if other not in spaces:
                raise UserError(f"vary {key}: when names {other!r}, which does not vary; {did_you_mean(other, spaces)}")
            choices = spaces[other].choice
            never = [value for value in allowed if choices is not None and value not in choices]
            if never:
                raise UserError(f"vary {key}: when {other}={never[0]!r}, which it never is; choose from {list(choices or ())}")
    ordered: list[str] = []
    while len(ordered) < len(spaces):
        ready = [key for key in spaces if key not in ordered and all(other in ordered for other in spaces[key].when)]
        if not ready:
            circle = sorted(set(spaces) - set(ordered))
            raise UserError(f"vary: {', '.join(circle)} exist only in dependence on each other; leave out one `when`")
        ordered += ready
    return ordered


def text(value: Any) -> str:
    """A value as a config file has it, for people."""
    return str(value).lower() if isinstance(value, bool) or value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _number_if_one(value: Any) -> Any:
    """YAML 1.1 reads 3e-4 as text."""
    try:
        return float(value) if isinstance(value, str) and any(c.isdigit() for c in value) else value
    except ValueError:
        return value
