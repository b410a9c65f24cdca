"""How an ordinary differential equation is solved, as a config: adaptive steps that keep tolerances, or equal steps."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from components.config import Config
from components.functional.continuous import Solver
from components.functional.ode_samplers import TABLEAUS, State, VectorField, runge_kutta, solve

Method = Literal["dopri5", "euler", "heun", "midpoint", "rk4"]
TOLERANCE, STEPS = 1e-5, 16


class SolverConfig(Config):
    """How an ODE is solved: dopri5 chooses its steps to keep tolerances, the others take equal steps."""

    method: Method = "dopri5"
    steps: int | None = Field(None, gt=0, description=f"equal steps; none: {STEPS}, and no number for dopri5")
    rtol: float | None = Field(None, gt=0, description=f"dopri5: relative to the size of a number; none: {TOLERANCE:g}")
    atol: float | None = Field(None, gt=0, description=f"dopri5: beside it; none: {TOLERANCE:g}")

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        if self.method == "dopri5" and self.steps is not None:
            raise ValueError(
                f"steps={self.steps} has no effect with method=dopri5, which chooses its steps; give rtol and atol, or another method"
            )
        if self.method != "dopri5":
            for name in ("rtol", "atol"):
                if (value := getattr(self, name)) is not None:
                    raise ValueError(f"{name}={value:g} has no effect with method={self.method}, which takes equal steps; give steps")
        return self

    def solver(self, adjoint: tuple[Tensor, ...] | None = None) -> Solver:
        """The solver; with the field's weights as `adjoint`, gradients come from the adjoint equation."""
        if self.method == "dopri5":

            def adaptive(field: VectorField, state: State, start: float, end: float) -> State:
                times = torch.tensor([start, end], dtype=torch.float64)
                return solve(field, state, times, rtol=self.rtol or TOLERANCE, atol=self.atol or TOLERANCE, adjoint=adjoint)

            return adaptive
        method, steps = self.method, self.steps or STEPS

        def equal(field: VectorField, state: State, start: float, end: float) -> State:
            times = torch.linspace(start, end, steps + 1, dtype=torch.float64, device=state[0].device)
            return runge_kutta(field, state, times, method)

        return equal

    def settled(self) -> SolverConfig:
        """With nothing left open."""
        if self.method == "dopri5":
            return SolverConfig(rtol=self.rtol or TOLERANCE, atol=self.atol or TOLERANCE)
        return SolverConfig(method=self.method, steps=self.steps or STEPS)

    @property
    def evaluations(self) -> int | None:
        """Of the field, for one solve; None for dopri5, which decides that as it goes."""
        return None if self.method == "dopri5" else (self.steps or STEPS) * len(TABLEAUS[self.method][0])
