"""The config of a sweep: a training as `raymill train` takes it, what varies in it, and who decides. Every mistake is found here.

family: classifier
train: {steps: 1600}
vary:
  train.optimizer.lr: {log: [1.0e-3, 1.0e-1]}
  model.dropout: {uniform: [0, 0.5]}
trials: 16
scheduler: asha
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self

import yaml
from pydantic import Field, field_validator, model_validator

from components.config import Config, differences, override, read_yaml
from components.data.columns import DataShape
from components.errors import UserError, did_you_mean
from components.families.model_folder import family_class
from components.sweep.halving import rungs
from components.sweep.search import random_values
from components.sweep.space import Space, Values, in_order, text
from components.training.config import TrainConfig
from components.training.loop import check_fits
from pipelines.population_config import Pbt, require_a_population, with_generations
from pipelines.settings import Training, configure, family_preset

CHECKED_DRAWS = 64  # configs drawn at random that must be valid before a sweep starts; all its trials where they are drawn at random


class Judge(Config):
    """The held-out score that says which trial is best."""

    score: str
    best: Literal["min", "max"]


class Asha(Config):
    """Options of the scheduler `asha`."""

    grace_steps: int | None = Field(None, gt=0, description="no trial is stopped before; default: two rungs before the end")
    reduction_factor: int = Field(3, ge=2, description="one in so many goes on from a rung")


class Resources(Config):
    """Of one trial. They decide nothing about results, and are no part of the artifact's fingerprint."""

    cpus: float = Field(1.0, gt=0)
    gpus: float | None = Field(None, ge=0, description="a part of one is allowed; default: one where the cluster has any, else none")


class SweepConfig(Training):
    """A sweep as a value."""

    vary: dict[str, Space] = Field(default_factory=dict, description="dotted config key -> space")
    judge: Judge | None = Field(None, description="default: the family's headline score")
    trials: int = Field(16, gt=0)
    search: Literal["random", "tpe"] = "random"
    ahead: int = Field(4, gt=0, description="tpe: trial n is drawn from trials up to n - ahead, so that so many run at once")
    scheduler: Literal["none", "asha", "pbt"] = "none"
    asha: Asha = Asha()
    pbt: Pbt = Pbt()
    seed: int = Field(0, ge=0, description="of the search; train.seed is the trials'")
    resources: Resources = Resources()

    @field_validator("vary", mode="before")
    @classmethod
    def _spaces(cls, vary: Any) -> Any:
        return parse_spaces(vary)

    @model_validator(mode="after")
    def _sweep_options_have_an_effect(self) -> Self:
        if self.scheduler != "asha" and self.asha != Asha():
            raise ValueError("asha.* has no effect without scheduler=asha")
        if self.scheduler != "pbt" and self.pbt != Pbt():
            raise ValueError("pbt.* has no effect without scheduler=pbt")
        if self.search != "tpe" and self.ahead != type(self).model_fields["ahead"].default:
            raise ValueError("ahead has no effect without search=tpe")
        for key in self.vary:
            if key.partition(".")[0] not in ("model", "train"):
                raise ValueError(f"vary {key}: only keys of model and train can vary, such as train.optimizer.lr")
            if key == "train.held_out":
                raise ValueError(f"vary {key}: scores of different rows do not compare; leave it out")
            if self.scheduler == "asha" and key in ("train.steps", "train.evaluate_every", "train.evaluate_rows"):
                raise ValueError(f"vary {key}: asha compares trials at equal steps on equal rows; leave it out, or take scheduler=none")
        if self.scheduler == "pbt":
            require_a_population(self)
        return self

    @property
    def base(self) -> Training:
        """The training that trials vary."""
        return Training.parse({"family": self.family, "model": self.model.to_json(), "train": self.train.to_json()}, "sweep")

    @property
    def rungs(self) -> tuple[int, ...]:
        """The steps at which asha judges; none without it."""
        if self.scheduler != "asha":
            return ()
        assert self.asha.grace_steps is not None, "resolve fills it in"
        return rungs(self.train.steps, self.train.evaluate_every, self.asha.grace_steps, self.asha.reduction_factor)

    def identity(self) -> dict[str, Any]:
        """What decides the result of a sweep that `resolve` completed, as JSON values."""
        idle = {"resources"} if self.scheduler == "pbt" else {"resources", "pbt"}
        return {name: value for name, value in self.to_json().items() if name not in idle}


def parse_spaces(vary: Any) -> dict[str, Space]:
    """One by one, so that a mistake in a space is told with its key."""
    if not isinstance(vary, Mapping):
        raise ValueError("give a mapping of dotted config keys to spaces")
    return {key: space if isinstance(space, Space) else _parse_space(key, space) for key, space in vary.items()}


def _parse_space(key: str, values: Any) -> Space:
    if not isinstance(values, Mapping):
        raise ValueError(f"{key}: {values!r} is no space; write one such as {{uniform: [0, 1]}}")
    return Space.parse(values, f"vary {key}")


def read_vary(assignments: Iterable[str], example: str = "train.optimizer.lr='log: [1e-3, 1e-1]'") -> dict[str, Any]:
    """`key=space` texts of the command line as plain values; raises UserError for one that is not such a text."""
    spaces: dict[str, Any] = {}
    for assignment in assignments:
        key, separator, space = assignment.partition("=")
        try:
            values = yaml.safe_load(space)
        except yaml.YAMLError:
            values = None
        if not separator or not isinstance(values, dict):
            raise UserError(f"--vary {assignment!r} is not KEY=SPACE, for example {example}")
        if key in spaces:
            raise UserError(f"--vary {key} is given twice; give each key one space")
        spaces[key] = values
    return spaces


