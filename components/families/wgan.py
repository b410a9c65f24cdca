"""WGAN: the generator's rival estimates how far samples are from data, in Wasserstein-1 distance (Arjovsky et al. 2017, arXiv 1701.07875).

    W1(p, q) = sup E_p f - E_q f  over all f of Lipschitz constant 1        critic: L_C = E f(G(z)) - E f(x)     generator: L_G = -E f(G(z))

Three ways keep the critic f Lipschitz: a penalty where the norm of its gradient is not 1 on lines between data and samples (Gulrajani et
al. 2017, arXiv 1704.00028), a box for its weights (clipping), or spectral normalisation (Miyato et al. 2018, arXiv 1802.05957).
Two phases: the critic's every step, the generator's every `critic_steps`, throughout: the hundred critic steps before each of the first
generator steps, by which the first paper's code begins, are left out. `python -m pipelines.cli train wgan DATA`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from components.evaluation.wasserstein import ROWS, critic_plane, plane_chart, w1_chart, w1_of_rows
from components.families.adversarial import Adversarial, AdversarialConfig
from components.families.contract import Batch, OptimizerConfig, Phase, PhaseOutput, Proof
from components.functional.adversarial import generator_loss
from components.functional.lipschitz import clip_weights, gradient_norms, gradient_penalty, interpolated
from components.networks.adversarial import Critic
from components.networks.spectral import critic_bound, iterate, normalise
from components.report.findings import Chart
from components.training.context import Context

Constraint = Literal["gradient_penalty", "clip", "spectral"]
PENALTY_WEIGHT, CLIP = 10.0, 0.01  # of the papers
CLIPPED = OptimizerConfig(name="rmsprop", lr=5e-5)  # momentum makes clipped critics unstable: section 4.3 of Arjovsky et al.

SMALL_PICTURES: dict[str, object] = {"width": 8, "latent": 16, "critic_steps": 2}
SMALL_POINTS: dict[str, object] = {"width": 32, "latent": 4, "critic_steps": 2}


class WGANConfig(AdversarialConfig):
    """How the critic is kept Lipschitz, and how often it takes its turn."""

    critic_steps: int = Field(5, ge=1, description="steps of the critic before each of the generator")
    critic_optimizer: OptimizerConfig | None = Field(
        None, description="the critic's; none: RMSProp at 5e-5 with constraint=clip, where momentum would not hold, else the generator's"
    )
    constraint: Constraint = Field("gradient_penalty", description="what keeps the critic Lipschitz")
    penalty_weight: float = Field(PENALTY_WEIGHT, gt=0, description="gradient_penalty: lambda")
    one_sided: bool = Field(False, description="gradient_penalty: gradients of a norm below 1 cost nothing")
    clip: float = Field(CLIP, gt=0, description="clip: the critic's weights stay within [-clip, clip]")

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        owners = {"penalty_weight": ("gradient_penalty", PENALTY_WEIGHT), "one_sided": ("gradient_penalty", False), "clip": ("clip", CLIP)}
        for name, (constraint, default) in owners.items():
            value = getattr(self, name)
            if value != default and self.constraint != constraint:
                raise ValueError(
                    f"{name}={value} has no effect with constraint={self.constraint}; set constraint={constraint}, or leave {name} out"
                )
        return self


class WGAN(Adversarial):
    """The generator and its critic."""

    Config = WGANConfig
    config: WGANConfig
    mutable = ("penalty_weight",)
    recomputed = ("generator.blocks.*", "critic.blocks.*")
    proof = Proof("images", SMALL_PICTURES, OptimizerConfig(lr=2e-3, betas=(0.0, 0.9)), steps=120, improves=0.75)
    proofs: ClassVar[Mapping[str, Proof]] = {
        "spectral": Proof("images", SMALL_PICTURES | {"constraint": "spectral"}, OptimizerConfig(lr=2e-3, betas=(0.0, 0.9)), 120, 0.75),
        "clip": Proof(
            "points",
            SMALL_POINTS | {"constraint": "clip", "clip": 0.1, "critic_optimizer": {"name": "sgd", "lr": 0.05}},
            OptimizerConfig(lr=2e-3, betas=(0.0, 0.9)),
            steps=200,
            improves=0.7,
        ),
    }

    def __init__(self, config: WGANConfig) -> None:
        super().__init__(config)
        self.critic = Critic(config)
        if config.constraint == "spectral":
            normalise(self.critic)
        turns = config.critic_steps
        optimizer = config.critic_optimizer or (CLIPPED if config.constraint == "clip" else None)
        self.phases = (
            Phase("critic", ("critic",), optimizer=optimizer),
            Phase("generator", ("generator",), every=turns, start=turns - 1),
        )

    def score(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """f(x), (B,) float32, of rows x (B, *shape) on the scale of `generate` and their classes (B,), None without classes."""
        return self.critic(x, labels).float()

    def loss(self, phase: str, batch: Batch, ctx: Context) -> PhaseOutput:
        if phase == "critic":
            return self._critic_loss(batch, ctx)
        return PhaseOutput(generator_loss(self.score(self.fakes(batch, ctx), self.labels(batch))))

    def _critic_loss(self, batch: Batch, ctx: Context) -> PhaseOutput:
        """Scores and penalty in one scalar, since workers average gradients in one backward pass alone."""
        real, labels = self.reals(batch), self.labels(batch)
        with torch.no_grad():
            fake = self.fakes(batch, ctx)
        gap = self._gaps(real, fake, labels).mean()
        metrics = {"critic_w1": gap.detach() * self._unit}
        if self.config.constraint != "gradient_penalty":
            return PhaseOutput(-gap, metrics)
        share = ctx.random.uniform("share", (len(real),))
        norms = gradient_norms(lambda x: self.score(x, labels), interpolated(real, fake, share))
        penalty = gradient_penalty(norms, self.config.one_sided)
        metrics |= {"penalty": penalty.detach(), "critic_slope": norms.detach().mean()}
        return PhaseOutput(self.config.penalty_weight * penalty - gap, metrics)

    def _gaps(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> Tensor:
        """f(real) - f(fake), (B,), of rows that have the same classes."""
        both = torch.cat([labels, labels]) if labels is not None else None
        scores = self.score(torch.cat([real, fake]), both)
        return scores[: len(real)] - scores[len(real) :]

    def after_step(self, phase: str, stats: dict[str, Tensor], ctx: Context) -> None:
        """Clips the critic's weights, or follows them with the vectors of its spectral norms: both from the weights alone."""
        if phase == "critic" and self.config.constraint == "clip":
            clip_weights(self.critic.parameters(), self.config.clip)
        if phase == "critic" and self.config.constraint == "spectral":
            iterate(self.critic)

    def evaluate(self, batch: Batch, ctx: Context) -> dict[str, tuple[Tensor, Tensor]]:
        """`critic_w1`: the critic's estimate of W1 between the rows and as many samples of their classes, on the scale of `sample`."""
        gaps = self._gaps(self.reals(batch), self.fakes(batch, ctx), self.labels(batch))
        return {"critic_w1": (gaps.double().sum() * self._unit, torch.tensor(len(gaps)))}

    def describe(self, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """What the base looks at, and of the first rows of the data the rows and samples themselves, for the exact W1."""
        real, fake = self.real_and_fake(batch, ctx)
        first = slice(0, max(0, ROWS - ctx.first_row))
        labels = self.labels(batch)
        classes = {} if labels is None else {"first_labels": labels[first]}
        return self.projections(real, fake) | {"first_real": real[first], "first_fake": fake[first]} | classes

    def finish(self, totals: Mapping[str, tuple[Tensor, Tensor]], rows: Mapping[str, Tensor]) -> dict[str, float | list[float]]:
        """The base's; the `lipschitz_bound` of the critic: no W1 is less than `critic_w1` over it; the `exact_w1` between the first rows.

        For points of a plane also the critic's scores over it, of the first class where there are classes.
        """
        real, fake, labels = rows["first_real"], rows["first_fake"], rows.get("first_labels")
        found = {"lipschitz_bound": critic_bound(self.critic), "exact_w1": w1_of_rows(real, fake, labels)}
        scores = super().finish(totals, rows) | found
        if self.config.shape != (2,):
            return scores
        mine = slice(None) if labels is None else labels == labels.min()
        return scores | critic_plane(partial(self._score_of_class, label=None if labels is None else labels.min()), real[mine], fake[mine])

    def _score_of_class(self, x: Tensor, label: Tensor | None) -> Tensor:
        """f(x) of rows (B, *shape) of one class, or without classes: (B,) on the CPU."""
        device = next(self.critic.parameters()).device
        return self.score(x.to(device), None if label is None else label.to(device).expand(len(x))).cpu()

    @classmethod
    def charts(cls, scores: Mapping[str, float | list[float]]) -> tuple[Chart, ...]:
        return plane_chart(scores)

    @classmethod
    def charts_over_steps(cls, rows: Sequence[Mapping[str, Any]]) -> tuple[Chart, ...]:
        return w1_chart(rows)

    @property
    def _unit(self) -> float:
        """A distance on the scale of `sample` that is 1 on that of `generate`."""
        return 0.5 if self.config.is_picture else 1.0
