"""Population based training (Jaderberg et al. 2017, arXiv 1711.09846): who copies whom after a generation, and with what values it goes on.

Both are pure functions of scores, the seed, the generation and the member, so that a population is the same on one worker and on a
hundred, and after any number of kills: no member goes on before all of its generation have a score. Truncation selection and
perturbation are those of section 4.1.1 there.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from components.seeds import derive_seed
from components.sweep.space import Space, Values

ATTEMPTS = 64  # draws of new values before a member keeps those that it copied


def copied_members(scores: Sequence[float], best: Literal["min", "max"], quantile: float, seed: int, generation: int) -> list[int | None]:
    """For each member the one whose weights and values it takes over, one of the top quantile; None: it goes on with its own.

    The bottom quantile copies, and so does every member whose score is no finite number. Of equal scores the lower number is better.
    Raises ValueError when no score is finite.
    """
    ranked = sorted((score if best == "min" else -score, number) for number, score in enumerate(scores) if math.isfinite(score))
    if not ranked:
        raise ValueError(f"none of {len(scores)} members has a score")
    lost = [number for number, score in enumerate(scores) if not math.isfinite(score)]
    order = [number for _, number in ranked] + lost
    size = max(1, int(quantile * len(scores)))
    top, bottom = order[: min(size, len(ranked))], {*order[-size:], *lost}
    bottom -= set(top)
    return [
        random.Random(derive_seed("pbt", seed, generation, number)).choice(top) if number in bottom else None
        for number in range(len(scores))
    ]


def changed_values(
    spaces: Mapping[str, Space],
    values: Values,
    factors: tuple[float, float],
    resample: float,
    seed: tuple[int, int, int],
    valid: Callable[[Values], bool],
) -> Values:
    """Copied `values` times one of the `factors` each, clipped to their space, or with probability `resample` drawn from it anew.

    `seed` is that of the sweep, the generation and the member; each key has a generator of its own. Draws that are not `valid` together are
    made again, and after `ATTEMPTS` of them the values stay as they are.
    """
    for attempt in range(ATTEMPTS):
        drawn = {}
        for key, value in values.items():
            source = random.Random(derive_seed("pbt", *seed, attempt, key))
            drawn[key] = _changed(spaces[key], value, factors, resample, source)
        if valid(drawn):
            return drawn
    return dict(values)


def _changed(space: Space, value: float, factors: tuple[float, float], resample: float, source: random.Random) -> float | int:
    if source.random() < resample:
        return space.value(space.at(source.random()))
    point = min(max(value * source.choice(factors), space.low), space.high)
    return space.value(round(point) if space.integer is not None else point)
