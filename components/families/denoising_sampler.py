"""How denoising families draw samples: the options, and of each sampler how it is run and how often it asks the network.

`raymill sample MODEL sampler=ddim steps=20 guidance=2`. What is left out is the sampler's own; what has no effect is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from components.config import Config
from components.errors import UserError
from components.functional.ancestral import Variance, ancestral
from components.functional.ddim import ddim, ddim_invert
from components.functional.dpm_solver import dpm_solver_pp_2m
from components.functional.noise_schedules import Discrete, Schedule, VariancePreserving
from components.functional.ode_samplers import dopri5, ode
from components.functional.predictions import Denoiser, Noise
from components.functional.sde_samplers import euler_maruyama, predictor_corrector, reverse_diffusion
from components.functional.timesteps import Spacing
from components.training.randomness import LANE, Draws

Solver = Literal["euler", "heun", "midpoint", "rk4"]
Name = Literal[
    "ancestral", "ddim", "dpm_solver", "euler_maruyama", "reverse_diffusion", "predictor_corrector",
    "euler", "heun", "midpoint", "rk4", "dopri5",
]  # fmt: skip
PER_STEP: dict[Solver, int] = {"euler": 1, "heun": 2, "midpoint": 2, "rk4": 4}  # evaluations


class DenoisingSampler(Config):
    """How noise becomes data. None: the sampler's own, and for `sampler` itself the family's."""

    sampler: Name | None = Field(None, description="which method; each family says which fit it")
    steps: int | None = Field(None, gt=0, description="of the way from noise to data")
    spacing: Spacing | None = Field(None, description="how the times between the steps are spread")
    eta: float = Field(0.0, ge=0, le=1, description="ddim: fresh noise on the way, from 0, none, to 1, as much as ancestral")
    variance: Variance = Field("small", description="ancestral: the posterior's, or the larger one of the forward step")
    guidance: float = Field(1.0, ge=0, description="0: ignore the class; 1: as trained; above 1: exaggerate the class")
    label: int | None = Field(None, ge=0, description="class of every sample; None: each class in turn")
    clip: bool | None = Field(None, description="keep predicted data in [-1, 1]; on unless a solver of the probability flow is used")
    rtol: float = Field(1e-5, gt=0, description="dopri5: relative error of a step")
    atol: float = Field(1e-5, gt=0, description="dopri5: absolute error of a step")
    snr: float = Field(0.16, gt=0, description="predictor_corrector: ratio of signal to noise of the corrector's steps")
    corrections: int = Field(1, gt=0, description="predictor_corrector: corrector steps before each predictor step")
    batch_size: int = Field(256, gt=0, description="rows drawn at once; samples do not depend on it, those of dopri5 within its tolerance")


Run = Callable[[Denoiser, Tensor, Tensor, Noise, DenoisingSampler], Tensor]  # x at times[0] -> data
Back = Callable[[Denoiser, Tensor, Tensor, DenoisingSampler], Tensor]  # data -> x at times[0]


@dataclass(frozen=True)
class Method:
    """One sampler: how it is run over falling times that end at 0, and what it may be told."""

    run: Run
    steps: int = 0  # where none are asked for
    options: tuple[str, ...] = ("steps", "spacing", "clip")  # that act on it, besides those that act on all
    cost: Callable[[DenoisingSampler, Schedule], int] | None = lambda sampler, schedule: steps_of(sampler)  # evaluations; None: it decides
    levels: bool = False  # walks from level to level of a discrete schedule unless it is told otherwise
    back: Back | None = None  # the same way backwards, where there is one
    even: bool = False  # serves best with even times on every schedule


def _solver(method: Solver, steps: int) -> Method:
    """The probability flow with a fixed step. A schedule that starts above 0 takes one more evaluation for what noise is left there."""
    return Method(
        run=lambda denoiser, x, times, noise, sampler: ode(denoiser, x, times, method=method),
        steps=steps,
        options=("steps", "spacing"),
        back=lambda denoiser, x, times, sampler: ode(denoiser, x, times.flip(0), method=method),
        cost=lambda sampler, schedule: PER_STEP[method] * steps_of(sampler) + (schedule.start > 0),
    )


METHODS: dict[Name, Method] = {
    "ancestral": Method(
        run=lambda denoiser, x, times, noise, sampler: ancestral(denoiser, x, times, noise, variance=sampler.variance),
        steps=250,
        options=("steps", "spacing", "clip", "variance"),
        levels=True,
    ),
    "ddim": Method(
        run=lambda denoiser, x, times, noise, sampler: ddim(denoiser, x, times, noise, eta=sampler.eta),
        steps=50,
        options=("steps", "spacing", "clip", "eta"),
        levels=True,
        back=lambda denoiser, x, times, sampler: ddim_invert(denoiser, x, times),
    ),
    "dpm_solver": Method(
        run=lambda denoiser, x, times, noise, sampler: dpm_solver_pp_2m(denoiser, x, times),
        steps=20,
        levels=True,
    ),
    "euler_maruyama": Method(
        run=lambda denoiser, x, times, noise, sampler: euler_maruyama(denoiser, x, times, noise),
        steps=250,
    ),
    "reverse_diffusion": Method(
        run=lambda denoiser, x, times, noise, sampler: reverse_diffusion(denoiser, x, times, noise),
        steps=250,
        even=True,
    ),
    "predictor_corrector": Method(
        run=lambda denoiser, x, times, noise, s: predictor_corrector(denoiser, x, times, noise, snr=s.snr, corrections=s.corrections),
        steps=125,
        options=("steps", "spacing", "clip", "snr", "corrections"),
        cost=lambda sampler, schedule: steps_of(sampler) * (1 + sampler.corrections),
        even=True,
    ),
    "euler": _solver("euler", 50),
    "heun": _solver("heun", 25),
    "midpoint": _solver("midpoint", 25),
    "rk4": _solver("rk4", 12),
    "dopri5": Method(
        run=lambda denoiser, x, times, noise, sampler: dopri5(denoiser, x, rtol=sampler.rtol, atol=sampler.atol),
        options=("rtol", "atol"),
        cost=None,
        back=lambda denoiser, x, times, sampler: dopri5(denoiser, x, 0.0, 1.0, rtol=sampler.rtol, atol=sampler.atol),
    ),
}
OF_SOME = {option for method in METHODS.values() for option in method.options}


def settled(sampler: DenoisingSampler, fitting: tuple[Name, ...], schedule: Schedule) -> DenoisingSampler:
    """The same with nothing left open, for a family that `fitting` samplers fit, its own first.

    Raises UserError for a sampler that does not fit, and for an option that has no effect with it.
    """
    name = sampler.sampler or fitting[0]
    if name not in fitting:
        raise UserError(f"sampler.sampler={name} does not fit this model; choose one of {', '.join(fitting)}")
    method = METHODS[name]
    for option in sorted(OF_SOME - {*method.options}):
        value = getattr(sampler, option)
        if value != DenoisingSampler.model_fields[option].default:
            others = ", ".join(other for other in fitting if option in METHODS[other].options)
            way_out = f", or choose a sampler that it acts on: {others}" if others else ""
            raise UserError(f"sampler.{option}={value} has no effect with sampler={name}; leave it out{way_out}")
    found: dict[str, object] = {"sampler": name}
    if "steps" in method.options:
        most = schedule.levels if isinstance(schedule, Discrete) else method.steps
        found["steps"] = sampler.steps or min(method.steps, most)
        found["spacing"] = sampler.spacing or _usual_spacing(method, schedule)
    if "clip" in method.options:
        found["clip"] = sampler.clip is not False
    return sampler.model_copy(update=found)


def _usual_spacing(method: Method, schedule: Schedule) -> Spacing:
    """Where VP's data take shape is near time 0: there most samplers are far more exact with quadratic times (`docs/sampling.md`)."""
    if method.levels and isinstance(schedule, Discrete):
        return "trailing"
    return "quadratic" if isinstance(schedule, VariancePreserving) and not method.even else "uniform"


def steps_of(sampler: DenoisingSampler) -> int:
    """The steps of a settled sampler."""
    assert sampler.steps is not None, "a settled sampler of a fixed number of steps"
    return sampler.steps


def method_of(sampler: DenoisingSampler) -> Method:
    """What runs a settled sampler."""
    assert sampler.sampler is not None, "a settled sampler"
    return METHODS[sampler.sampler]


def noise_by_row(seed: int, first: int, device: torch.device) -> Noise:
    """Noise for rows `first` and on of the endless table of samples: its k-th call gives row i what (seed, k, i) decide alone."""
    calls, skipped = count(), first % LANE

    def noise(like: Tensor) -> Tensor:
        draws = Draws(seed, next(calls), "sample", first - skipped, device)
        return draws.normal("noise", (skipped + like.shape[0], *like.shape[1:]))[skipped:].to(like.dtype)

    return noise
