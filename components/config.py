"""Typed configuration: frozen, unknown keys rejected, dotted `key=value` overrides, and a fingerprint of any JSON value.

Example: `override(TrainConfig(), ["steps=200", "optimizer.lr=3e-4"])`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from components.errors import UserError, did_you_mean


class Config(BaseModel):
    """Base of every configuration: immutable, and a misspelt key is an error instead of an option without effect."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    @classmethod
    def parse(cls, values: Mapping[str, Any], origin: str) -> Self:
        """Validates plain values; raises UserError naming `origin`, the key, the value and what was expected."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise UserError(_first_problem(cls, error, origin)) from None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `type(self).parse(self.to_json(), "...")` gives an equal config."""
        return self.model_dump(mode="json")


C = TypeVar("C", bound=Config)


def override(config: C, assignments: Iterable[str], origin: str = "command line") -> C:
    """Applies `dotted.key=value` assignments, each value read as YAML. Raises UserError for a bad key, type or range."""
    values = config.to_json()
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator or not key:
            raise UserError(f"{origin}: {assignment!r} is not an override; write key=value, for example train.steps=200")
        _assign(values, config, key.strip().split("."), _parse_value(text, assignment, origin), origin)
    return type(config).parse(values, origin)


def merge(config: C, values: Mapping[str, Any], origin: str) -> C:
    """Lays nested plain `values` (a config file, a preset) over `config`; raises UserError as `override` does."""

    def lay(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
        merged = dict(base)
        for key, value in top.items():
            below = merged.get(key)
            merged[key] = lay(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
        return merged

    return type(config).parse(lay(config.to_json(), values), origin)


def read_yaml(path: str) -> dict[str, Any]:
    """Reads a YAML (or JSON) mapping from a local file; raises UserError when it is missing, unreadable or no mapping."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"config file {path!r} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"config file {path!r} holds {type(values).__name__}, expected a mapping of keys to values")
    return values


def fingerprint(value: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of `value` (a Config or JSON value) as canonical JSON."""
    plain = value.to_json() if isinstance(value, Config) else value
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(before: Mapping[str, Any], after: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Dotted key -> value of what nested plain `after` has otherwise than `before`."""
    found: dict[str, Any] = {}
    for key, value in after.items():
        known = before.get(key)
        if isinstance(value, Mapping) and isinstance(known, Mapping):
            found |= differences(known, value, f"{above}{key}.")
        elif value != known:
            found[above + key] = value
    return found


def _parse_value(text: str, assignment: str, origin: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"{origin}: the value in {assignment!r} is not valid YAML; quote it") from None
    if isinstance(value, str):  # YAML 1.1 reads 3e-4 as text
        try:
            return float(value) if any(c.isdigit() for c in value) else value
        except ValueError:
            return value
    return value


def _assign(values: dict[str, Any], config: Config, path: list[str], value: Any, origin: str) -> None:
    node: Any = values
    for depth, part in enumerate(path[:-1]):
        node = node.get(part) if isinstance(node, dict) and part in node else _unknown(node, path[: depth + 1], origin)
    if not isinstance(node, dict) or path[-1] not in node:
        _unknown(node, path, origin)
    node[path[-1]] = value


def _unknown(node: Any, path: list[str], origin: str) -> Any:
    hint = did_you_mean(path[-1], node) if isinstance(node, dict) else f"{'.'.join(path[:-1])!r} has no keys below it"
    raise UserError(f"{origin}: unknown key {'.'.join(path)!r}; {hint}")


def _first_problem(cls: type[Config], error: ValidationError, origin: str) -> str:
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"]) or cls.__name__
    if problem["type"] == "extra_forbidden":
        return f"{origin}: unknown key {key!r}; {did_you_mean(str(problem['loc'][-1]), _fields_at(cls, problem['loc'][:-1]))}"
    message = problem["msg"].removeprefix("Value error, ")
    if isinstance(problem["input"], (Mapping, Config)):  # a check of a whole section: its message names the values that do not go together
        return f"{origin}: {f'{key}: ' if problem['loc'] else ''}{message}"
    return f"{origin}: {key}={problem['input']!r} is not valid: {message}"


def _fields_at(cls: type[Config], path: tuple[Any, ...]) -> list[str]:
    for part in path:
        field = cls.model_fields.get(str(part))
        nested = field.annotation if field is not None else None
        if not (isinstance(nested, type) and issubclass(nested, Config)):
            return []
        cls = nested
    return list(cls.model_fields)
