"""Samplers that follow the probability flow dx/dt = velocity(x, t): without noise, and back again the same way.

Song et al. 2021, arXiv 2011.13456, section 4.3; on the straight line it is the flow of rectified flow (Liu et al. 2022, arXiv 2209.03003).
The flow of a schedule that starts at a time above 0, where the noise grows as a root, ends there, and the predicted data are the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torchdiffeq import odeint

from components.errors import UserError, did_you_mean
from components.functional.predictions import Denoiser

Method = Literal["euler", "heun", "midpoint", "rk4"]
Tableau = tuple[Sequence[float], Sequence[Sequence[float]], Sequence[float]]  # where, from which slopes, and the weights of all

TABLEAUS: dict[str, Tableau] = {
    "euler": ((0.0,), ((),), (1.0,)),
    "heun": ((0.0, 1.0), ((), (1.0,)), (0.5, 0.5)),
    "midpoint": ((0.0, 0.5), ((), (0.5,)), (0.0, 1.0)),
    "rk4": ((0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),  # the classical one
}
MAX_STEPS = 10_000  # of the adaptive solver, 6 evaluations each
SINGLE_RTOL = 1e-6  # float32 has no digits for less


def ode(denoiser: Denoiser, x: Tensor, times: Tensor, *, method: Method = "heun") -> Tensor:
    """x (B, ...) at times[0] carried to times[-1] by a method of Runge and Kutta: 1, 2, 2 or 4 evaluations an interval.

    Where `times` end before the schedule's start, the flow ends at the start and one more evaluation gives the data.
    """
    if method not in TABLEAUS:
        raise UserError(f"unknown method {method!r} of an ODE sampler: {did_you_mean(method, TABLEAUS)}")
    flow_times, denoise = _flow_times(denoiser, times)
    for t, s in pairwise(flow_times):
        x = _step(denoiser, x, t, s, TABLEAUS[method])
    return denoiser.predict("x0", x, flow_times[-1]) if denoise else x


def dopri5(denoiser: Denoiser, x: Tensor, start: float = 1.0, end: float = 0.0, *, rtol: float = 1e-5, atol: float = 1e-5) -> Tensor:
    """x (B, ...) at time `start` carried to `end`, in either direction, by Dormand and Prince's method with steps of its own choice.

    The steps are those that the worst row needs, so a row depends on the others of its batch, within the tolerances. `end` below
    the schedule's start is as in `ode`; `start` below it is taken for the schedule's start.
    """
    times = torch.tensor([start, end], dtype=torch.float64)
    flow_times, denoise = _flow_times(denoiser, times)
    if len(flow_times) > 1:
        (x,) = solve(lambda t, state: (denoiser.predict("velocity", state[0], t),), (x,), flow_times, rtol=rtol, atol=atol)
    return denoiser.predict("x0", x, flow_times[-1]) if denoise else x


def solve(
    field: Callable[[Tensor, State], State], state: State, times: Tensor, *, rtol: float, atol: float, norm: Callable[[State], Tensor]
) -> State:
    """The state (tensors of B rows each) at times[0] carried to times[-1] by adaptive steps; `norm` measures errors, 1 is just allowed.

    Raises UserError for tolerances that cannot be met and where the field stops being finite.
    """
    _check_tolerances(state[0].dtype, rtol, atol)
    stop = times[-1:].to(state[0].device)
    options = {"norm": norm, "max_num_steps": MAX_STEPS, "step_t": stop}  # it steps onto the end, never past it, where schedules end
    try:
        path = odeint(field, state, times.to(state[0].device), rtol=rtol, atol=atol, method="dopri5", options=options)
    except AssertionError as error:  # what the solver gives up with
        raise UserError(f"the adaptive solver gave up ({error}): loosen rtol={rtol:g} and atol={atol:g}, or check that the model is finite") from error
    return tuple(values[-1] for values in path)


def rows_error(x: Tensor) -> Tensor:
    """The root mean square of the worst row."""
    return x.flatten(1).square().mean(1).max().sqrt()
