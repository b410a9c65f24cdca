"""Invertible maps with known log-determinants, chains of them, and what makes such a chain a density.

Everywhere data x -> latent z is forward: log p(x) = log p_Z(f(x)) + log |det df/dx| (Dinh et al. 2015, arXiv 1410.8516, eq. 2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from components.config import Config
from components.networks.invertible import InvertibleChain
from components.networks.solver import SolverConfig
from components.training.randomness import Draws

Prior = Literal["normal", "logistic"]


class Bijection(nn.Module):
    """An invertible map of rows x (B, ...): `forward` gives y and the log-determinant of each row, (B,); `inverse` comes back."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def inverse(self, y: Tensor) -> Tensor:
        raise NotImplementedError

    def initialize(self, x: Tensor) -> Tensor:
        """Sets what depends on data from rows x, unless that was done before, and returns y."""
        return self(x)[0]


class DataDependent(Bijection):
    """A bijection that begins from the first rows it is given; a loaded one does not begin anew."""

    initialized: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))  # saved

    @torch.no_grad()
    def initialize(self, x: Tensor) -> Tensor:
        if not self.initialized:
            self._begin(x)
            self.initialized.fill_(True)
        return self(x)[0]

    def _begin(self, x: Tensor) -> None:
        raise NotImplementedError


class BijectionChain(InvertibleChain):
    """Bijections one after another: a bijection itself."""

    def initialize(self, x: Tensor) -> Tensor:
        """Block after block, each from what the initialised ones before it make of rows x."""
        for block in self:
            x = block.initialize(x)  # type: ignore[operator]
        return x


class Logit(Bijection):
    """Numbers in [0, 1] to the whole line, y = logit(alpha + (1 - 2 alpha) x) (Dinh et al. 2017, arXiv 1605.08803, section 4.1).

    The smaller alpha is, the wider it spreads the numbers near 0 and 1.
    """

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        p = self.alpha + (1 - 2 * self.alpha) * x
        below, above = p.log(), torch.log1p(-p)
        log_det = math.log(1 - 2 * self.alpha) - (below + above)
        return below - above, sum_of_rows(log_det)

    def inverse(self, y: Tensor) -> Tensor:
        return (y.sigmoid() - self.alpha) / (1 - 2 * self.alpha)


@dataclass(frozen=True)
class Objective:
    """Of rows in training: nats of each (B,), a penalty () for each number of a row, and scalars to show."""

    log_prob: Tensor
    penalty: Tensor
    metrics: dict[str, Tensor]


class FlowNetwork(nn.Module):
    """A bijection from data (B, *shape) to latents of the same shape, and their prior: a density of the data.

    Subclasses set `prior` and `recomputed`, name patterns of the blocks that activation checkpointing may recompute, and fill in the
    three methods below, which may ask `random` for the numbers of these rows (an estimate of the log-determinant).
    """

    prior: Prior = "normal"
    recomputed: tuple[str, ...] = ()

    def forward(self, x: Tensor, random: Draws | None = None) -> tuple[Tensor, Tensor]:
        """Latents (B, *shape) and log-determinants (B,)."""
        raise NotImplementedError

    def inverse(self, z: Tensor, solver: SolverConfig | None = None) -> Tensor:
        """Data (B, *shape) of latents z; a `solver` is for flows that solve an equation."""
        raise NotImplementedError

    def initialize(self, x: Tensor) -> None:
        """Data-dependent initialisation by one pass over rows x, unless it was done before."""

    def objective(self, x: Tensor, random: Draws) -> Objective:
        """What training asks of rows x (B, *shape)."""
        return Objective(self.log_prob(x, random), x.new_zeros(()), {})

    def latents(self, x: Tensor) -> Tensor:
        """Latents (B, *shape) alone."""
        return self(x)[0]

    def log_prob(self, x: Tensor, random: Draws | None = None) -> Tensor:
        """Nats of each row x (B, *shape): (B,)."""
        z, log_det = self(x, random)
        return prior_log_prob(self.prior, z) + log_det


class ChainFlowConfig(Config):
    """What flows that are chains of bijections have in common."""

    from_outputs: bool = Field(False, description="recompute activations from outputs: memory does not grow with depth, steps take longer")


class ChainFlow(FlowNetwork):
    """A flow that is one chain of bijections."""

    def __init__(self, *blocks: nn.Module, prior: Prior = "normal", recomputed: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.chain, self.prior, self.recomputed = BijectionChain(*blocks), prior, recomputed

    def forward(self, x: Tensor, random: Draws | None = None) -> tuple[Tensor, Tensor]:
        z, log_det = self.chain(x)
        return z, log_det

    def inverse(self, z: Tensor, solver: SolverConfig | None = None) -> Tensor:
        assert solver is None, "an exact inverse solves no equation"
        return self.chain.inverse(z)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        self.chain.initialize(x)


def prior_log_prob(prior: Prior, z: Tensor) -> Tensor:
    """Nats of latents z (B, ...), all independent: (B,)."""
    if prior == "logistic":
        return -sum_of_rows(F.softplus(z) + F.softplus(-z))
    return -0.5 * sum_of_rows(z.square() + math.log(2 * math.pi))


def draw_latents(prior: Prior, random: Draws, shape: tuple[int, ...]) -> Tensor:
    """Latents (B, ...) of the prior, float32."""
    if prior == "normal":
        return random.normal("latent", shape)
    uniform = random.uniform("latent", shape)  # a multiple of 2^-24 in [0, 1): moved by half of it, so that 0 is not met
    return torch.logit(uniform.double() + 2.0**-25).float()


def sum_of_rows(x: Tensor) -> Tensor:
    """The sum over each row of x (B, ...), (B,), whatever its memory order."""
    return x.sum(tuple(range(1, x.dim())))
