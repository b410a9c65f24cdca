"""Typed configuration: frozen, unknown keys rejected, dotted `key=value` overrides, and a fingerprint of any JSON value.

Example: `override(TrainConfig(), ["steps=200", "optimizer.lr=3e-4"])`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar, get_args

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
KIND = "kind"  # the key that tells sections of a union apart


def override(config: C, assignments: Iterable[str], origin: str = "command line") -> C:
    """Applies `dotted.key=value` assignments, each value read as YAML. Raises UserError for a bad key, type or range.

    A section that is one of several kinds begins anew where its `kind` is given another value; other options are those of that kind.
    """
    values = config.to_json()
    for assignment in sorted(assignments, key=lambda text: not text.partition("=")[0].strip().endswith(f".{KIND}")):
        key, separator, text = assignment.partition("=")
        if not separator or not key:
            raise UserError(f"{origin}: {assignment!r} is not an override; write key=value, for example train.steps=200")
        path = key.strip().split(".")
        _assign(values, config, path, _parse_value(text, assignment, origin), origin)
        if path[-1] == KIND:
            values = type(config).parse(values, origin).to_json()  # with the defaults of that kind
    return type(config).parse(values, origin)


def merge(config: C, values: Mapping[str, Any], origin: str) -> C:
    """Lays nested plain `values` (a config file, a preset) over `config`; raises UserError as `override` does.

    As there, a section that is given another `kind` begins anew.
    """

    def lay(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
        merged = dict(base)
        for key, value in top.items():
            below = merged.get(key)
            if isinstance(below, dict) and isinstance(value, Mapping) and value.get(KIND, below.get(KIND)) == below.get(KIND):
                merged[key] = lay(below, value)
            else:
                merged[key] = value
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
    if path[-1] == KIND and value != node[KIND]:
        node.clear()
    node[path[-1]] = value


def _unknown(node: Any, path: list[str], origin: str) -> Any:
    hint = did_you_mean(path[-1], node) if isinstance(node, dict) else f"{'.'.join(path[:-1])!r} has no keys below it"
    raise UserError(f"{origin}: unknown key {'.'.join(path)!r}; {hint}")


def _first_problem(cls: type[Config], error: ValidationError, origin: str) -> str:
    problem = error.errors(include_url=False)[0]
    path, section = _place(cls, problem["loc"])
    key = ".".join(path) or cls.__name__
    if problem["type"] == "extra_forbidden":
        return f"{origin}: unknown key {key!r}; {did_you_mean(path[-1], section.model_fields if section is not None else ())}"
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        kind, kinds = str(problem["input"].get(KIND, "")), _kinds(section, path[-1])
        return f"{origin}: {key}.{KIND}={kind} is not known; {did_you_mean(kind, kinds)}"
    message = problem["msg"].removeprefix("Value error, ")
    if isinstance(problem["input"], (Mapping, Config)):  # a check of a whole section: its message names the values that do not go together
        return f"{origin}: {f'{key}: ' if path else ''}{message}"
    return f"{origin}: {key}={problem['input']!r} is not valid: {message}"


def _place(cls: type[Config], loc: tuple[Any, ...]) -> tuple[list[str], type[Config] | None]:
    """The keys to a place that pydantic calls `loc`, naming also the kinds of unions on its way; and the section that the last is in."""
    path: list[str] = []
    section: type[Config] | None = cls
    below: type[Config] | None = cls
    kinds: dict[str, type[Config]] = {}
    for part in map(str, loc):
        if part in kinds:
            below, kinds = kinds[part], {}
            continue
        path.append(part)
        section, kinds = below, _kinds(below, part)
        nested = section.model_fields[part].annotation if section is not None and part in section.model_fields else None
        below = nested if isinstance(nested, type) and issubclass(nested, Config) else None
    return path, section


def _kinds(section: type[Config] | None, key: str) -> dict[str, type[Config]]:
    """The kinds that the section `key` can be of; none where it is no union."""
    field = section.model_fields.get(key) if section is not None else None
    if field is None or field.discriminator != KIND:
        return {}
    return {kind: cls for cls in get_args(field.annotation) for kind in get_args(cls.model_fields[KIND].annotation)}
