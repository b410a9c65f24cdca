"""The continuous change of variables: rows carried along a field, and what that does to their density.

dx/dt = v(x, t) and d log p / dt = -tr dv/dx along it (Chen et al. 2018, arXiv 1806.07366, theorem 1). The trace is exact, or estimated as
e . J e with signs e that stay the same for a whole solve (Hutchinson; Grathwohl et al. 2019, arXiv 1810.01367, section 3.1): new ones at
each evaluation would be noise that no step of an adaptive solver is small enough for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from components.functional.ode_samplers import State, VectorField

Divergence = Literal["exact", "hutchinson"]
# A time (), rows x (B, ...) and K tangents of each (K, B, ...) -> the velocity v (B, ...) and dv/dx times each tangent (K, B, ...).
Field = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
Solver = Callable[[VectorField, State, float, float], State]  # a field, a state, its time and that of the end -> the state at the end


@dataclass(frozen=True)
class Carried:
    """Rows at the end of their way, and what was integrated along it for each."""

    x: Tensor  # (B, ...)
    log_det: Tensor  # (B,), log |det d end / d start|
    kinetic: Tensor  # (B,), the integral of |v|^2
    frobenius: Tensor  # (B,), the integral of |J|_F^2, exact or estimated as |J e|^2
    evaluations: int  # of the field


def carried(
    field: Field, x: Tensor, probes: Tensor, solver: Solver, start: float = 0.0, end: float = 1.0, penalties: bool = False
) -> Carried:
    """Rows x (B, ...) carried from time `start` to `end`, with the trace as the sum over `probes` e (K, B, ...) of e . J e.

    Without probes log_det is 0, and without `penalties` kinetic and frobenius are (Finlay et al. 2020, arXiv 2002.02798): as they are
    integrated with the rows, they cost the solver steps. A model that is told `penalties` is moved along straight lines in the end.
    """
    evaluations = 0

    def rate(t: Tensor, state: State) -> State:
        nonlocal evaluations
        evaluations += 1
        velocity, pushed = field(t, state[0].to(x.dtype), probes)
        rates = [velocity]
        if len(probes):
            rates.append(_rows(pushed * probes))
        if penalties:
            rates += [velocity.square().flatten(1).sum(1), _rows(pushed.square())]
        return tuple(rates)

    integrals = (len(probes) > 0) + 2 * penalties
    zeros = x.new_zeros(len(x))
    found = solver(rate, (x, *[zeros] * integrals), start, end)
    moved, *sums = (part.to(x.dtype) for part in found)
    log_det = sums.pop(0) if len(probes) else zeros
    kinetic, frobenius = sums if penalties else (zeros, zeros)
    return Carried(moved, log_det, kinetic, frobenius, evaluations)


def coordinates(x: Tensor) -> Tensor:
    """Probes (D, B, ...) of an exact trace: of each coordinate the unit vector along it, for rows x (B, ...) of D numbers."""
    units = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)
    return units.reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape)


def signs(uniform: Tensor) -> Tensor:
    """One probe (1, B, ...) of an estimated trace: signs, from uniform numbers (B, ...) in [0, 1)."""
    return torch.where(uniform < 0.5, -1.0, 1.0).to(uniform.dtype).unsqueeze(0)


def _rows(values: Tensor) -> Tensor:
    """(K, B, ...) summed over all but B."""
    return values.flatten(2).sum((0, 2))
