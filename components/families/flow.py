"""Normalizing flows: invertible networks whose likelihood is exact, of pictures or points.

NICE (Dinh et al. 2015, arXiv 1410.8516), RealNVP (Dinh et al. 2017, arXiv 1605.08803), Glow (Kingma and Dhariwal 2018, arXiv 1807.03039),
and a continuous flow (Grathwohl et al. 2019, arXiv 1810.01367).
Pictures of 8 bits are spread over [0, 1] by uniform noise and taken to the whole line by a logit, which both count in the likelihood.
`python -m pipelines.cli train flow DATA`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from components.config import Config
from components.config import Config as AnyConfig
from components.errors import UserError
from components.families.contract import Batch, DataShape, Family, OptimizerConfig, Phase, PhaseOutput, Proof
from components.families.images import IMAGE
from components.families.points import POINT, data_shape
from components.functional.ddim import slerp
from components.networks.bijection import BijectionChain, Logit, draw_latents
from components.networks.continuous_flow import ContinuousConfig, ContinuousFlow
from components.networks.glow import GlowConfig
from components.networks.nice import NICEConfig
from components.networks.realnvp import RealNVPConfig
from components.networks.solver import Method, SolverConfig
from components.training.context import Context
from components.training.randomness import Draws

LEVELS = 256  # of a number of 8 bits
ALPHA = 1 / 2048  # a background that is all 0 then spreads over as much of the line as the rest: far sooner learnt than with 0.05
# Equal steps: those that adaptive ones choose for the rows of one worker are others than for the rows of another, within the tolerances.
RK4 = {"method": "rk4", "steps": 4}
CONTINUOUS: dict[str, object] = {"kind": "continuous", "widths": (48, 48), "solver": RK4, "test_solver": RK4}


class FlowConfig(Config):
    """The network, by its `kind`. The data decides `shape`."""

    shape: tuple[int, ...] = Field((1, 28, 28), description="of one row: channels, height and width, or the numbers of a point")
    alpha: float | None = Field(None, gt=0, lt=0.5, description="pictures: how near to 0 and 1 their logit is taken; none: 1 / 2048")
    network: Annotated[NICEConfig | RealNVPConfig | GlowConfig | ContinuousConfig, Field(discriminator="kind")] = GlowConfig()

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if self.alpha is not None and not self.pictures:
            raise ValueError(f"alpha={self.alpha} has no effect on points, whose numbers are taken as they are; leave it out")
        self.network.require_shape(self.shape)
        return self

    @property
    def pictures(self) -> bool:
        return len(self.shape) == 3

    @property
    def dims(self) -> int:
        return math.prod(self.shape)


class FlowSampler(Config):
    """How latents become data."""

    temperature: float = Field(1.0, gt=0, description="factor of the latents: below 1 nearer to the most likely ones")
    batch_size: int = Field(256, gt=0, description="rows drawn at once; samples do not depend on it, but within the tolerances of dopri5")
    method: Method | None = Field(None, description="how a continuous flow is solved; none: as in evaluation")
    steps: int | None = Field(None, gt=0, description="of its equal steps, not for dopri5")
    rtol: float | None = Field(None, gt=0, description="of dopri5")
    atol: float | None = Field(None, gt=0, description="of dopri5")


class Flow(Family):
    """An invertible network from data to latents with a simple density."""

    Config = FlowConfig
    Sampler = FlowSampler
    config: FlowConfig
    phases = (Phase("flow", ("network",)),)
    averaged = ("network",)
    headline = ("nats", "min")
    surveyed_rows = 256
    proof = Proof("images", {"network": {"kind": "glow", "squeezes": (2, 2), "steps": 2, "width": 16}}, OptimizerConfig(lr=5e-3), 80, 0.4)
    proofs: ClassVar[Mapping[str, Proof]] = {
        "nice": Proof(
            "images", {"network": {"kind": "nice", "layers": 1, "width": 32, "prior": "normal"}}, OptimizerConfig(lr=5e-3), 80, 0.4
        ),
        "realnvp": Proof("points", {"network": {"kind": "realnvp", "width": 32}}, OptimizerConfig(lr=1e-2), 80, 0.75),
        "continuous": Proof("points", {"network": CONTINUOUS}, OptimizerConfig(lr=2e-2), 100, 0.75),
        "hutchinson": Proof("points", {"network": CONTINUOUS | {"divergence": "hutchinson"}}, OptimizerConfig(lr=2e-2), 100, 0.8),
    }

    def __init__(self, config: FlowConfig) -> None:
        super().__init__(config)
        start = BijectionChain(*([Logit(ALPHA if config.alpha is None else config.alpha)] if config.pictures else []))
        self.network = config.network.build(config.shape, start)
        self.recomputed = tuple(f"network.{pattern}" for pattern in self.network.recomputed)
        if isinstance(self.network, ContinuousFlow):
            self.asked = ("network.field",)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return self.config.shape

    @classmethod
    def fit(cls, config: AnyConfig, data: DataShape) -> AnyConfig:
        assert isinstance(config, FlowConfig)
        shape = data_shape(data)
        alpha = ALPHA if config.alpha is None and len(shape) == 3 else config.alpha
        return cls.Config.parse(config.to_json() | {"shape": shape, "alpha": alpha}, f"rows of {' x '.join(map(str, shape))}")

    def begin(self, rows: Batch) -> None:
        """The data-dependent initialisation: one pass over the same rows on every worker."""
        device = next(self.network.parameters()).device
        self.network.initialize(self._data(rows, Draws(0, 0, "begin", 0, device)))

    def loss(self, phase: str, batch: Batch, ctx: Context) -> PhaseOutput:
        """Nats for each number, so that rows of any size ask for like learning rates."""
        found = self.network.objective(self._data(batch, ctx.random), ctx.random)
        nats = -found.log_prob.mean()
        metrics = {"nats": nats.detach() + self._nats_of_levels} | found.metrics
        if self.config.pictures:
            metrics["bits_per_dim"] = _bits_per_dim(metrics["nats"], self.config.dims)
        return PhaseOutput(nats / self.config.dims + found.penalty, metrics)

    def evaluate(self, batch: Batch, ctx: Context) -> dict[str, tuple[Tensor, Tensor]]:
        """Nats a row, of pictures with one dequantization of their 8-bit numbers, and of these also bits for each number."""
        nats = self._nats(batch, ctx.random)
        count = torch.tensor(len(nats))
        scores = {"nats": (nats.sum(), count)}
        if self.config.pictures:
            scores["bits_per_dim"] = (_bits_per_dim(nats, self.config.dims).sum(), count)
        return scores

    @torch.no_grad()
    def bits_per_dim(self, images: Tensor, ctx: Context, labels: Tensor | None = None) -> Tensor:
        """Bits for each of the numbers of images (B, C, H, W) uint8, by one dequantization of `ctx.random`: (B,) float64."""
        return _bits_per_dim(self._nats({IMAGE: images}, ctx.random), self.config.dims)

    def sample(self, count: int, seed: int, sampler: AnyConfig, first: int = 0) -> Tensor:
        """Pictures (count, C, H, W) in [0, 1], or points (count, D); row i depends on the seed, its number and the temperature only."""
        assert isinstance(sampler, FlowSampler)
        device = next(self.network.parameters()).device
        latents = draw_latents(self.network.prior, Draws(seed, 0, "sample", first, device), (count, *self.config.shape))
        return torch.cat([self.decode_latents(part, sampler) for part in (sampler.temperature * latents).split(sampler.batch_size)])

    def sample_labels(self, count: int, sampler: AnyConfig, first: int = 0) -> Tensor | None:
        return None

    def evaluations(self, sampler: AnyConfig) -> int | None:
        """One inverse pass; of a continuous flow those of its field, None for dopri5, which decides that as it goes."""
        solver = self._solver(sampler)
        return 1 if solver is None else solver.evaluations

    def settled(self, sampler: AnyConfig) -> FlowSampler:
        """The sampler with the solver of a continuous flow filled in; raises UserError where its options do not fit the model."""
        assert isinstance(sampler, FlowSampler)
        solver = self._solver(sampler)
        return sampler if solver is None else sampler.model_copy(update=solver.settled().model_dump())

    def _solver(self, sampler: AnyConfig) -> SolverConfig | None:
        """How the sampler solves a continuous flow: what it says itself, on top of how scores do if the method is the same."""
        assert isinstance(sampler, FlowSampler)
        own = {name: value for name in SolverConfig.model_fields if (value := getattr(sampler, name)) is not None}
        network = self.config.network
        if not isinstance(network, ContinuousConfig):
            for name, value in own.items():
                raise UserError(f"sampler.{name}={value}: the inverse of a flow of kind {network.kind} is exact; leave {name} out")
            return None
        scores = network.test_solver.to_json()
        return SolverConfig.parse((scores if own.get("method", scores["method"]) == scores["method"] else {}) | own, "sampler")

    @torch.inference_mode()
    def encode(self, data: Tensor) -> Tensor:
        """The latents (B, *shape) of pictures (B, C, H, W) in [0, 1], each in the middle of its grey value, or of points (B, D)."""
        if self.config.pictures:
            data = (data * (LEVELS - 1) + 0.5) / LEVELS
        return self.network.latents(data)

    @torch.inference_mode()
    def decode_latents(self, latents: Tensor, sampler: FlowSampler | None = None) -> Tensor:
        """The inverse of `encode`; pictures are kept in [0, 1]."""
        data = self.network.inverse(latents, None if sampler is None else self._solver(sampler))
        return ((data * LEVELS - 0.5) / (LEVELS - 1)).clamp(0, 1) if self.config.pictures else data

    def interpolate(self, a: Tensor, b: Tensor, shares: Sequence[float]) -> Tensor:
        """Rows (S, B, *shape) on the way from a to b, both (B, *shape): share 0 is a, 1 is b. Latents are joined by great circles."""
        start, end = self.encode(a), self.encode(b)
        return torch.stack([self.decode_latents(slerp(start, end, share)) for share in shares])

    def _nats(self, batch: Batch, random: Draws) -> Tensor:
        """(B,) float64."""
        return self._nats_of_levels - self.network.log_prob(self._data(batch, random), random).double()

    @property
    def _nats_of_levels(self) -> float:
        """What a picture's 8-bit numbers cost beyond its density on [0, 1]: all they cost, where that is uniform."""
        return self.config.dims * math.log(LEVELS) if self.config.pictures else 0.0

    def _data(self, batch: Batch, random: Draws) -> Tensor:
        """Rows as the network takes them: points as they are, pictures spread over [0, 1] by uniform noise."""
        if not self.config.pictures:
            return batch[POINT].float()
        images = batch[IMAGE]
        return (images.float() + random.uniform("dequantization", tuple(images.shape))) / LEVELS


def _bits_per_dim(nats: Tensor, dims: int) -> Tensor:
    """Bits for each of `dims` numbers."""
    return nats / (dims * math.log(2))
