"""Noise schedules: x_t = alpha(t) x_0 + sigma(t) eps, for t from 0 (data) to 1 (noise).

One view of DDPM (Ho et al. 2020, arXiv 2006.11239), score SDEs (Song et al. 2021, arXiv 2011.13456) and rectified flow (Liu et al. 2022,
arXiv 2209.03003, who let time run the other way). A schedule is two functions of time and their derivatives; the SDE whose marginals they
are, dx = f(t) x dt + g(t) dw, follows. Times and results are float64 whatever the model computes in.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from components.errors import UserError

MAX_BETA = 0.999  # Nichol and Dhariwal 2021, arXiv 2102.09672, section 3.2


class Schedule(ABC):
    """`alpha` and `sigma` of a time t in [0, 1], any shape, as float64 of that shape."""

    start: float = 0.0  # the smallest time at which a network is trained and asked

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Factor of the data."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise."""

    @abstractmethod
    def alpha_rate(self, t: Tensor) -> Tensor:
        """Derivative of alpha."""

    @abstractmethod
    def sigma_rate(self, t: Tensor) -> Tensor:
        """Derivative of sigma; infinite at 0 where sigma grows as a root."""

    def drift(self, t: Tensor) -> Tensor:
        """f(t) = alpha' / alpha; infinite where alpha is 0."""
        return self.alpha_rate(t) / self.alpha(t)

    def diffusion_squared(self, t: Tensor) -> Tensor:
        """g(t)^2 = d sigma^2 / dt - 2 f sigma^2, which keeps the variance sigma^2."""
        sigma = self.sigma(t)
        return 2 * sigma * self.sigma_rate(t) - 2 * self.drift(t) * sigma.square()


class Table:
    """Numbers that are copied to a device once: a copy in each step would make the host wait for the device."""

    def __init__(self, values: Tensor) -> None:
        self._copies = {values.device: values}

    def on(self, device: torch.device) -> Tensor:
        """The numbers on `device`, the same tensor every time."""
        if device not in self._copies:
            with torch.inference_mode(False):  # what sampling asks for first, training may use
                self._copies[device] = next(iter(self._copies.values())).to(device)
        return self._copies[device]


class Discrete(Schedule):
    """DDPM's T noise levels beta_1 ... beta_T: level i, counted from 0 as networks count them, is at t = (i + 1) / T, clean data at 0.

    Between levels log alpha is linear in t, so that solvers of differential equations can be used too.
    """

    def __init__(self, betas: Tensor) -> None:
        """`betas` (T,) in (0, 1)."""
        assert ((betas > 0) & (betas < 1)).all(), "every beta lies between 0 and 1"
        self.betas = betas.double()
        self.start = 1 / len(betas)
        log_alphas = torch.cat([betas.new_zeros(1).double(), torch.log1p(-self.betas).cumsum(0) / 2])
        self._log_alphas, self._slopes = Table(log_alphas), Table(log_alphas.diff() * len(betas))

    @property
    def levels(self) -> int:
        """T."""
        return len(self.betas)

    def time_of(self, level: Tensor) -> Tensor:
        """The time of levels 0 ... T-1; -1 is clean data."""
        return (level.double() + 1) / self.levels

    def level_of(self, t: Tensor) -> Tensor:
        """The inverse of `time_of`, what a network is told; a fraction between two levels."""
        return t.double() * self.levels - 1

    def alpha(self, t: Tensor) -> Tensor:
        return self._log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        return torch.expm1(2 * self._log_alpha(t)).abs().sqrt()

    def alpha_rate(self, t: Tensor) -> Tensor:
        return self._slope(t) * self.alpha(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        return -self._slope(t) * self.alpha(t).square() / self.sigma(t)

    def _log_alpha(self, t: Tensor) -> Tensor:
        place = t.double() * self.levels
        below = place.long().clamp(0, self.levels - 1)
        table = self._log_alphas.on(t.device)
        return torch.lerp(table[below], table[below + 1], place - below)

    def _slope(self, t: Tensor) -> Tensor:
        """Of the interval that ends at t; (i + 1) / T is rounded, and may lie a little above its level."""
        below = (t.double() * self.levels - 1e-9).ceil().long().clamp(1, self.levels) - 1
        return self._slopes.on(t.device)[below]


def linear_betas(levels: int = 1000) -> Tensor:
    """From 1e-4 to 0.02 for 1000 levels; for others scaled by 1000 / T, so that the last level stays almost pure noise. (T,)

    Raises UserError for 20 levels or fewer, where the last beta would not stay below 1.
    """
    if levels <= 20:
        raise UserError(f"levels: {levels}; linear betas need more than 20, or the last one is not below 1; choose more, or cosine betas")
    return torch.linspace(1e-4, 0.02, levels, dtype=torch.float64) * (1000 / levels)


def cosine_betas(levels: int = 1000, shift: float = 0.008) -> Tensor:
    """Of alpha-bar = cos^2(((t + s) / (1 + s)) pi / 2), no beta above 0.999 (Nichol and Dhariwal 2021, eq. 17). (T,)"""
    t = torch.arange(levels + 1, dtype=torch.float64) / levels
    kept = ((t + shift) / (1 + shift) * math.pi / 2).cos().square()
    return (1 - kept[1:] / kept[:-1]).clamp(max=MAX_BETA)


class VariancePreserving(Schedule):
    """VP: beta(t) from 0.1 to 20, alpha = exp(-t^2 19.9 / 4 - 0.05 t), sigma^2 = 1 - alpha^2 (Song et al. 2021, eqs. 32 and 33)."""

    start = 1e-3

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        self.beta_min, self.beta_max = beta_min, beta_max

    def beta(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * t.double()

    def log_alpha(self, t: Tensor) -> Tensor:
        t = t.double()
        return -(t.square() * (self.beta_max - self.beta_min) / 4 + t * self.beta_min / 2)

    def alpha(self, t: Tensor) -> Tensor:
        return self.log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def alpha_rate(self, t: Tensor) -> Tensor:
        return -self.beta(t) / 2 * self.alpha(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        return self.beta(t) / 2 * self.alpha(t).square() / self.sigma(t)


class SubVariancePreserving(VariancePreserving):
    """sub-VP: alpha as VP, sigma = 1 - alpha^2 (Song et al. 2021, eq. 29)."""

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(2 * self.log_alpha(t))

    def sigma_rate(self, t: Tensor) -> Tensor:
        return self.beta(t) * self.alpha(t).square()


class VarianceExploding(Schedule):
    """VE: alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t (Song et al. 2021, eq. 30). At t = 0 the noise sigma_min is left."""

    start = 1e-5

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t, dtype=torch.float64)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t.double()

    def alpha_rate(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t, dtype=torch.float64)

    def sigma_rate(self, t: Tensor) -> Tensor:
        return math.log(self.sigma_max / self.sigma_min) * self.sigma(t)


class StraightLine(Schedule):
    """Rectified flow: alpha = 1 - t, sigma = t. The velocity eps - x_0 of a pair is the same at every time."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t.double()

    def sigma(self, t: Tensor) -> Tensor:
        return t.double().clone()

    def alpha_rate(self, t: Tensor) -> Tensor:
        return torch.full_like(t, -1.0, dtype=torch.float64)

    def sigma_rate(self, t: Tensor) -> Tensor:
        return torch.ones_like(t, dtype=torch.float64)
