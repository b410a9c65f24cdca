"""From a preset, a config file and `key=value` overrides, in this order, to one typed config.

Preset values lie in `pipelines/presets/`: `families.yaml` says how each family is trained, by `family.kind` also how with a network of
another kind than its own, and a pipeline's own file the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator

from components.config import KIND, Config, merge, override, read_yaml
from components.errors import UserError, did_you_mean
from components.families.contract import Family
from components.families.model_folder import family_class
from components.training.config import TrainConfig

C = TypeVar("C", bound=Config)

PRESETS = ("quick", "base", "full")
NETWORK_KIND = f"model.network.{KIND}"  # in a training section
FOLDER = Path(__file__).parent / "presets"


class Training(Config):
    """How one model is trained: its family, the family's own options, and the run."""

    family: str
    model: SerializeAsAny[Config] = Field(None, description="options of the family")  # type: ignore[assignment]  # None: the family's defaults
    train: TrainConfig = TrainConfig()

    @field_validator("family")
    @classmethod
    def _family_is_known(cls, name: str) -> str:
        family_class(name)
        return name

    @field_validator("model", mode="before")
    @classmethod
    def _model_is_of_the_family(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, Config) or "family" not in info.data:
            return value
        if value is not None and not isinstance(value, Mapping):
            raise UserError(f"model={value!r} is not valid; give options of {info.data['family']!r} as keys and values")
        return family_class(info.data["family"]).Config.parse(value or {}, f"model of {info.data['family']}")


def read_presets(name: str) -> dict[str, dict[str, Any]]:
    """Preset name -> values, of the file `presets/<name>.yaml`."""
    return read_yaml(str(FOLDER / f"{name}.yaml"))


def family_preset(family: str, preset: str) -> dict[str, Any]:
    """How `family` is trained by `preset`; a family without one keeps its defaults."""
    return read_presets("families").get(family, {}).get(preset) or {}


def take_preset(preset: str | None, assignments: Iterable[str]) -> tuple[str | None, list[str]]:
    """The preset that `--preset` or `preset=` names, and the other overrides. Raises UserError for an unknown one, or two that differ."""
    named = [text.partition("=")[2] for text in assignments if text.startswith("preset=")]
    choices = {*named, *([preset] if preset is not None else [])}
    if len(choices) > 1:
        raise UserError(f"preset: {' and '.join(sorted(choices))} are both asked for; choose one")
    for choice in choices:
        if choice not in PRESETS:
            raise UserError(f"preset: unknown preset {choice!r}; {did_you_mean(choice, PRESETS)}")
    return next(iter(choices), None), [text for text in assignments if not text.startswith("preset=")]


def configure(config: C, values: Mapping[str, Any], preset: str | None, file: str | None, assignments: list[str]) -> C:
    """Lays the preset's `values`, the config file and the overrides over `config`, in this order. Raises UserError naming where it fails.

    Where one of them gives a training section another family, the section begins anew, from that family's own preset. Where one gives it
    another kind of network, that kind's preset is laid over it.
    """
    config = merge(_begin(config, values, preset, f"preset {preset}", anew=True), values, f"preset {preset}")
    if file is not None:
        found = read_yaml(file)
        config = _with_kinds(_begin(config, found, preset, file), _kinds_of_sections(found), preset)
        config = merge(config, found, file)
    switches = [text for text in assignments if text.partition("=")[0].endswith(".family")]
    families = {text.partition(".family=")[0]: {"family": text.partition("=")[2]} for text in switches}
    config = _begin(config, families, preset, "command line")
    told = ((key, value) for key, _, value in (text.partition("=") for text in assignments) if f".{key}".endswith(f".{NETWORK_KIND}"))
    kinds = {key.removesuffix(NETWORK_KIND).rstrip("."): value for key, value in told}
    return override(_with_kinds(config, kinds, preset), [text for text in assignments if text not in switches])


def sampler_settings(family: Family, file: str | None, assignments: list[str]) -> Config:
    """Options of a model's sampler: its default, a config file over it, and overrides; raises UserError when it does not generate.

    Where the file or an override asks for another `sampler` than the default has, the options begin anew, from the family's own.
    """
    if family.Sampler is None:
        raise UserError(f"{type(family).__name__} does not generate samples; give a model that does, such as a prior")
    values = {} if file is None else read_yaml(file)
    sampler = family.default_sampler or family.Sampler()
    named: list[Any] = [text.partition("=")[2] for text in assignments if text.startswith("sampler=")] or [values.get("sampler")]
    if named[-1] not in (None, getattr(sampler, "sampler", None)):
        sampler = family.Sampler()
    return override(sampler if file is None else merge(sampler, values, file), assignments)


def _kinds_of_sections(values: Mapping[str, Any]) -> dict[str, str]:
    """Training section -> the kind of network that plain values give it; "" is the section that they are."""
    found: dict[str, str] = {}
    for section, node in [("", values), *values.items()]:
        for key in NETWORK_KIND.split("."):
            node = node.get(key) if isinstance(node, Mapping) else None
        if isinstance(node, str):
            found[section] = node
    return found


def _with_kinds(config: C, kinds: Mapping[str, str], preset: str | None) -> C:
    """With the presets of these kinds of networks laid over training sections, where they have another kind now."""
    for section, kind in kinds.items():
        training: Any = getattr(config, section, None) if section else config
        network = getattr(getattr(training, "model", None), "network", None)
        values = family_preset(f"{training.family}.{kind}", preset or "") if getattr(network, KIND, kind) != kind else {}
        if values:
            merged = merge(training, {"model": {"network": {KIND: kind}}} | values, f"preset {preset}")
            config = config.model_copy(update={section: merged}) if section else merged
    return config


def _begin(config: C, values: Mapping[str, Any], preset: str | None, origin: str, anew: bool = False) -> C:
    """A copy, not checked yet: sections that `values` give another family (with `anew`, any family) are as that family's preset says."""
    for name, section in values.items():
        if not isinstance(section, Mapping) or "family" not in section or name not in type(config).model_fields:
            continue
        present = getattr(config, name)
        if anew or present is None or present.family != section["family"]:
            start = {"family": section["family"], **family_preset(str(section["family"]), preset or "")}
            config = config.model_copy(update={name: Training.parse(start, f"{origin}, {name}")})
    return config
