"""Options of the sweep scheduler `pbt`, population based training (`components/sweep/population.py`), and what such a sweep asks for.

scheduler: pbt
trials: 8                     # members of the population
pbt: {interval_steps: 200}    # steps of a generation
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from components.config import Config
from components.errors import UserError
from components.families.contract import mutable_keys
from components.families.model_folder import family_class
from components.training.config import TrainConfig

if TYPE_CHECKING:
    from pipelines.sweep_config import SweepConfig

LEAST_MEMBERS = 4
GENERATIONS = 10  # where interval_steps is left open, about


class Pbt(Config):
    """How often the worst copy the best, and how values change then."""

    interval_steps: int | None = Field(None, gt=0, description="steps of a generation; default: a tenth of train.steps")
    quantile: float = Field(0.25, gt=0, le=0.5, description="share of the members that copies, and share that is copied")
    resample: float = Field(0.25, ge=0, le=1, description="probability that a copied value is drawn anew")
    factors: tuple[float, float] = Field((0.8, 1.25), description="else it is multiplied by one of these")

    @model_validator(mode="after")
    def _factors_lead_both_ways(self) -> Self:
        low, high = self.factors
        if not 0 < low < 1 < high:
            raise ValueError(f"factors=[{low:g}, {high:g}] do not lead down and up; give one between 0 and 1, then one above 1")
        return self


def require_a_population(config: SweepConfig) -> None:
    """Raises ValueError for what does not go together with `scheduler=pbt`."""
    if config.search != "random":
        raise ValueError(f"search={config.search} has no effect on scheduler=pbt, which changes values itself; leave it out")
    if config.trials < LEAST_MEMBERS:
        raise ValueError(f"trials={config.trials} is too small a population for scheduler=pbt; give at least {LEAST_MEMBERS}")
    if config.train.publish == "best" or config.train.keep_best:
        raise ValueError("train.keep_best and train.publish=best look at one run's checkpoints, a member of pbt has many; set 0 and last")
    allowed = mutable_keys(family_class(config.family))
    for key, space in config.vary.items():
        if key not in allowed:
            raise ValueError(f"vary {key}: scheduler=pbt changes values while training, which only {', '.join(allowed)} can; leave it out")
        if space.when:
            raise ValueError(f"vary {key}: scheduler=pbt has no conditional spaces; leave `when` out")
        if space.choice is not None:
            raise ValueError(f"vary {key}: scheduler=pbt multiplies values, which a choice has no room for; give log, uniform or integer")
        if key == "train.optimizer.momentum" and config.train.optimizer.name != "sgd":
            raise ValueError(f"vary {key}: it has no effect on optimizer={config.train.optimizer.name}; leave it out or choose sgd")


def with_generations(config: SweepConfig) -> tuple[SweepConfig, list[str]]:
    """The config with `pbt.interval_steps` and `train.evaluate_every` filled in, and lines that tell so; raises UserError if they clash."""
    train, pbt, told = config.train, config.pbt, []
    interval, every = pbt.interval_steps, train.evaluate_every
    if interval is None:
        interval = -(-train.steps // (GENERATIONS * (every or 1))) * (every or 1)
        told.append(f"pbt.interval_steps={interval}: about a tenth of train.steps")
    if interval >= train.steps:
        raise UserError(f"pbt has no second generation: pbt.interval_steps={interval} is not below train.steps={train.steps}; lower it")
    if not every:
        train = TrainConfig.parse(train.to_json() | {"evaluate_every": interval}, "pbt")
        told.append(f"train.evaluate_every={interval}: pbt needs scores at the end of each generation")
    elif interval % every:
        raise UserError(
            f"pbt.interval_steps={interval} is no multiple of train.evaluate_every={every}, but a generation ends with scores; change one"
        )
    return config.model_copy(update={"train": train, "pbt": pbt.model_copy(update={"interval_steps": interval})}), told


def generations(config: SweepConfig) -> list[range]:
    """The steps of each generation, of a config that `with_generations` completed; the last may be shorter."""
    assert config.pbt.interval_steps is not None
    interval, steps = config.pbt.interval_steps, config.train.steps
    return [range(first, min(first + interval, steps)) for first in range(0, steps, interval)]
