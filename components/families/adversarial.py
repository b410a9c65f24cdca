"""What families with a generator and a rival share: networks, samplers and a distance between samples and held-out data.

The generator makes samples of noise and perhaps a class; pictures are in [-1, 1] inside, points as the data has them. A family adds its
rival, the phases of both and their losses: `gan.py`, `wgan.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from components.config import Config
from components.config import Config as AnyConfig
from components.errors import UserError
from components.families.contract import Batch, DataShape, Family, OptimizerConfig
from components.families.images import LABEL, classes_in_turn, known_labels, pixels
from components.families.points import POINT, data_shape
from components.functional.sliced import directions, sliced_w1
from components.networks.adversarial import AdversarialNetworks, Generator
from components.training.context import Context
from components.training.randomness import Draws


class AdversarialConfig(AdversarialNetworks):
    """What all have: the sizes of the networks and the turns of the rivals. The data decides `shape` and `num_classes`."""

    conditional: bool = Field(True, description="learn what each class looks like, where the data has classes")
    critic_steps: int = Field(1, ge=1, description="steps of the rival before each of the generator")
    critic_optimizer: OptimizerConfig | None = Field(None, description="the rival's; none: the same as the generator's")


class AdversarialSampler(Config):
    """How noise becomes samples. `raymill sample MODEL label=3 temperature=0.7`."""

    label: int | None = Field(None, ge=0, description="class of every sample; None: each class in turn")
    temperature: float = Field(1.0, gt=0, description="factor of the noise: below 1 less variety, fewer odd samples")
    batch_size: int = Field(256, gt=0, description="rows drawn at once; samples do not depend on it")


class Adversarial(Family):
    """A generator; `headline` is the sliced W1 between its samples and the data it has not seen."""

    Sampler = AdversarialSampler
    config: AdversarialConfig
    averaged = ("generator",)
    headline = ("sliced_w1", "min")

    def __init__(self, config: AdversarialConfig) -> None:
        super().__init__(config)
        self.generator = Generator(config)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return self.config.shape

    @classmethod
    def fit(cls, config: AnyConfig, data: DataShape) -> AnyConfig:
        assert isinstance(config, AdversarialConfig)
        shape = data_shape(data)
        num_classes = len(data.class_names) if config.conditional and LABEL in data.columns else 0
        return type(config).parse(config.to_json() | {"shape": shape, "num_classes": num_classes}, f"data of shape {shape}")

    def generate(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Noise (B, latent) and classes (B,), None without classes, to samples (B, *shape) float32: pictures in [-1, 1]."""
        return self.generator(z, labels).float()

    def fakes(self, batch: Batch, ctx: Context) -> Tensor:
        """As many samples as the batch has rows, of its classes, with gradients where the generator takes some."""
        z = ctx.random.normal("latent", (ctx.rows, self.config.latent))
        return self.generate(z, self.labels(batch))

    def reals(self, batch: Batch) -> Tensor:
        """The batch's own rows (B, *shape) float32, on the scale of `generate`."""
        return 2 * pixels(batch) - 1 if self.config.is_picture else batch[POINT].float()

    def labels(self, batch: Batch) -> Tensor | None:
        """Classes (B,) int64, None without classes; raises UserError for one that the model does not know."""
        return known_labels(batch, self.config.num_classes)

    def describe(self, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """Projections (B, 128) of the rows and of as many samples of their classes, for the sliced W1."""
        real, fake = self.real_and_fake(batch, ctx)
        return self.projections(real, fake)

    def real_and_fake(self, batch: Batch, ctx: Context) -> tuple[Tensor, Tensor]:
        """The rows and as many samples of their classes, both (B, *shape) on the scale of `sample`."""
        return self._shown(self.reals(batch)), self._shown(self.fakes(batch, ctx))

    def projections(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Both (B, *shape) in the directions that the sliced W1 looks along: (B, 128)."""
        axes = directions(self.sample_size).to(real.device)
        return {"real": real.flatten(1) @ axes, "fake": fake.flatten(1) @ axes}

    def finish(self, totals: Mapping[str, tuple[Tensor, Tensor]], rows: Mapping[str, Tensor]) -> dict[str, float | list[float]]:
        """The quotients, and the sliced W1 between all rows and as many samples, which chance alone keeps above 0."""
        return super().finish(totals, rows) | {"sliced_w1": sliced_w1(rows["real"], rows["fake"])}

    def sample(self, count: int, seed: int, sampler: AnyConfig, first: int = 0) -> Tensor:
        """Pictures (count, C, H, W) in [0, 1] or points (count, D); row i depends on the seed, its number and the sampler only.

        Raises UserError for a label that the model does not know.
        """
        sampler = self.settled(sampler)
        device = next(self.generator.parameters()).device
        z = sampler.temperature * Draws(seed, 0, "sample", first, device).normal("latent", (count, self.config.latent))
        labels = self.sample_labels(count, sampler, first)
        samples = torch.empty(count, *self.sample_shape, device=device)
        with torch.inference_mode():
            for low in range(0, count, sampler.batch_size):
                rows = slice(low, low + sampler.batch_size)
                samples[rows] = self._shown(self.generate(z[rows], labels[rows].to(device) if labels is not None else None))
        return samples

    def sample_labels(self, count: int, sampler: AnyConfig, first: int = 0) -> Tensor | None:
        """Each class in turn, or the one that `sampler` names."""
        assert isinstance(sampler, AdversarialSampler)
        return classes_in_turn(count, first, self.config.num_classes, sampler.label)

    def evaluations(self, sampler: AnyConfig) -> int:
        """One pass through the generator."""
        return 1

    def settled(self, sampler: AnyConfig) -> AdversarialSampler:
        """The sampler as it is. Raises UserError for a label that the model does not know."""
        assert isinstance(sampler, AdversarialSampler)
        known = self.config.num_classes
        if sampler.label is not None and sampler.label >= known:
            raise UserError(
                f"sampler.label={sampler.label}: the model knows {known} classes; choose 0 to {known - 1} or none"
                if known
                else f"sampler.label={sampler.label}: the model was trained without classes; leave label out"
            )
        return sampler

    @property
    def sample_size(self) -> int:
        """Numbers of one sample."""
        return torch.Size(self.sample_shape).numel()

    def _shown(self, samples: Tensor) -> Tensor:
        """Samples on the scale of `sample`."""
        return samples.add(1).div(2).clamp(0, 1) if self.config.is_picture else samples
