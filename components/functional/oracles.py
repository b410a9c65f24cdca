"""Data laws whose predictions are known exactly, to stand where a network would: samplers are measured with them to many digits.

Data from N(m, s^2) have at time t, where x = alpha x_0 + sigma eps, the law N(alpha m, V) with V = alpha^2 s^2 + sigma^2, and with
the pull u = (x - alpha m) / V

    E[x_0 | x] = m + alpha s^2 u,    E[eps | x] = sigma u,    score = -u,

from which v and the velocity follow, both being linear in data and noise. The probability flow keeps (x - alpha m) / sqrt(V). For a mixture
every component k has its own pull, and each prediction is the mean of theirs, weighted by how likely x came from the component: the softmax
of log w_k + log N(x; alpha m_k, V_k). All is computed in float64.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from components.functional.noise_schedules import Schedule
from components.functional.predictions import Coefficients, Denoiser, Prediction, target


class Oracle(ABC):
    """A data law in the noise of a schedule."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Data (count, ...) float64."""

    @abstractmethod
    def log_density(self, x: Tensor, t: Tensor) -> Tensor:
        """Natural logarithm of the density of x (B, ...) at times t () or (B,): (B,) float64."""

    @abstractmethod
    def expected(self, x: Tensor, at: Coefficients) -> tuple[Tensor, Tensor, Tensor]:
        """E[x_0 | x], E[eps | x] and the pull, each (B, ...)."""

    def denoiser(self, prediction: Prediction, clip: tuple[float, float] | None = None) -> Denoiser:
        """The exact prediction as what samplers ask."""

        def model(x: Tensor, t: Tensor) -> Tensor:
            x = x.double()
            at = Coefficients.at(self.schedule, t.to(x.device), x)
            x0, eps, pull = self.expected(x, at)
            return -pull if prediction == "score" else target(prediction, x0, eps, at)

        return Denoiser(model, prediction, self.schedule, clip)


class GaussianOracle(Oracle):
    """Data N(mean, std^2), each coordinate by itself."""

    def __init__(self, mean: Tensor, std: Tensor, schedule: Schedule) -> None:
        """`mean` (...) as one row of data; `std` of that shape or ()."""
        super().__init__(schedule)
        self.mean, self.std = mean.double(), std.double()

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        noise = torch.randn(count, *self.mean.shape, generator=generator, dtype=torch.float64)
        return self.mean + self.std * noise

    def log_density(self, x: Tensor, t: Tensor) -> Tensor:
        x = x.double()
        at = Coefficients.at(self.schedule, t, x)
        variance = self._variance(at)
        return (_log_normal((x - at.alpha * self.mean).square() / variance, variance)).flatten(1).sum(1)

    def expected(self, x: Tensor, at: Coefficients) -> tuple[Tensor, Tensor, Tensor]:
        pull = (x - at.alpha * self.mean) / self._variance(at)
        return self.mean + at.alpha * self.std.square() * pull, at.sigma * pull, pull

    def flow(self, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """Where the probability flow carries x (B, ...) from time `start` to `end`, exactly."""
        x = x.double()
        before, after = (Coefficients.at(self.schedule, t, x) for t in (start, end))
        ratio = (self._variance(after) / self._variance(before)).sqrt()
        return after.alpha * self.mean + ratio * (x - before.alpha * self.mean)

    def _variance(self, at: Coefficients) -> Tensor:
        return at.alpha.square() * self.std.square() + at.sigma.square()


class MixtureOracle(Oracle):
    """Data from a mixture of K Gaussians, each as wide in all directions."""

    def __init__(self, means: Tensor, stds: Tensor, weights: Tensor, schedule: Schedule) -> None:
        """`means` (K, ...), each as one row of data; `stds` (K,); `weights` (K,) positive, of any sum."""
        super().__init__(schedule)
        assert len(means) == len(stds) == len(weights), "each component has a mean, a standard deviation and a weight"
        self.centres, self.stds, self.weights = means.double(), stds.double(), weights.double() / weights.sum()

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        chosen = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, *self.centres.shape[1:], generator=generator, dtype=torch.float64)
        return self.centres[chosen] + _beside(self.stds[chosen], noise) * noise

    def log_density(self, x: Tensor, t: Tensor) -> Tensor:
        x = x.double()
        _, _, log_joint = self._components(x, Coefficients.at(self.schedule, t, x))
        return log_joint.logsumexp(1)

    def expected(self, x: Tensor, at: Coefficients) -> tuple[Tensor, Tensor, Tensor]:
        spread, pulls, log_joint = self._components(x, at)
        share = _beside(log_joint.softmax(1), pulls)
        pull = (share * pulls).sum(1)
        return (share * (self.centres + spread * pulls)).sum(1), at.sigma * pull, pull

    def _components(self, x: Tensor, at: Coefficients) -> tuple[Tensor, Tensor, Tensor]:
        """Of each component: alpha s_k^2, and its pull, both (B or 1, K, ...); log w_k + log N(x; alpha m_k, V_k) (B, K)."""
        alpha, sigma = (value.unsqueeze(1) if value.dim() else value for value in (at.alpha, at.sigma))
        wide = _beside(self.stds.square(), self.centres)
        variance = alpha.square() * wide + sigma.square()
        away = x.unsqueeze(1) - alpha * self.centres
        log_joint = self.weights.log() + _log_normal(away.square() / variance, variance).flatten(2).sum(2)
        return alpha * wide, away / variance, log_joint


def _beside(values: Tensor, x: Tensor) -> Tensor:
    """`values`, shaped to multiply x, whose first dimensions are theirs."""
    return values.reshape(values.shape + (1,) * (x.dim() - values.dim()))


def _log_normal(squares: Tensor, variance: Tensor) -> Tensor:
    """Of every coordinate, from its squared distance in units of the variance."""
    return -(squares + variance.log() + math.log(2 * math.pi)) / 2
