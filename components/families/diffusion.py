"""DDPM: denoising diffusion over T noise levels (Ho et al. 2020, arXiv 2006.11239), class-conditional with guidance.

Cosine schedule: Nichol and Dhariwal 2021, arXiv 2102.09672. v-prediction: Salimans and Ho 2022, arXiv 2202.00512. min-SNR weights: Hang et
al. 2023, arXiv 2303.09556. `python -m pipelines.cli train diffusion DATA`.
"""

from __future__ import annotations

import math
from itertools import count
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from components.families.contract import OptimizerConfig, Proof
from components.families.denoising import Denoising, DenoisingConfig
from components.families.diffusers_export import ddim_scheduler, write_diffusers
from components.functional.noise_schedules import Discrete, cosine_betas, linear_betas
from components.functional.variational import variational_bound
from components.training.context import Context


class DiffusionConfig(DenoisingConfig):
    """Noise levels, what is predicted and how errors are weighted."""

    levels: int = Field(1000, ge=4, description="T")
    noise_schedule: Literal["linear", "cosine"] = "cosine"
    prediction: Literal["eps", "x0", "v"] = Field(
        "eps",
        description="with cosine levels, where next to nothing of the data is left at the end, v: unclipped samplers magnify errors of eps",
    )
    loss_weight: Literal["simple", "min_snr"] = Field("simple", description="all levels alike, or by signal to noise up to snr_cap")
    snr_cap: float = Field(5.0, gt=0, description="gamma of min_snr")

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        if self.noise_schedule == "linear" and self.levels <= 20:
            raise ValueError(f"levels={self.levels} are too few for noise_schedule=linear; choose more than 20, or cosine")
        if self.loss_weight == "simple" and self.snr_cap != type(self).model_fields["snr_cap"].default:
            raise ValueError(f"snr_cap={self.snr_cap} has no effect with loss_weight=simple; set loss_weight=min_snr")
        return self


class Diffusion(Denoising):
    """Denoising diffusion in discrete levels."""

    Config = DiffusionConfig
    config: DiffusionConfig
    samplers = ("ddim", "ancestral", "dpm_solver", "euler", "heun", "midpoint", "rk4", "dopri5")
    proof = Proof(
        data="images",
        model={"network": {"widths": (8, 16), "attention": (False, True), "blocks": 1, "patch": 2}},
        optimizer=OptimizerConfig(lr=3e-3),
        steps=100,
        improves=0.5,
    )

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__(config)
        self._schedule = Discrete((linear_betas if config.noise_schedule == "linear" else cosine_betas)(config.levels))

    @property
    def schedule(self) -> Discrete:
        return self._schedule

    @property
    def prediction(self) -> Literal["eps", "x0", "v"]:
        return self.config.prediction

    def network_steps(self, t: Tensor) -> Tensor:
        """The level, counted from 0; between levels a fraction."""
        return self._schedule.level_of(t).clamp(min=0)

    def time_of(self, uniform: Tensor) -> Tensor:
        return self._schedule.time_of((uniform * self.config.levels).floor())

    def loss_weights(self, t: Tensor) -> Tensor:
        """For min_snr a weight of min(SNR, cap) on the squared error of x0, which each prediction's own squared error is turned into."""
        if self.config.loss_weight == "simple":
            return super().loss_weights(t)
        alpha, sigma = self._schedule.alpha(t), self._schedule.sigma(t)
        snr = (alpha / sigma).square()
        of_x0 = {"x0": torch.ones_like(snr), "eps": 1 / snr, "v": sigma.square()}[self.config.prediction]
        return snr.clamp(max=self.config.snr_cap) * of_x0

    def bound_in_bits_per_dim(self, images: Tensor, ctx: Context, labels: Tensor | None = None) -> Tensor:
        """The variational bound on what 8-bit numbers cost, estimated from one draw of each level: (B,) float64, as in `bits_per_dim`."""
        calls = count()
        data = images.float() / 127.5 - 1
        with torch.no_grad():
            nats = variational_bound(
                self.denoiser(labels), data, lambda like: ctx.random.normal(f"bound {next(calls)}", tuple(like.shape)).to(like.dtype)
            )
        return nats / (math.log(2) * data[0].numel())

    def export(self, folder: Path) -> None:
        """A diffusers folder: `UNet2DModel` and a `DDIMScheduler` config."""
        write_diffusers(self.network, ddim_scheduler(self._schedule, self.config.prediction), folder, self.config.image_size)
