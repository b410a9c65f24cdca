"""The config of a sampler sweep: what varies in how a trained model draws, and what decides. Every mistake is found here.

vary:
  steps: {choice: [5, 10, 20, 50]}
  guidance: {uniform: [1, 4]}
trials: 24
samples: 2000
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator, model_validator

from components.config import Config, merge, override, read_yaml
from components.errors import UserError, did_you_mean
from components.evaluation.sampling import picture_shape
from components.families.contract import Family
from components.families.model_folder import family_class
from components.sweep.search import grid_values, random_values
from components.sweep.space import Space, Values, in_order
from pipelines.sweep_config import CHECKED_DRAWS, Resources, assignments_of, parse_spaces, read_vary, show_values

BATCH_SIZE = "batch_size"  # the option of samplers that samples do not depend on
TRIALS = 16  # where none are asked for and there is no grid


class Quality(Config):
    """The score that says which setting is best; the lowest is."""

    score: Literal["fd", "kid"] = "fd"


class SamplerSweepConfig(Config):
    """A sampler sweep as a value."""

    family: str
    base: SerializeAsAny[Config] = Field(None, description="options of the sampler that do not vary")  # type: ignore[assignment]  # None: as they are
    vary: dict[str, Space] = Field(default_factory=dict, description="option of the sampler -> space")
    judge: Quality = Quality()
    search: Literal["random", "grid", "tpe"] = "random"
    trials: int | None = Field(None, gt=0, description=f"settings to try, {TRIALS} if not told; a grid has as many as it has")
    ahead: int = Field(4, gt=0, description="tpe: trial n is drawn from trials up to n - ahead, so that so many run at once")
    samples: int = Field(1000, gt=0, description="of every setting, the same rows of the same seed")
    split: str = Field("train", description="the real pictures that samples are compared with")
    seed: int = Field(0, ge=0, description="of the samples and of the search")
    resources: Resources = Resources()

    @field_validator("base", mode="before")
    @classmethod
    def _base_is_of_the_family(cls, value: Any, info: ValidationInfo) -> Any:
        sampler = family_class(info.data["family"]).Sampler if "family" in info.data else None
        return (
            value if isinstance(value, Config) or sampler is None else sampler.parse(value or {}, f"base, sampler of {info.data['family']}")
        )

    @field_validator("vary", mode="before")
    @classmethod
    def _spaces(cls, vary: Any) -> Any:
        return parse_spaces(vary)

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        if self.search == "grid" and self.trials is not None:
            raise ValueError(f"trials={self.trials} has no effect with search=grid, which tries every combination; leave it out")
        if self.search != "tpe" and self.ahead != type(self).model_fields["ahead"].default:
            raise ValueError("ahead has no effect without search=tpe")
        return self

    @property
    def num_trials(self) -> int:
        """How many settings there are to try, at most."""
        return len(grid_values(self.vary)) if self.search == "grid" else self.trials or TRIALS

    def identity(self) -> dict[str, Any]:
        """What decides the result, as JSON values."""
        trials = {} if self.search == "grid" else {"trials": self.num_trials}
        return {name: value for name, value in self.to_json().items() if name != "resources"} | trials


def configure_sampler_sweep(family: str, file: str | None, vary: Iterable[str], assignments: list[str]) -> SamplerSweepConfig:
    """From a config file, `--vary` and overrides, in this order; raises UserError naming where it fails."""
    if family_class(family).Sampler is None:
        raise UserError(f"a {family} does not generate samples; sweep the sampler of a model that does, such as a prior")
    config = SamplerSweepConfig.parse({"family": family}, "command line")
    if file is not None:
        found = read_yaml(file)
        if found.get("family", family) != family:
            raise UserError(f"{file} is about family {found['family']!r}, the model is a {family!r}; give the same")
        config = merge(config, found, file)
    spaces = config.to_json()["vary"] | read_vary(vary, "steps='choice: [5, 10, 20]'")
    return override(SamplerSweepConfig.parse(config.to_json() | {"vary": spaces}, "--vary"), assignments)


def require_possible(config: SamplerSweepConfig, model: Family) -> None:
    """Raises UserError for whatever of the sweep can be known to fail on this model."""
    picture_shape(model)
    if not config.vary:
        raise UserError("nothing varies; give --vary KEY=SPACE, for example --vary steps='choice: [5, 10, 20]'")
    known = config.base.to_json()
    for key in in_order(config.vary):
        if key not in known:
            raise UserError(f"vary: {config.family} has no sampler option {key!r}; {did_you_mean(key, known)}")
        if key == BATCH_SIZE:
            raise UserError("vary batch_size: samples do not depend on it; leave it out")
    if config.search == "grid":
        drawn = grid_values(config.vary)
    else:
        count = config.num_trials if config.search == "random" else CHECKED_DRAWS
        drawn = [random_values(config.vary, config.seed, number) for number in range(count)]
    for number, values in enumerate(drawn):
        check_setting(config, values, model, f"trial {number} ({show_values(values)})")


def check_setting(config: SamplerSweepConfig, values: Values, model: Family, origin: str) -> None:
    """Raises UserError when the model cannot draw with these values, as far as it knows without drawing."""
    sampler = sampler_of(config, values, origin)
    try:
        model.settled(sampler)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None


def sampler_of(config: SamplerSweepConfig, values: Values, origin: str = "trial") -> Config:
    """The sampler of one trial; raises UserError when its values do not go together."""
    return override(config.base, assignments_of(values), origin)


def evaluate_command(config: SamplerSweepConfig, values: Values, model: str, data: str, judge: str) -> str:
    """The command line that draws and scores just these samples, whatever is or will be written as the model's default: it names every
    option that samples depend on."""
    options = assignments_of({key: value for key, value in sampler_of(config, values).to_json().items() if key != BATCH_SIZE})
    flags = ["--judge", judge, "--samples", str(config.samples), "--seed", str(config.seed)]
    flags += ["--split", config.split] if config.split != "train" else []
    return shlex.join(["raymill", "evaluate", model, data, *flags, *options])
