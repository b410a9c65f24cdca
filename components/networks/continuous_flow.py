"""A continuous normalizing flow (Grathwohl et al. 2019, arXiv 1810.01367): data carried to noise along a field from time 0 to 1.

The log-determinant is the integral of the field's trace: exact up to 16 numbers a row, beyond that estimated with one probe of signs a
solve (`components/functional/continuous.py`). Gradients go back through the steps of the solver, or come from the adjoint equation.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from components.config import Config
from components.functional.continuous import Carried, Divergence, Solver, carried, coordinates, signs
from components.functional.ode_samplers import NoStepError, State, VectorField
from components.networks.actnorm import ActNorm
from components.networks.bijection import BijectionChain, FlowNetwork, Objective, prior_log_prob
from components.networks.concatsquash import Activation, ConcatSquashField
from components.networks.solver import SolverConfig
from components.training.randomness import Draws

MOST_EXACT = 16  # numbers a row, up to which the trace is exact unless the config says otherwise


class ContinuousConfig(Config):
    """The field, how it is solved in training and in evaluation, and what keeps it simple."""

    kind: Literal["continuous"] = "continuous"
    widths: tuple[PositiveInt, ...] = Field((64, 64, 64), min_length=1, description="of the field's hidden layers")
    activation: Activation = Field("tanh", description="smooth ones, since a solver needs derivatives")
    patch: int | None = Field(None, gt=0, description="pictures: patch x patch pixels become channels first; none: 2")
    divergence: Divergence | None = Field(None, description=f"of the field; none: exact up to {MOST_EXACT} numbers a row, else hutchinson")
    adjoint: bool = Field(False, description="dopri5: gradients of the adjoint equation, in memory that does not grow with the steps")
    kinetic: float = Field(0.0, ge=0, description="weight of the integral of |v|^2 for each number, which straightens the way")
    frobenius: float = Field(0.0, ge=0, description="weight of the integral of |J|^2 for each number, which makes steps longer")
    solver: SolverConfig = Field(SolverConfig(), description="in training")
    test_solver: SolverConfig = Field(SolverConfig(rtol=1e-6, atol=1e-6), description="of scores and samples")

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        if self.adjoint and self.solver.method != "dopri5":
            raise ValueError(
                f"adjoint=true is for solver.method=dopri5; through the steps of {self.solver.method} gradients go back themselves, "
                "exactly, and train.recompute saves their memory"
            )
        return self

    def build(self, shape: tuple[int, ...], start: BijectionChain) -> ContinuousFlow:
        """The flow of rows (B, *shape), which `start` prepares."""
        return ContinuousFlow(self, shape, start)

    def require_shape(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError for pictures that `patch` does not divide, and for points where it has no effect."""
        if len(shape) != 3 and self.patch is not None:
            raise ValueError(f"patch={self.patch} has no effect on points; leave it out")
        if len(shape) == 3 and (shape[1] % self.cut or shape[2] % self.cut):
            raise ValueError(f"patch={self.cut} does not divide {shape[1]} x {shape[2]} pixels; choose patch=1, or one that does")

    @property
    def cut(self) -> int:
        return self.patch or 2


class ContinuousFlow(FlowNetwork):
    """`start`, each channel to mean 0 and standard deviation 1, and the solve."""

    prior = "normal"
    recomputed = ("field",)

    def __init__(self, config: ContinuousConfig, shape: tuple[int, ...], start: BijectionChain) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        channels = shape[0] * config.cut**2 if self.pictures else shape[0]
        self.divergence: Divergence = config.divergence or ("exact" if math.prod(shape) <= MOST_EXACT else "hutchinson")
        self.start, self.norm = start, ActNorm(channels)
        self.field = ConcatSquashField(channels, config.widths, config.activation, self.pictures)

    @property
    def pictures(self) -> bool:
        return len(self.shape) == 3

    def forward(self, x: Tensor, random: Draws | None = None) -> tuple[Tensor, Tensor]:
        """Latents (B, *shape) and log-determinants (B,); where they are estimated, with signs of `random`, drawn once."""
        found = self.solved(x, random)
        return self._merged(found.x), found.log_det

    def objective(self, x: Tensor, random: Draws) -> Objective:
        """As the base, with the two penalties, each for a number of a row, and how often the field was asked."""
        found = self.solved(x, random, penalties=bool(self.config.kinetic or self.config.frobenius))
        log_prob = prior_log_prob(self.prior, found.x) + found.log_det
        c, dims = self.config, math.prod(self.shape)
        penalty = (c.kinetic * found.kinetic + c.frobenius * found.frobenius).mean() / dims
        return Objective(log_prob, penalty, {"evaluations": x.new_full((), found.evaluations)})

    def solved(self, x: Tensor, random: Draws | None = None, penalties: bool = False) -> Carried:
        """Rows x (B, *shape) at the end of their way, in patches, with their log-determinants from the data on."""
        x, before = self._prepared(x)
        probes = self._probes(x, random)
        try:
            found = carried(self.field, x, probes, self._solver(), penalties=penalties)
        except NoStepError:
            if not self._learns:
                raise
            # As any number that is not finite: all workers hear of it, and the run ends with its step and its last good checkpoint.
            found = carried(self.field, x, probes, _not_a_number, penalties=penalties)
        return replace(found, log_det=before + found.log_det)

    def latents(self, x: Tensor) -> Tensor:
        """Without log-determinants, whose estimate would need random numbers."""
        cut, _ = self._prepared(x)
        return self._merged(carried(self.field, cut, cut.new_empty(0, *cut.shape), self._solver()).x)

    def inverse(self, z: Tensor, solver: SolverConfig | None = None) -> Tensor:
        """Data (B, *shape) of latents z, by `solver`, else by that of evaluation."""
        z = self._cut(z)
        solve = self._solver() if solver is None else solver.solver()
        x = self.norm.inverse(carried(self.field, z, z.new_empty(0, *z.shape), solve, start=1.0, end=0.0).x)
        return self.start.inverse(self._merged(x))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        self.norm.initialize(self._cut(self.start.initialize(x)))

    def _prepared(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, of_start = self.start(x)
        x, of_norm = self.norm(self._cut(x))
        return x, of_start + of_norm

    def _probes(self, x: Tensor, random: Draws | None) -> Tensor:
        if self.divergence == "exact":
            return coordinates(x)
        if random is None:
            raise ValueError("divergence=hutchinson estimates the log-determinant with signs of random numbers; give random")
        return signs(random.uniform("probe", tuple(x.shape)).to(x.dtype))

    @property
    def _learns(self) -> bool:
        return self.training and torch.is_grad_enabled()

    def _solver(self) -> Solver:
        if not self._learns:
            return (self.config.solver if self.training else self.config.test_solver).solver()
        adjoint = tuple(parameter for parameter in self.field.parameters() if parameter.requires_grad) if self.config.adjoint else None
        return self.config.solver.solver(adjoint)

    def _cut(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, self.config.cut) if self.pictures else x

    def _merged(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(x, self.config.cut) if self.pictures else x


def _not_a_number(field: VectorField, state: State, start: float, end: float) -> State:
    """NaN that depends on all weights, whose gradients other workers wait for."""
    step = SolverConfig(method="euler", steps=1).solver()
    return tuple(part * math.nan for part in step(field, state, start, end))
