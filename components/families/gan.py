"""GAN: a generator against a discriminator that tells its samples from data (Goodfellow et al. 2014, arXiv 1406.2661).

    L_D = E softplus(-s(x)) + E softplus(s(G(z)))     L_G = E softplus(-s(G(z)))        s: the discriminator's logit

Other objectives are options. Two phases a step, the discriminator's first. `python -m pipelines.cli train gan DATA`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from components.families.adversarial import Adversarial, AdversarialConfig
from components.families.contract import Batch, OptimizerConfig, Phase, PhaseOutput, Proof
from components.functional.adversarial import (
    generator_loss,
    hinge_discriminator_loss,
    logistic_discriminator_loss,
    non_saturating_generator_loss,
    r1_penalty,
    saturating_generator_loss,
)
from components.networks.adversarial import Critic
from components.training.context import Context

Objective = Literal["non_saturating", "saturating", "hinge"]


@dataclass(frozen=True)
class Losses:
    """The rivals' losses: of scores of data and of fakes for the discriminator, of scores of fakes for the generator."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


LOSSES: dict[Objective, Losses] = {
    "non_saturating": Losses(logistic_discriminator_loss, non_saturating_generator_loss),
    "saturating": Losses(logistic_discriminator_loss, saturating_generator_loss),
    "hinge": Losses(hinge_discriminator_loss, generator_loss),
}


TINY: dict[str, object] = {"width": 16, "latent": 16}
QUICK = OptimizerConfig(lr=3e-3, betas=(0.5, 0.99))


class GANConfig(AdversarialConfig):
    """The rivals' objective, and how much the discriminator is smoothed around data."""

    objective: Objective = "non_saturating"
    r1_weight: float = Field(0.0, ge=0, description="gamma / 2 of the R1 penalty E ||grad s(x)||^2 on data; 0: none")
    r1_every: int = Field(1, ge=1, description="the penalty is a term on every so many steps, as many times heavier")

    @model_validator(mode="after")
    def _r1_goes_together(self) -> Self:
        if self.r1_every > 1 and not self.r1_weight:
            raise ValueError(f"r1_every={self.r1_every} has no effect with r1_weight=0; set r1_weight, or leave r1_every out")
        return self


class GAN(Adversarial):
    """The generator and its discriminator."""

    Config = GANConfig
    config: GANConfig
    mutable = ("r1_weight",)
    recomputed = ("generator.blocks.*", "discriminator.blocks.*")
    proof = Proof("images", TINY, QUICK, steps=80, improves=0.7)
    proofs: ClassVar[Mapping[str, Proof]] = {
        "hinge": Proof("images", TINY | {"objective": "hinge", "r1_weight": 1.0, "r1_every": 4, "critic_steps": 2}, QUICK, 120, 0.8),
        "points": Proof("points", {"width": 32, "latent": 8}, QUICK, steps=200, improves=0.5),
    }

    def __init__(self, config: GANConfig) -> None:
        super().__init__(config)
        self.discriminator = Critic(config)
        turns = config.critic_steps
        self.phases = (
            Phase("discriminator", ("discriminator",), optimizer=config.critic_optimizer),
            Phase("generator", ("generator",), every=turns, start=turns - 1),
        )

    def loss(self, phase: str, batch: Batch, ctx: Context) -> PhaseOutput:
        return self._discriminator_loss(batch, ctx) if phase == "discriminator" else self._generator_loss(batch, ctx)

    def _generator_loss(self, batch: Batch, ctx: Context) -> PhaseOutput:
        scores = self.discriminator(self.fakes(batch, ctx), self.labels(batch)).float()
        return PhaseOutput(LOSSES[self.config.objective].generator(scores))

    def _discriminator_loss(self, batch: Batch, ctx: Context) -> PhaseOutput:
        reals, labels = self.reals(batch), self.labels(batch)
        with torch.no_grad():
            fakes = self.fakes(batch, ctx)
        both = torch.cat([labels, labels]) if labels is not None else None
        real, fake = self.discriminator(torch.cat([reals, fakes]), both).float().chunk(2)
        loss = LOSSES[self.config.objective].discriminator(real, fake)
        metrics = {"real_accuracy": (real > 0).float().mean(), "fake_accuracy": (fake < 0).float().mean()}
        if self.config.r1_weight and ctx.step % self.config.r1_every == 0:
            penalty = self._r1(reals, labels)
            loss = loss + self.config.r1_weight * self.config.r1_every * penalty
            metrics["r1"] = penalty.detach()
        return PhaseOutput(loss, metrics)

    def _r1(self, reals: Tensor, labels: Tensor | None) -> Tensor:
        with torch.autocast(reals.device.type, enabled=False):  # squares of a gradient, differentiated once more: float32
            reals = reals.detach().requires_grad_()
            return r1_penalty(self.discriminator(reals, labels), reals)

    def evaluate(self, batch: Batch, ctx: Context) -> dict[str, tuple[Tensor, Tensor]]:
        """How many held-out rows, and how many samples of their classes, the discriminator takes for what they are."""
        labels, count = self.labels(batch), torch.tensor(ctx.rows)
        real, fake = (self.discriminator(rows, labels) for rows in (self.reals(batch), self.fakes(batch, ctx)))
        return {"real_accuracy": ((real > 0).sum(), count), "fake_accuracy": ((fake < 0).sum(), count)}
