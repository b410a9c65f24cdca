"""What families that learn to remove noise share: diffusion, score SDEs, rectified flow.

Time runs from 0, data, to 1, noise: x_t = alpha(t) x_0 + sigma(t) eps with pixels x_0 in [-1, 1] (`functional/noise_schedules.py`). A
network is told x_t, the time and perhaps the class, and makes a prediction from which data and noise follow (`functional/predictions.py`).
A family says which one, at which times it learns, and which samplers fit it: it fills in the first five methods below.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from components.config import Config
from components.config import Config as AnyConfig
from components.errors import UserError
from components.families.contract import Batch, DataShape, Family, Phase, PhaseOutput
from components.families.denoising_sampler import METHODS, DenoisingSampler, Name, method_of, noise_by_row, settled
from components.families.images import LABEL, classes_in_turn, image_shape, known_labels, pixels
from components.functional.ddim import slerp
from components.functional.likelihood import bits_per_dim, dequantized, log_likelihood
from components.functional.noise_schedules import Schedule
from components.functional.predictions import Coefficients, Denoiser, Noise, Prediction, noised, target
from components.functional.timesteps import times_of
from components.networks.unet import UNetConfig
from components.report.findings import Chart, Series
from components.training.context import Context
from components.training.randomness import Draws

QUARTERS = 4  # parts of time whose losses are told apart
CLIP = (-1.0, 1.0)


class DenoisingConfig(Config):
    """What all have. The data decides `image_channels`, `image_size` and `num_classes`."""

    image_channels: int = Field(1, gt=0)
    image_size: tuple[int, int] = Field((28, 28), description="height and width in pixels")
    num_classes: int = Field(10, ge=0, description="0: no classes")
    conditional: bool = Field(True, description="learn what each class looks like, where the data has classes")
    condition_dropout: float = Field(0.1, ge=0, lt=1, description="share of rows trained without their class, for guidance")
    network: UNetConfig = UNetConfig()

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        self.network.require_size(*self.image_size)
        if self.condition_dropout and not self.num_classes:
            raise ValueError("condition_dropout has no effect with num_classes=0; set it to 0")
        return self


class Denoising(Family):
    """A U-Net that tells data from noise at every time."""

    Sampler = DenoisingSampler
    config: DenoisingConfig
    phases = (Phase("denoiser", ("network",)),)
    averaged = ("network",)
    recomputed = ("network.down.*", "network.middle.*", "network.up.*")
    headline = ("loss", "min")
    samplers: tuple[Name, ...]  # those that fit, the family's own first

    def __init__(self, config: DenoisingConfig) -> None:
        super().__init__(config)
        self.network = config.network.build(config.image_channels, config.num_classes)

    @property
    def schedule(self) -> Schedule:
        """alpha and sigma of a time."""
        raise NotImplementedError

    @property
    def prediction(self) -> Prediction:
        """What the network says."""
        raise NotImplementedError

    def network_steps(self, t: Tensor) -> Tensor:
        """Times in [0, 1], any shape, as the network is told them: numbers in [0, 1000)."""
        raise NotImplementedError

    def time_of(self, uniform: Tensor) -> Tensor:
        """Times (B,) float64 at which the network learns, of uniform numbers (B,) in [0, 1), which they grow with."""
        raise NotImplementedError

    def loss_weights(self, t: Tensor) -> Tensor:
        """Weight of the mean squared error of the prediction at times t (B,): (B,)."""
        return torch.ones_like(t)

    def ends(self, batch: Batch, ctx: Context) -> tuple[Tensor, Tensor]:
        """Data in [-1, 1] and the noise that it is learnt with, both (B, C, H, W) float32."""
        data = 2 * pixels(batch) - 1
        return data, ctx.random.normal("noise", tuple(data.shape))

    def predict(self, x: Tensor, t: Tensor, labels: Tensor | None, random: Draws | None = None) -> Tensor:
        """The prediction (B, C, H, W) float32 for x at times t (B,), or () for all, and `labels` (B,) int64 where there are classes."""
        steps = self.network_steps(t)
        if steps.dim() == 0 and steps.device.type == "cpu":  # of a sampler: filled in on the device, which nobody waits for
            told = torch.full((), steps.item(), dtype=torch.float32, device=x.device)
        else:
            told = steps.to(x.device, torch.float32)
        return self.network(x, told, labels, random).float()

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        return self.config.image_channels, *self.config.image_size

    @classmethod
    def fit(cls, config: AnyConfig, data: DataShape) -> AnyConfig:
        assert isinstance(config, DenoisingConfig)
        channels, height, width = image_shape(data)
        num_classes = len(data.class_names) if config.conditional and LABEL in data.columns else 0
        found = {"image_channels": channels, "image_size": (height, width), "num_classes": num_classes}
        return type(config).parse(
            config.to_json() | found | ({} if num_classes else {"condition_dropout": 0.0}), f"pictures of {height} x {width} pixels"
        )

    def loss(self, phase: str, batch: Batch, ctx: Context) -> PhaseOutput:
        data, noise = self.ends(batch, ctx)
        labels, random = self._labels(batch), ctx.random if self.training else None
        if labels is not None and random is not None and self.config.condition_dropout:
            dropped = random.uniform("condition", tuple(labels.shape)) < self.config.condition_dropout
            labels = labels.masked_fill(dropped, self.config.num_classes)
        t = self.time_of(ctx.random.uniform("time", (len(data),)).double())
        return PhaseOutput(self.losses(data, noise, t, labels, random).mean())

    def losses(self, data: Tensor, noise: Tensor, t: Tensor, labels: Tensor | None, random: Draws | None = None) -> Tensor:
        """The weighted mean squared error of each row, (B,) float32, at times t (B,)."""
        at = Coefficients.at(self.schedule, t, data)
        error = self.predict(noised(data, noise, at), t, labels, random) - target(self.prediction, data, noise, at)
        return error.square().flatten(1).mean(1) * self.loss_weights(t).to(error)

    def evaluate(self, batch: Batch, ctx: Context) -> dict[str, tuple[Tensor, Tensor]]:
        """The loss with the true classes, over all time and over each quarter of it; rows take turns in the quarters."""
        data, noise = self.ends(batch, ctx)
        turn = (ctx.first_row + torch.arange(len(data), device=data.device)) % QUARTERS
        t = self.time_of((ctx.random.uniform("time", (len(data),)).double() + turn) / QUARTERS)
        losses = self.losses(data, noise, t, self._labels(batch)).double()
        quarter = (t * QUARTERS).ceil().long().clamp(1, QUARTERS) - 1
        by_time = losses.new_zeros(QUARTERS).index_add(0, quarter, losses)
        return {
            "loss": (losses.sum(), torch.tensor(len(data))),
            "loss_by_time": (by_time, torch.bincount(quarter, minlength=QUARTERS)),
        }

    def finish(self, totals: Mapping[str, tuple[Tensor, Tensor]], rows: Mapping[str, Tensor]) -> dict[str, float | list[float]]:
        """The quotients; of a few rows, which do not reach each quarter, the loss over all time alone."""
        return super().finish({name: (total, count) for name, (total, count) in totals.items() if count.all()}, rows)

    @classmethod
    def charts(cls, scores: Mapping[str, float | list[float]]) -> tuple[Chart, ...]:
        losses = scores.get("loss_by_time")
        if not isinstance(losses, list):
            return ()
        places = tuple((quarter + 0.5) / QUARTERS for quarter in range(QUARTERS))
        curve = Series(name="held-out pictures", x=places, y=tuple(losses))
        caption = "Mean over each quarter of time, from data at 0 to noise at 1."
        return (Chart(title="Loss over time", caption=caption, x_label="time", y_label="loss", series=(curve,)),)

    def _labels(self, batch: Batch) -> Tensor | None:
        return known_labels(batch, self.config.num_classes)

    def denoiser(self, labels: Tensor | None = None, guidance: float = 1.0, clip: bool = True) -> Denoiser:
        """What samplers ask, for rows of the classes `labels` (B,); none: of no class.

        prediction_none + guidance (prediction_class - prediction_none), both from one batch (Ho and Salimans 2022, arXiv 2207.12598).
        """
        none = torch.full_like(labels, self.config.num_classes) if labels is not None else None
        if none is None and self.config.num_classes and not self.config.condition_dropout:
            raise UserError("the model was trained with classes alone, condition_dropout being 0; give labels")
        if labels is None and guidance not in (0, 1):
            raise UserError(f"guidance={guidance:g} leads towards a class; give labels, or guidance=1")

        def model(x: Tensor, t: Tensor) -> Tensor:
            if labels is None or none is None or guidance == 1:
                return self.predict(x, t, labels)
            if guidance == 0:
                return self.predict(x, t, none)
            both = self.predict(torch.cat([x, x]), torch.cat([t, t]) if t.dim() else t, torch.cat([labels, none]))
            with_class, without = both.chunk(2)
            return torch.lerp(without, with_class, guidance)

        return Denoiser(model, self.prediction, self.schedule, CLIP if clip else None)

    def sample(self, count: int, seed: int, sampler: AnyConfig, first: int = 0) -> Tensor:
        """Pictures (count, C, H, W) in [0, 1]; row i depends on the seed, its number and the sampler only.

        Raises UserError for a sampler or an option that does not fit this model.
        """
        pictures = torch.empty(count, *self.sample_shape, device=self._device)
        for rows, _, data in self._drawn(count, seed, sampler, first):
            pictures[rows] = data.add(1).div(2).clamp(0, 1)
        return pictures

    def sample_pairs(self, count: int, seed: int, sampler: AnyConfig, first: int = 0) -> tuple[Tensor, Tensor]:
        """The noise (count, C, H, W) that `sample` starts from and the data it ends at, in [-1, 1] but for errors."""
        noise, ends = (torch.empty(count, *self.sample_shape, device=self._device) for _ in range(2))
        for rows, start, data in self._drawn(count, seed, sampler, first):
            noise[rows], ends[rows] = start, data
        return noise, ends

    def sample_labels(self, count: int, sampler: AnyConfig, first: int = 0) -> Tensor | None:
        """Each class in turn, or the one that `sampler` names."""
        assert isinstance(sampler, DenoisingSampler)
        return classes_in_turn(count, first, self.config.num_classes, sampler.label)

    def evaluations(self, sampler: AnyConfig) -> int | None:
        """Passes of a picture through the network; None for dopri5, which chooses its steps."""
        settled = self.settled(sampler)
        cost = method_of(settled).cost
        return cost(settled, self.schedule) * (1 if settled.guidance in (0.0, 1.0) else 2) if cost is not None else None

    def settled(self, sampler: AnyConfig) -> DenoisingSampler:
        """The sampler with nothing left open; raises UserError when it, or an option of it, does not fit this model."""
        assert isinstance(sampler, DenoisingSampler)
        c = self.config
        if sampler.label is not None and not c.num_classes:
            raise UserError(f"sampler.label={sampler.label}: the model was trained without classes; leave label out")
        if sampler.label is not None and sampler.label >= c.num_classes:
            raise UserError(
                f"sampler.label={sampler.label}: the model knows {c.num_classes} classes; choose 0 to {c.num_classes - 1} or none"
            )
        if sampler.guidance != 1 and not c.num_classes:
            raise UserError(f"sampler.guidance={sampler.guidance}: the model was trained without classes; leave guidance out")
        if sampler.guidance != 1 and not c.condition_dropout:
            raise UserError(f"sampler.guidance={sampler.guidance} needs a model trained with condition_dropout above 0; set guidance=1")
        found = settled(sampler, self.samplers, self.schedule)
        if found.spacing is not None and found.steps is not None:
            times_of(self.schedule, found.spacing, found.steps)  # raises where the schedule has no such times
        return found

    def from_noise(self, start: Tensor, sampler: AnyConfig, labels: Tensor | None = None, noise: Noise | None = None) -> Tensor:
        """Data (B, C, H, W) in [-1, 1] of standard normal `start`; what a sampler draws on the way is `noise`.

        Of the classes `labels` (B,), else of the one that `sampler` names, else of none.
        """
        settled, times = self._times(sampler)
        denoiser = self.denoiser(self._classes(len(start), labels, settled), settled.guidance, bool(settled.clip))
        with torch.inference_mode():
            return method_of(settled).run(denoiser, start.to(self._device) * self._spread, times, noise or _no_noise, settled)

    def encode(self, images: Tensor, sampler: AnyConfig, labels: Tensor | None = None) -> Tensor:
        """The noise (B, C, H, W) from which `from_noise`, with clip=false, comes back to images (B, C, H, W) in [0, 1]; classes as there.

        Raises UserError for a sampler that cannot be walked backwards: `ddim` with eta=0 and solvers of the probability flow can.
        """
        assert isinstance(sampler, DenoisingSampler)
        settled, times = self._times(sampler)
        back = method_of(settled).back
        if back is None or settled.eta:
            fitting = ", ".join(name for name in self.samplers if METHODS[name].back is not None)
            raise UserError(
                f"sampler={settled.sampler} eta={settled.eta:g} cannot be walked from data to noise; choose, with eta=0, one of {fitting}"
            )
        denoiser = self.denoiser(self._classes(len(images), labels, settled), settled.guidance, clip=bool(sampler.clip))
        with torch.inference_mode():
            return back(denoiser, 2 * images.to(self._device) - 1, times, settled) / self._spread

    def interpolate(self, a: Tensor, b: Tensor, shares: Sequence[float], sampler: AnyConfig, labels: Tensor | None = None) -> Tensor:
        """Pictures (S, B, C, H, W) in [0, 1] on the way from images a to b, both (B, C, H, W): share 0 is a, 1 is b.

        Their noises are joined by great circles. Sampler and classes are as in `encode`.
        """
        assert isinstance(sampler, DenoisingSampler)
        sampler = sampler.model_copy(update={"clip": False if "clip" in method_of(self.settled(sampler)).options else None})
        start, end = (self.encode(images, sampler, labels) for images in (a, b))
        between = (self.from_noise(slerp(start, end, share), sampler, labels) for share in shares)
        return torch.stack([data.add(1).div(2).clamp(0, 1) for data in between])

    def bits_per_dim(self, images: Tensor, ctx: Context, labels: Tensor | None = None) -> Tensor:
        """Bits for each of the numbers of images (B, C, H, W) uint8: (B,) float64, along the probability flow.

        By one dequantization and one Hutchinson probe of `ctx.random` for each row; of no class without `labels`.
        """
        shape = tuple(images.shape)
        data = dequantized(images, ctx.random.uniform("dequantization", shape))
        nats = log_likelihood(self.denoiser(labels, clip=False), data, noise=lambda like: ctx.random.normal("probe", shape).to(like.dtype))
        return bits_per_dim(nats, data[0].numel())

    def _drawn(self, count: int, seed: int, sampler: AnyConfig, first: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Rows of the samples asked for, their noise and their data, in parts of the sampler's batch size."""
        settled, labels = self.settled(sampler), self.sample_labels(count, sampler, first)
        for low in range(0, count, settled.batch_size):
            rows = slice(low, min(count, low + settled.batch_size))
            noise = noise_by_row(seed, first + low, self._device)
            start = noise(torch.empty(rows.stop - low, *self.sample_shape))
            yield rows, start, self.from_noise(start, sampler, labels[rows] if labels is not None else None, noise)

    def _times(self, sampler: AnyConfig) -> tuple[DenoisingSampler, Tensor]:
        """The settled sampler, and the times at which it stops."""
        settled = self.settled(sampler)
        if settled.spacing is None or settled.steps is None:
            return settled, torch.tensor([1.0, 0.0], dtype=torch.float64)
        return settled, times_of(self.schedule, settled.spacing, settled.steps)

    def _classes(self, count: int, labels: Tensor | None, sampler: DenoisingSampler) -> Tensor | None:
        """Of `count` rows, on the model's device: `labels`, else the one that the sampler names, else none."""
        if labels is None and sampler.label is not None:
            return torch.full((count,), sampler.label, device=self._device)
        return labels.to(self._device) if labels is not None else None

    @property
    def _spread(self) -> float:
        """Standard deviation at time 1 of data that has 1 at time 0."""
        end = torch.ones((), dtype=torch.float64)
        return float((self.schedule.alpha(end).square() + self.schedule.sigma(end).square()).sqrt())

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device


def _no_noise(like: Tensor) -> Tensor:
    raise AssertionError("this sampler draws noise on its way; give it some")
