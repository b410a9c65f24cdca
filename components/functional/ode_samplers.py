"""Samplers that follow the probability flow dx/dt = velocity(x, t): without noise, and back again the same way.

Song et al. 2021, arXiv 2011.13456, section 4.3; on the straight line it is the flow of rectified flow (Liu et al. 2022, arXiv 2209.03003).
The flow of a schedule that starts at a time above 0, where the noise grows as a root, ends there, and the predicted data are the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor
from torchdiffeq import odeint, odeint_adjoint

from components.errors import UserError, did_you_mean
from components.functional.predictions import Denoiser
from components.functional.timesteps import checked

Method = Literal["euler", "heun", "midpoint", "rk4"]
Tableau = tuple[Sequence[float], Sequence[Sequence[float]], Sequence[float]]  # where, from which slopes, and the weights of all

TABLEAUS: dict[str, Tableau] = {
    "euler": ((0.0,), ((),), (1.0,)),
    "heun": ((0.0, 1.0), ((), (1.0,)), (0.5, 0.5)),
    "midpoint": ((0.0, 0.5), ((), (0.5,)), (0.0, 1.0)),
    "rk4": ((0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),  # the classical one
}
FIRST_STEP = 0.01  # of the way, for the adaptive solver: left to itself it asks far past the end to choose one
MAX_STEPS = 10_000  # of it, 6 evaluations each
State = tuple[Tensor, ...]  # each with a row for every row of a batch
VectorField = Callable[[Tensor, State], State]  # a time () and a state -> the state's rate of change


class NoStepError(UserError):
    """An adaptive solver that found no step small enough: the field is too steep, or not finite."""


def ode(denoiser: Denoiser, x: Tensor, times: Tensor, *, method: Method = "heun") -> Tensor:
    """x (B, ...) at times[0] carried to times[-1] by a method of Runge and Kutta: 1, 2, 2 or 4 evaluations an interval.

    Where `times` end before the schedule's start the flow ends at the start, and one more evaluation gives the data. Rising times carry
    data to noise. Raises UserError where times do not keep one direction or the prediction tells no velocity at a time that is asked.
    """
    if method not in TABLEAUS:
        raise UserError(f"method: {method!r} is no ODE method; {did_you_mean(method, TABLEAUS)}")
    steps, denoise = _flow_times(denoiser, times)
    _check_ends(denoiser, steps if 1.0 in TABLEAUS[method][0] else steps[:-1])
    (x,) = runge_kutta(lambda t, state: (denoiser.predict("velocity", state[0], t),), (x,), steps, method)
    return denoiser.predict("x0", x, steps[-1]) if denoise else x


def dopri5(denoiser: Denoiser, x: Tensor, start: float = 1.0, end: float = 0.0, *, rtol: float = 1e-5, atol: float = 1e-5) -> Tensor:
    """x (B, ...) at time `start` carried to `end`, either way, by Dormand and Prince's method with steps of its own choice.

    Ends as `ode` does; data at 0 are taken to be at the schedule's start. The steps are those that the worst row needs, so that within the
    tolerances a row depends on its batch. Raises UserError as `ode`, for tolerances that are none, and where the model is not finite.
    """
    steps, denoise = _flow_times(denoiser, torch.tensor([start, end], dtype=torch.float64))
    _check_ends(denoiser, steps)
    if len(steps) > 1:
        (moved,) = solve(lambda t, state: (denoiser.predict("velocity", state[0].to(x.dtype), t),), (x,), steps, rtol=rtol, atol=atol)
        x = moved.to(x.dtype)
    return denoiser.predict("x0", x, steps[-1]) if denoise else x


def runge_kutta(field: VectorField, state: State, times: Tensor, method: Method) -> State:
    """`state` at times[0] carried to times[-1] along d state / dt = `field`, by one step from each time to the next."""
    places, rows, weights = TABLEAUS[method]
    for t, s in pairwise(times):
        slopes: list[State] = []
        for place, row in zip(places, rows, strict=True):
            slopes.append(field(torch.lerp(t, s, place), _moved(state, s - t, row, slopes)))
        state = _moved(state, s - t, weights, slopes)
    return state


def solve(field: VectorField, state: State, times: Tensor, *, rtol: float, atol: float, adjoint: Sequence[Tensor] | None = None) -> State:
    """`state` at times[0] carried to times[-1] along d state / dt = `field`, as float64, by adaptive steps that suit its worst row.

    Gradients go back through the steps; or, with the weights of the field given as `adjoint`, come from solving the adjoint equation, which
    keeps nothing of the way (Chen et al. 2018, arXiv 1806.07366, section 2). Its steps leave the error of the weights' gradients out of
    account (Kidger et al. 2021, arXiv 2009.09457). Raises UserError for tolerances that are none, and
    NoStepError where no step is small enough.
    """
    if not (rtol > 0 and atol > 0):
        raise UserError(f"rtol: {rtol:g}, atol: {atol:g}; tolerances above 0 are expected, such as 1e-5")
    times = times.to(state[0].device)
    first = FIRST_STEP * (times[-1] - times[0]).abs()
    # step_t: it meets the end, past which a schedule is not defined, instead of stepping over it
    options = {"norm": _worst_row, "first_step": first, "step_t": times[-1:], "max_num_steps": MAX_STEPS}
    start = tuple(part.double() for part in state)
    try:
        if adjoint is None:
            path = odeint(field, start, times, rtol=rtol, atol=atol, method="dopri5", options=options)
        else:
            back = {"norm": "seminorm", "first_step": first, "step_t": times[:1], "max_num_steps": MAX_STEPS}
            solver = partial(odeint_adjoint, method="dopri5", options=options, adjoint_options=back, adjoint_params=tuple(adjoint))
            path = _Adjoint.apply(
                lambda start: solver(lambda t, state: tuple(part.double() for part in field(t, state)), start, times, rtol=rtol, atol=atol),
                len(start),
                *start,
                *adjoint,
            )
    except AssertionError as error:  # is how the solver gives up
        reason = str(error).split(":")[0]
        raise NoStepError(
            f"dopri5: no step was small enough ({reason}); raise rtol {rtol:g} and atol {atol:g}, if the model is finite"
        ) from error
    return tuple(part[-1] for part in path)


class _Adjoint(torch.autograd.Function):
    """A solve (state -> path) whose gradients are NaN where the adjoint equation has no solution.

    An error in the backward pass of one worker would leave the others waiting for its gradients.
    """

    @staticmethod
    def forward(ctx: Any, solver: Callable[[State], State], parts: int, *tensors: Tensor) -> State:
        with torch.enable_grad():
            ctx.start = tuple(part.detach().requires_grad_() for part in tensors[:parts])
            ctx.path, ctx.weights = solver(ctx.start), tensors[parts:]
        return tuple(part.detach() for part in ctx.path)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs = (*ctx.start, *ctx.weights)
        try:
            return None, None, *torch.autograd.grad(ctx.path, inputs, gradients, allow_unused=True)
        except AssertionError:
            return None, None, *(torch.full_like(each, float("nan")) for each in inputs)


def _worst_row(errors: State) -> Tensor:
    """The largest root mean square of a row, errors being in units of what is allowed."""
    return torch.stack([part.reshape(len(part), -1).square().mean(1).max() for part in errors]).max().sqrt()


def _moved(state: State, step: Tensor, weights: Sequence[float], slopes: list[State]) -> State:
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            state = tuple(x + step * weight * each for x, each in zip(state, slope, strict=True))
    return state


def _flow_times(denoiser: Denoiser, times: Tensor) -> tuple[Tensor, bool]:
    """The times between which the flow is followed, and whether the data are predicted at its end."""
    rises = times.dim() == 1 and len(times) > 1 and bool(times[-1] > times[0])
    times = checked(times.flip(0)).flip(0) if rises else checked(times)
    start = denoiser.schedule.start
    return times.clamp(min=start).unique_consecutive(), not rises and bool(times[-1] < start)


def _check_ends(denoiser: Denoiser, asked: Tensor) -> None:
    """Raises UserError where data or noise cannot be told from the other because their factor is 0."""
    kind, schedule = denoiser.prediction, denoiser.schedule
    if kind in ("eps", "score") and not (schedule.alpha(asked) > 0).all():
        raise UserError(
            f"times: a list that reaches {asked.max():g}, where alpha is 0, does not fit the prediction {kind!r}, which tells no velocity "
            "there; start below, or predict velocity, v or x0"
        )
    if (kind == "x0" or denoiser.clip is not None) and not (schedule.sigma(asked) > 0).all():
        raise UserError(
            "times: a list that asks for the velocity at 0, where sigma is 0, fits neither the prediction 'x0' nor clipping; end above, or "
            "choose euler or midpoint, which do not ask at the end"
        )
