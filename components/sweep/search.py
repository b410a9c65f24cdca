"""What to try next, as a pure function of the seed, the trial's number and what earlier trials came to.

`random` draws every trial by itself, `grid` is every combination of choices. `tpe` is the tree-structured Parzen estimator (Bergstra et
al. 2011, "Algorithms for hyper-parameter optimization", NeurIPS 24) as optuna has it; trial n is drawn from trials 0 .. n - ahead,
whichever of the later ones have ended by then, so that the pace of the machines decides nothing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from components.errors import UserError
from components.seeds import derive_seed
from components.sweep.space import Space, Values, draw, in_order

ATTEMPTS = 64  # draws of a trial before a space counts as used up
MODEL_ATTEMPTS = 8  # of these, how many the estimator gets


@dataclass(frozen=True)
class Ended:
    """What a trial came to: its score at its last step; `complete` unless it was stopped there."""

    values: Values
    score: float
    step: int
    complete: bool


def random_values(spaces: Mapping[str, Space], seed: int, number: int, attempt: int = 0) -> Values:
    """Trial `number`'s values, each key from a generator of its own: another key more or less changes none of them."""

    def point(key: str, space: Space) -> float | int:
        return space.at(random.Random(derive_seed("sweep", seed, number, attempt, key)).random())

    return draw(spaces, point)


def grid_values(spaces: Mapping[str, Space]) -> list[Values]:
    """Every combination of choices once, the last key fastest; raises UserError for a space that is none."""
    for key, space in spaces.items():
        if space.choice is None:
            raise UserError(
                f"vary {key}: a grid needs a choice, and {space.kind}: [{space.low:g}, {space.high:g}] is none; list its values"
            )
    found: list[Values] = [{}]
    for key in in_order(spaces):
        space = spaces[key]
        found = [values | more for values in found for more in ([{key: v} for v in space.choice or ()] if space.exists(values) else [{}])]
    return [{key: values[key] for key in spaces if key in values} for values in found]


def tpe_values(
    spaces: Mapping[str, Space], seed: int, number: int, attempt: int, history: Sequence[Ended], best: Literal["min", "max"]
) -> Values:
    """Trial `number`'s values given what earlier ones came to."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=derive_seed("sweep", seed, number, attempt) % 2**32)
    study = optuna.create_study(sampler=sampler, direction="minimize" if best == "min" else "maximize")
    for ended in history:
        if math.isfinite(ended.score):
            study.add_trial(_frozen(spaces, ended))
    trial = study.ask()

    def point(key: str, space: Space) -> float | int:
        if space.choice is not None:
            return trial.suggest_categorical(key, range(len(space.choice)))
        if space.integer is not None:
            return trial.suggest_int(key, *space.integer)
        return trial.suggest_float(key, space.low, space.high, log=space.log is not None)

    return draw(spaces, point)


def _frozen(spaces: Mapping[str, Space], ended: Ended) -> Any:
    from optuna.trial import TrialState, create_trial

    keys = [key for key in in_order(spaces) if key in ended.values]
    return create_trial(
        state=TrialState.COMPLETE if ended.complete else TrialState.PRUNED,
        value=ended.score,
        params={key: spaces[key].point(ended.values[key]) for key in keys},
        distributions={key: _distribution(spaces[key]) for key in keys},
        intermediate_values={ended.step: ended.score},
    )


def _distribution(space: Space) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if space.choice is not None:
        return CategoricalDistribution(range(len(space.choice)))
    if space.integer is not None:
        return IntDistribution(*space.integer)
    return FloatDistribution(space.low, space.high, log=space.log is not None)