def configure_sweep(family: str, preset: str | None, file: str | None, vary: Iterable[str], assignments: list[str]) -> SweepConfig:
    """From the family's preset, a config file, `--vary` and overrides, in this order; raises UserError naming where it fails."""
    asked = read_yaml(file).get("family", family) if file is not None else family
    if asked != family:
        raise UserError(f"{file} is about family {asked!r}, the command line about {family!r}; give the same")
    config = configure(SweepConfig.parse({"family": family}, "command line"), family_preset(family, preset or ""), preset, file, [])
    spaces = config.to_json()["vary"] | read_vary(vary)  # a space replaces one that the file has, it is not laid over it
    return override(SweepConfig.parse(config.to_json() | {"vary": spaces}, "--vary"), assignments)


def resolve(config: SweepConfig, data: DataShape, splits: Iterable[str], url: str) -> tuple[SweepConfig, list[str]]:
    """The sweep with everything filled in that it leaves open, and lines that tell what was; raises UserError for what cannot work.

    Known scores are not looked at here: that needs a model (`pipelines/sweep.py`).
    """
    if not config.vary:
        raise UserError("nothing varies; give --vary KEY=SPACE, for example --vary train.optimizer.lr='log: [1e-3, 1e-1]'")
    if config.train.held_out not in splits:
        raise UserError(f"a sweep compares held-out scores, but {url} has no {config.train.held_out} split; prepare the data with one")
    known = _keys(config.base.to_json())
    for key in in_order(config.vary):
        if key not in known:
            raise UserError(f"vary: unknown key {key!r}; {did_you_mean(key, known)}")
    config, told = _with_evaluations(config)
    if config.judge is None:
        score, best = family_class(config.family).headline
        config = config.model_copy(update={"judge": Judge(score=score, best=best)})
    for number in range(config.trials if config.search == "random" else CHECKED_DRAWS):
        values = random_values(config.vary, config.seed, number)
        check_trial(config, values, data, f"trial {number} ({show_values(values)})")
    return config, told


def settings_of(config: SweepConfig, values: Values, origin: str = "trial") -> Training:
    """The training of one trial; raises UserError when its values do not go together."""
    return override(config.base, assignments_of(values), origin)


def check_trial(config: SweepConfig, values: Values, data: DataShape, origin: str) -> None:
    """Raises UserError when a trial of these values could not start."""
    settings = settings_of(config, values, origin)
    cls = family_class(settings.family)
    cls.fit(settings.model, data)
    check_fits(settings.train, 1)


def assignments_of(values: Mapping[str, Any]) -> list[str]:
    """Values as `key=value` texts that give the same values again."""
    return [f"{key}={value if isinstance(value, str) and _is_plain(value) else json.dumps(value)}" for key, value in values.items()]


def show_values(values: Mapping[str, Any]) -> str:
    """`lr=0.01, dropout=0.2`: values by the last parts of their keys, for people."""
    return ", ".join(f"{key.rpartition('.')[2]}={text(value)}" for key, value in values.items())


def train_command(settings: Training, data: str, children: Iterable[str], preset: str | None) -> str:
    """The command line that trains just this, given nothing but the preset."""
    begin = configure(Training.parse({"family": settings.family}, "train"), family_preset(settings.family, preset or ""), preset, None, [])
    assignments = assignments_of(differences(begin.to_json(), settings.to_json()))
    options = (["--preset", preset] if preset else []) + [word for child in children for word in ("--with", child)]
    return shlex.join(["raymill", "train", settings.family, data, *assignments, *options])


def _with_evaluations(config: SweepConfig) -> tuple[SweepConfig, list[str]]:
    """Fills in train.evaluate_every, and the scheduler's steps, where it needs them."""
    if config.scheduler == "pbt":
        return with_generations(config)
    if config.scheduler != "asha":
        return config, []
    train, asha, told = config.train, config.asha, []
    grace = asha.grace_steps or max(train.evaluate_every, -(-train.steps // asha.reduction_factor**2))
    if not train.evaluate_every:
        train = TrainConfig.parse(train.to_json() | {"evaluate_every": grace}, "asha")
        told.append(f"train.evaluate_every={grace}: asha needs scores on the way")
    config = config.model_copy(update={"train": train, "asha": asha.model_copy(update={"grace_steps": grace})})
    if not config.rungs:
        raise UserError(
            f"asha has nothing to judge: asha.grace_steps={grace} and train.evaluate_every={train.evaluate_every} leave no rung before "
            f"train.steps={train.steps}; lower them"
        )
    return config, told


def _keys(values: Mapping[str, Any], before: str = "") -> set[str]:
    """Dotted keys of nested values, inner nodes too."""
    keys: set[str] = set()
    for key, value in values.items():
        keys |= {before + key} | (_keys(value, f"{before}{key}.") if isinstance(value, Mapping) else set())
    return keys


def _is_plain(text: str) -> bool:
    """Whether YAML reads the text as just this text."""
    try:
        return yaml.safe_load(text) == text and not any(c.isdigit() for c in text)
    except yaml.YAMLError:
        return False
