"""VQGAN's first stage: a VQ-VAE whose decoder also has a rival, a patch discriminator (Esser, Rombach and Ommer 2021, arXiv 2012.09841).

Two phases a step, the autoencoder and the discriminator. The perceptual term looks through a frozen classifier of the project's own.
`python -m pipelines.cli train vqgan DATA`.
"""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from components.errors import UserError
from components.families.classifier import Classifier, ClassifierConfig
from components.families.contract import Batch, Family, OptimizerConfig, Phase, PhaseOutput, Proof
from components.families.images import pixels
from components.families.vqvae import TINY, VQVAE, VQVAEConfig
from components.functional.adversarial import adaptive_weight, generator_loss, hinge_discriminator_loss
from components.functional.perceptual import feature_distance
from components.networks.convolution import PatchDiscriminator
from components.training.context import Context


class VQGANConfig(VQVAEConfig):
    """The autoencoder's settings and those of its rival, which should start before the term it gives: untrained it misleads."""

    discriminator_widths: tuple[int, ...] = Field((32, 64), min_length=1, description="channels after each halving")
    discriminator_optimizer: OptimizerConfig | None = Field(None, description="none: the same as the autoencoder's")
    discriminator_start: int = Field(0, ge=0, description="step from which the discriminator is trained")
    discriminator_every: int = Field(1, ge=1, description="it takes its turn every so many steps")
    gan_start: int = Field(0, ge=0, description="step from which the autoencoder sees the discriminator")
    gan_weight: float = Field(0.8, ge=0, description="w, of the adversarial term after it is scaled to the reconstruction's gradient")
    perceptual_weight: float = Field(0.0, ge=0, description="of the distance between feature maps; needs `features`")
    features: ClassifierConfig | None = Field(None, description="the frozen classifier whose maps are compared; its weights are adopted")

    @model_validator(mode="after")
    def _terms_go_together(self) -> Self:
        if self.gan_start < self.discriminator_start:
            raise ValueError(f"gan_start={self.gan_start} is before discriminator_start={self.discriminator_start}; train the rival first")
        if bool(self.perceptual_weight) != (self.features is not None):
            raise ValueError(f"perceptual_weight={self.perceptual_weight} and features={self.features} go together: set both or neither")
        return self


class VQGAN(VQVAE):
    """The autoencoder of VQVAE, a patch discriminator and, if asked for, a frozen feature net whose weights are saved with the rest."""

    Config = VQGANConfig
    config: VQGANConfig
    mutable = (*VQVAE.mutable, "gan_weight", "perceptual_weight")
    proof = Proof("images", TINY | {"discriminator_widths": (8, 16)}, OptimizerConfig(lr=5e-3), steps=80, improves=0.6)

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__(config)
        c = config
        self.discriminator = PatchDiscriminator(c.image_channels, c.discriminator_widths)
        self.features = Classifier(c.features) if c.features is not None else None
        rival = Phase("discriminator", ("discriminator",), c.discriminator_every, c.discriminator_start, c.discriminator_optimizer)
        self.phases = (*self.phases, rival)

    def loss(self, phase: str, batch: Batch, ctx: Context) -> PhaseOutput:
        images = pixels(batch)
        return self._discriminator_loss(images) if phase == "discriminator" else self._autoencoder_loss(images, ctx)

    def _autoencoder_loss(self, images: Tensor, ctx: Context) -> PhaseOutput:
        output, rebuilt = self._autoencode(images, ctx)
        loss, metrics = output.loss, dict(output.metrics)
        if self.features is not None:
            perceptual = feature_distance(self.features.maps(images), self.features.maps(rebuilt))
            loss = loss + self.config.perceptual_weight * perceptual
            metrics["perceptual"] = perceptual.detach()
        if self.config.gan_weight and ctx.step >= self.config.gan_start:
            rivalry = generator_loss(self.discriminator(rebuilt).float())
            weight = self.config.gan_weight * self._balance(loss, rivalry, ctx)
            loss = loss + weight * rivalry
            metrics |= {"gan": rivalry.detach(), "gan_weight": weight}
        return PhaseOutput(loss, metrics, output.stats)

    def _balance(self, reconstruction: Tensor, rivalry: Tensor, ctx: Context) -> Tensor:
        """The scale at which both terms pull equally on the decoder's last weights; gradients are averaged over workers first."""
        last = self.decoder.last.weight
        pulls = [ctx.mean(torch.autograd.grad(term, last, retain_graph=True)[0]) for term in (reconstruction, rivalry)]
        return adaptive_weight(pulls[0], pulls[1])

    def _discriminator_loss(self, images: Tensor) -> PhaseOutput:
        with torch.no_grad():
            fake = self.decoder(self.quantizer.look_up(self.encode(images)))
        real_score, fake_score = self.discriminator(torch.cat([images, fake.float()])).float().chunk(2)
        loss = hinge_discriminator_loss(real_score, fake_score)
        return PhaseOutput(loss, {"real_score": real_score.detach().mean(), "fake_score": fake_score.detach().mean()})

    def adopt(self, name: str, model: Family) -> None:
        """Takes the weights of a trained `classifier` for its feature net, or of a trained `vqvae` as a warm start."""
        if name != "classifier":
            return super().adopt(name, model)
        if self.features is None or model.config != self.features.config:
            raise UserError(f"features={self.config.features} is not the config of the classifier given; set features to that config")
        self.features.load_state_dict(model.state_dict())
        return None
