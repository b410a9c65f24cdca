"""Rectified flow: the velocity of straight lines from noise to data (Liu et al. 2022, arXiv 2209.03003).

It learns from `image`, each with noise of its own that is drawn anew every step; or from pairs, `noise` and `image_float`, which a trained
flow has simulated: a row's noise and data stay together, and what is learnt is straighter (reflow). `distill` then learns one step from
noise to data alone. Time runs from data at 0 to noise at 1, in the paper the other way: its velocity is minus ours.
`python -m pipelines.cli train rectified_flow DATA`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from components.config import Config as AnyConfig
from components.errors import UserError
from components.families.contract import Batch, Column, DataShape, OptimizerConfig, Proof
from components.families.denoising import Denoising, DenoisingConfig
from components.families.denoising_sampler import DenoisingSampler
from components.families.diffusers_export import flow_scheduler, write_diffusers
from components.families.images import IMAGE, IMAGE_FLOAT, LABEL, NOISE, image_shape, pixels
from components.functional.flow_matching import logit_normal_times, straightness, transport_cost, transport_pairing
from components.functional.noise_schedules import StraightLine
from components.training.context import Context
from components.training.randomness import LANE

Dtype = Literal["uint8", "float32"]
TIME_SCALE = 1000  # of the time that the network is told
WALKED = 8  # steps in which straightness is measured


class RectifiedFlowConfig(DenoisingConfig):
    """Which times and pairs of noise and data it learns from. The data decides `pairs`."""

    times: Literal["uniform", "logit_normal"] = Field("uniform", description="spread evenly, or mostly in the middle")
    transport: bool = Field(False, description="pair pictures and noise of each batch by optimal transport, within their class")
    pairs: bool = Field(False, description="the data has pairs of noise and image_float, whose pairing is kept")
    distill: bool = Field(False, description="learn the one step from noise to data alone; needs pairs")

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        if self.distill and self.times != "uniform":
            raise ValueError(f"times={self.times} has no effect with distill=true, which learns time 1 alone; leave it out")
        if self.pairs and self.transport:
            raise ValueError("transport=true would pair anew what the data's pairs keep together; set transport=false")
        return self


class RectifiedFlow(Denoising):
    """A network that knows the velocity at every time; after distillation, at time 1 alone."""

    Config = RectifiedFlowConfig
    config: RectifiedFlowConfig
    schedule = StraightLine()
    prediction = "velocity"
    proof = Proof(
        data="images",
        model={"network": {"widths": (8, 16), "attention": (False, True), "blocks": 1, "groups": 4, "patch": 2}},
        optimizer=OptimizerConfig(lr=1e-2),
        steps=80,
        improves=0.6,
    )
    proofs: ClassVar[Mapping[str, Proof]] = {"transport": replace(proof, model=proof.model | {"transport": True})}

    def __init__(self, config: RectifiedFlowConfig) -> None:
        super().__init__(config)
        self.samplers = ("euler",) if config.distill else ("euler", "heun", "midpoint", "rk4", "dopri5", "dpm_solver")

    @classmethod
    def fit(cls, config: AnyConfig, data: DataShape) -> AnyConfig:
        """Raises UserError for half a pair, for pairs that are not alike, and for an option that needs pairs where there are none."""
        assert isinstance(config, RectifiedFlowConfig)
        shape = _shape_of_pairs(data)
        if shape is None and (config.pairs or config.distill):
            option = "distill" if config.distill else "pairs"
            raise UserError(
                f"{option}=true needs pairs, columns {NOISE!r} and {IMAGE_FLOAT!r}, the data set has {', '.join(data.columns)}; "
                f"simulate pairs with a trained flow, or leave {option} out"
            )
        fitted = super().fit(config, data if shape is None else _of_shape(data, {IMAGE: "uint8"}, shape))
        return cls.Config.parse(fitted.to_json() | {"pairs": shape is not None}, "rectified flow with what its data holds")

    def require_fitting(self, data: DataShape, url: str, split: str | None = None) -> None:
        """Pairs and pictures alone can both be scored, whichever the model learnt from."""
        columns: dict[str, Dtype] = {NOISE: "float32", IMAGE_FLOAT: "float32"} if self.config.pairs else {IMAGE: "uint8"}
        super().require_fitting(_of_shape(data, columns, _shape_of_pairs(data) or image_shape(data)), url, split)

    def network_steps(self, t: Tensor) -> Tensor:
        return TIME_SCALE * t

    def time_of(self, uniform: Tensor) -> Tensor:
        if self.config.distill:
            return torch.ones_like(uniform)
        return logit_normal_times(uniform) if self.config.times == "logit_normal" else uniform

    def ends(self, batch: Batch, ctx: Context) -> tuple[Tensor, Tensor]:
        """A pair that the batch holds stays one; else noise is drawn for each picture, in training paired by optimal transport if asked."""
        if NOISE in batch:
            return batch[IMAGE_FLOAT], batch[NOISE]
        if self.config.transport and self.training:
            return 2 * pixels(batch) - 1, self._transported_noise(batch, ctx)
        return super().ends(batch, ctx)

    def _transported_noise(self, batch: Batch, ctx: Context) -> Tensor:
        """Noise for this call's rows in the best pairing of the whole batch, which each worker finds for itself: equal for any number.

        Pictures are gathered; noise need not be, since a row's is computed from its place. Pairs are made within classes where the model
        knows them.
        """
        if sum(ctx.rows_by_worker) != ctx.global_rows:
            raise UserError(
                f"transport=true pairs the {ctx.global_rows} rows of the whole batch, which no worker sees at once with train.accumulate "
                "above 1; set train.accumulate=1, or transport=false"
            )
        images = pixels({IMAGE: ctx.gather(batch[IMAGE])})
        noise = replace(ctx.random, first_row=0).normal("noise", tuple(images.shape))
        labels = ctx.gather(batch[LABEL]) if self.config.num_classes else None
        pairing = transport_pairing(2 * images - 1, noise, labels)
        return noise[pairing[ctx.first_row : ctx.first_row + ctx.rows]]

    def evaluate(self, batch: Batch, ctx: Context) -> dict[str, tuple[Tensor, Tensor]]:
        """Of pairs also their transport cost, the mean squared error of one step from their noise, and how straight the model's paths are.

        Straightness is that of the first row of each lane of eight, walked in eight steps, so that it costs no more than the loss.
        """
        scores = super().evaluate(batch, ctx)
        if NOISE not in batch:
            return scores
        data, noise = self.ends(batch, ctx)
        labels, count = self._labels(batch), torch.tensor(len(data))
        scores["transport_cost"] = transport_cost(data, noise).sum(), count
        if self.config.distill:
            return scores  # the loss is the error of the one step
        one_step = self.losses(data, noise, torch.ones(len(data), dtype=torch.float64, device=data.device), labels)
        scores["one_step_mse"] = one_step.double().sum(), count
        walked = self.straightness(noise[::LANE], None if labels is None else labels[::LANE])
        scores["straightness"] = walked.sum(), torch.tensor(len(walked))
        return scores

    def straightness(self, noise: Tensor, labels: Tensor | None = None, steps: int = WALKED) -> Tensor:
        """S of the model's paths from noise (B, C, H, W), sums over pixels: (B,) float64, 0 for straight ones."""
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        with torch.no_grad():
            return straightness(self.denoiser(labels, clip=False), noise, times)

    def settled(self, sampler: AnyConfig) -> DenoisingSampler:
        """A distilled model takes one Euler step and no other sampler."""
        assert isinstance(sampler, DenoisingSampler)
        if self.config.distill:
            if sampler.steps not in (None, 1):
                raise UserError(f"sampler.steps={sampler.steps}: the model was distilled to one Euler step; leave steps out")
            sampler = sampler.model_copy(update={"steps": 1})
        return super().settled(sampler)

    def encode(self, images: Tensor, sampler: AnyConfig, labels: Tensor | None = None) -> Tensor:
        """As the base; raises UserError for a distilled model, which knows no way back."""
        self._require_all_times("no way from data to noise")
        return super().encode(images, sampler, labels)

    def bits_per_dim(self, images: Tensor, ctx: Context, labels: Tensor | None = None) -> Tensor:
        """As the base; raises UserError for a distilled model, which has no probability flow."""
        self._require_all_times("no likelihood")
        return super().bits_per_dim(images, ctx, labels)

    def _require_all_times(self, lack: str) -> None:
        if self.config.distill:
            raise UserError(f"the model was distilled to one step and has {lack}; use the flow that it was distilled from")

    def export(self, folder: Path) -> None:
        """A diffusers folder: `UNet2DModel` and a `FlowMatchEulerDiscreteScheduler` config."""
        write_diffusers(self.network, flow_scheduler(), folder, self.config.image_size)


