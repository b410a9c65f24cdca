"""Score SDEs in continuous time: VP, VE and sub-VP (Song et al. 2021, arXiv 2011.13456). `python -m pipelines.cli train score_sde DATA`.

A network that predicts eps gives score = -eps / std, and the paper's loss weighted by std^2, ||std score + eps||^2, is the squared error
of eps. One that predicts v (Salimans and Ho 2022, arXiv 2202.00512), of unit variance at every time, at times where the noise is about as
large as the data (Karras et al. 2022, arXiv 2206.00364), needs far fewer steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from components.families.contract import OptimizerConfig, Proof
from components.families.denoising import Denoising, DenoisingConfig
from components.families.denoising_sampler import Name
from components.families.diffusers_export import vp_scheduler, write_diffusers
from components.functional.noise_schedules import Schedule, SubVariancePreserving, Table, VarianceExploding, VariancePreserving
from components.functional.predictions import Coefficients, beside
from components.functional.timesteps import time_of_noise
from components.training.randomness import Draws

Equation = Literal["vp", "ve", "subvp"]
TIME_SCALE = 999  # t = 1 is the last of a network's thousand steps, as in the paper's code
DATA_STD = 0.5  # of pixels in [-1, 1], about; sigma_data of Karras et al. 2022, table 1
LOG_NOISE_MEAN, LOG_NOISE_STD = -1.2 - math.log(DATA_STD), 1.2  # P_mean and P_std there, as a share of the data's deviation
QUANTILES = 1024

_SDE: tuple[Name, ...] = ("euler_maruyama", "reverse_diffusion", "predictor_corrector")
_FLOW: tuple[Name, ...] = ("euler", "heun", "midpoint", "rk4", "dopri5")
_DISCRETE: tuple[Name, ...] = ("ddim", "dpm_solver")  # made for discrete levels, which sub-VP does not have
SAMPLERS: dict[Equation, tuple[Name, ...]] = {
    "vp": (*_DISCRETE, *_SDE, *_FLOW, "ancestral"),
    "ve": ("predictor_corrector", "euler_maruyama", "reverse_diffusion", *_FLOW, *_DISCRETE),  # its probability flow makes poor pictures
    "subvp": (*_SDE, *_FLOW),
}


class ScoreSDEConfig(DenoisingConfig):
    """Which equation makes noise of data, and what is predicted."""

    sde: Equation = "vp"
    prediction: Literal["eps", "v"] = "eps"
    time_density: Literal["uniform", "lognormal"] = Field("uniform", description="of training: of the time, or of noise over data")
    sigma_max: float = Field(50.0, gt=1, description="ve only: noise at the end, about the largest distance between two pictures")

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        if self.sde != "ve" and self.sigma_max != type(self).model_fields["sigma_max"].default:
            raise ValueError(f"sigma_max={self.sigma_max} has no effect with sde={self.sde}; set sde=ve")
        return self


class ScoreSDE(Denoising):
    """A network that knows the score of noisy data at every time from the schedule's start to 1."""

    Config = ScoreSDEConfig
    config: ScoreSDEConfig
    proof = Proof(
        data="images",
        model={"network": {"widths": (8, 16), "attention": (False, True), "blocks": 1, "groups": 4, "patch": 2}},
        optimizer=OptimizerConfig(lr=3e-3),
        steps=60,
        improves=0.6,
    )
    proofs: ClassVar[Mapping[str, Proof]] = {
        # half of the times of VE have too little noise to be told from detail
        "ve": replace(proof, model=proof.model | {"sde": "ve"}, improves=0.75),
        "subvp": replace(proof, model=proof.model | {"sde": "subvp"}),
    }

    def __init__(self, config: ScoreSDEConfig) -> None:
        super().__init__(config)
        exploding = VarianceExploding(sigma_max=config.sigma_max)
        self._schedule: Schedule = {"vp": VariancePreserving(), "ve": exploding, "subvp": SubVariancePreserving()}[config.sde]
        self.samplers = SAMPLERS[config.sde]
        self._quantiles = Table(_lognormal_times(self._schedule)) if config.time_density == "lognormal" else None

    @property
    def schedule(self) -> Schedule:
        return self._schedule

    @property
    def prediction(self) -> Literal["eps", "v"]:
        return self.config.prediction

    def network_steps(self, t: Tensor) -> Tensor:
        return TIME_SCALE * t

    def time_of(self, uniform: Tensor) -> Tensor:
        """Uniform from the schedule's start on, or such that ln(sigma / alpha) is normal, cut off at the ends."""
        if self._quantiles is None:
            return self._schedule.start + (1 - self._schedule.start) * uniform
        place = uniform * (QUANTILES - 1)
        below, table = place.long().clamp(max=QUANTILES - 2), self._quantiles.on(uniform.device)
        return torch.lerp(table[below], table[below + 1], place - below)

    def loss_weights(self, t: Tensor) -> Tensor:
        """The error of v counts per unit of its variance, alpha^2 + std^2, which is 1 for VP alone."""
        return torch.ones_like(t) if self.config.prediction == "eps" else 1 / self._variance(t)

    def predict(self, x: Tensor, t: Tensor, labels: Tensor | None, random: Draws | None = None) -> Tensor:
        """eps, or v, for which the network says v / sqrt(alpha^2 + std^2).

        VE grows x to sigma_max: the network sees x / sqrt(DATA_STD^2 + sigma^2), of unit variance (Karras et al. 2022, eq. 7).
        """
        if self.config.sde == "ve":
            x = x / (DATA_STD**2 + Coefficients.at(self._schedule, t, x).sigma.square()).sqrt()
        said = super().predict(x, t, labels, random)
        if self.config.prediction == "eps" or self.config.sde == "vp":
            return said
        return said * beside(self._variance(t).sqrt(), said)

    def _variance(self, t: Tensor) -> Tensor:
        return self._schedule.alpha(t).square() + self._schedule.sigma(t).square()

    def export(self, folder: Path) -> None:
        """A diffusers folder, with `ScoreSdeVpScheduler` for eps under VP; no scheduler there is right for the others: weights alone."""
        scheduler = vp_scheduler(VariancePreserving()) if (self.config.sde, self.config.prediction) == ("vp", "eps") else None
        write_diffusers(self.network, scheduler, folder, self.config.image_size)


def _lognormal_times(schedule: Schedule) -> Tensor:
    """Times (QUANTILES,) float64, rising from the start to 1, between which the training is equally often."""
    ends = torch.tensor([schedule.start, 1.0], dtype=torch.float64)
    low, high = (schedule.sigma(ends) / schedule.alpha(ends)).log().tolist()
    shares = torch.linspace(0, 1, QUANTILES, dtype=torch.float64)
    log_noise = (LOG_NOISE_MEAN + LOG_NOISE_STD * torch.special.ndtri(shares)).clamp(low, high)
    return time_of_noise(schedule, log_noise.exp()).clamp(schedule.start, 1)