def _shape_of_pairs(data: DataShape) -> tuple[int, int, int] | None:
    """(C, H, W) of the data set's pairs, None where it has none; raises UserError for half a pair or one whose ends are not alike."""
    found = {name: data.columns[name] for name in (NOISE, IMAGE_FLOAT) if name in data.columns}
    if not found:
        return None
    if len(found) == 1:
        (name,), (other,) = found, {NOISE, IMAGE_FLOAT} - found.keys()
        raise UserError(
            f"the data set has a column {name!r} but no {other!r}; a pair needs both, simulate pairs again or leave {name!r} out"
        )
    shape = found[NOISE].shape
    if any(column.dtype != "float32" or column.shape != shape or len(shape) != 3 for column in found.values()):
        kinds = " and ".join(f"{name!r} {column.dtype} {column.shape}" for name, column in found.items())
        raise UserError(f"the data set's pairs are {kinds}, expected both float32 of one shape (channels, height, width)")
    channels, height, width = shape
    return channels, height, width


def _of_shape(data: DataShape, pictures: dict[str, Dtype], shape: tuple[int, int, int]) -> DataShape:
    """The same with `pictures`, of this shape, for all that it has of pictures and pairs."""
    others = {name: column for name, column in data.columns.items() if name not in (IMAGE, NOISE, IMAGE_FLOAT)}
    return data.model_copy(update={"columns": others | {name: Column(dtype=dtype, shape=shape) for name, dtype in pictures.items()}})
