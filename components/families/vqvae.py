"""VQ-VAE: pictures to a small grid of codes and back (van den Oord et al. 2017, arXiv 1711.00937), with a moving-average codebook.

Pixels are in [0, 1], so a mean squared error of 0.006 is 22 dB. `python -m pipelines.cli train vqvae DATA`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from components.config import Config
from components.config import Config as AnyConfig
from components.errors import UserError
from components.families.contract import Batch, DataShape, Family, OptimizerConfig, Phase, PhaseOutput, Proof
from components.families.images import image_shape, pixels
from components.functional.quantize import codebook_loss, commitment_loss, perplexity, straight_through
from components.networks.convolution import Decoder, Encoder
from components.networks.quantizer import AveragingQuantizer, LearnedQuantizer, Quantizer
from components.training.context import Context


class VQVAEConfig(Config):
    """Shapes and loss weights. The image is halved once for each width: two widths give 7x7 codes from 28x28 pixels."""

    image_channels: int = Field(1, gt=0)
    image_size: tuple[int, int] = Field((28, 28), description="height and width in pixels")
    encoder_widths: tuple[int, ...] = Field((32, 64), min_length=1, description="channels after each halving, fine to coarse")
    decoder_widths: tuple[int, ...] = Field((32, 64), min_length=1, description="the same for the decoder, fine to coarse")
    encoder_blocks: int = Field(2, ge=0)
    decoder_blocks: int = Field(2, ge=0)
    num_codes: int = Field(256, gt=1)
    code_dim: int = Field(32, gt=0)
    codebook: Literal["average", "learned"] = "average"
    codebook_decay: float = Field(0.99, gt=0, lt=1, description="of the moving averages of counts and sums")
    revive_below: float = Field(0.05, ge=0, lt=1, description="a code used less than this share of an even use starts anew")
    commitment: float = Field(0.25, ge=0, description="beta: weight of the commitment term")
    l2_weight: float = Field(1.0, ge=0, description="of the mean squared error of pixels")
    l1_weight: float = Field(0.0, ge=0, description="of the mean absolute error of pixels")

    @property
    def downsampling(self) -> int:
        """Pixels per code along each side."""
        return 2 ** len(self.encoder_widths)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes of one picture."""
        return self.image_size[0] // self.downsampling, self.image_size[1] // self.downsampling

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if len(self.encoder_widths) != len(self.decoder_widths):
            raise ValueError(f"encoder_widths={self.encoder_widths} and decoder_widths={self.decoder_widths} differ in length")
        if any(size < self.downsampling or size % self.downsampling for size in self.image_size):
            raise ValueError(f"image_size={self.image_size} is no multiple of {self.downsampling}, 2 for each of encoder_widths")
        if not self.l2_weight and not self.l1_weight:
            raise ValueError("l2_weight and l1_weight are both 0; one must be positive")
        return self


TINY = {"encoder_widths": (8, 16), "decoder_widths": (8, 16), "encoder_blocks": 1, "decoder_blocks": 1, "num_codes": 8, "code_dim": 8}


class VQVAE(Family):
    """Encoder, quantizer and decoder, trained together."""

    Config = VQVAEConfig
    config: VQVAEConfig
    averaged = ("encoder", "decoder")
    mutable: ClassVar[tuple[str, ...]] = ("commitment", "l2_weight", "l1_weight")
    headline = ("mse", "min")
    proof = Proof("images", TINY, OptimizerConfig(lr=5e-3), steps=80, improves=0.5)

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__(config)
        c = config
        self.encoder = Encoder(c.image_channels, c.encoder_widths, c.encoder_blocks, c.code_dim)
        self.quantizer: Quantizer = (
            LearnedQuantizer(c.num_codes, c.code_dim)
            if c.codebook == "learned"
            else AveragingQuantizer(c.num_codes, c.code_dim, c.codebook_decay, c.revive_below)
        )
        self.decoder = Decoder(c.image_channels, c.decoder_widths, c.decoder_blocks, c.code_dim)
        blocks = {"encoder": c.encoder_blocks, "decoder": c.decoder_blocks}
        trained = ("encoder", "decoder", "quantizer") if c.codebook == "learned" else ("encoder", "decoder")
        self.phases = (Phase("autoencoder", trained),)
        self.recomputed = tuple(f"{part}.blocks.*" for part, count in blocks.items() if count)

    @classmethod
    def fit(cls, config: AnyConfig, data: DataShape) -> AnyConfig:
        channels, height, width = image_shape(data)
        return type(config).parse(
            config.to_json() | {"image_channels": channels, "image_size": (height, width)}, f"pictures of {height} x {width} pixels"
        )

    def loss(self, phase: str, batch: Batch, ctx: Context) -> PhaseOutput:
        images = pixels(batch)
        output, _ = self._autoencode(images, ctx)
        return output

    def _autoencode(self, images: Tensor, ctx: Context) -> tuple[PhaseOutput, Tensor]:
        """The loss on images (B, C, H, W) in [0, 1], and their reconstruction, with gradient."""
        c = self.config
        vectors = self.encoder(images)
        codes = self.quantizer.codes(vectors)
        quantized = self.quantizer.look_up(codes)
        rebuilt = self.decoder(straight_through(vectors, quantized)).float()
        l2, l1 = (rebuilt - images).square().mean(), (rebuilt - images).abs().mean()
        commitment = commitment_loss(vectors, quantized)
        loss = c.l2_weight * l2 + c.l1_weight * l1 + c.commitment * commitment  # eq. 3
        stats = {}
        if isinstance(self.quantizer, AveragingQuantizer):
            stats = self.quantizer.statistics(vectors, codes) | {"candidates": vectors_at_random(vectors, c.num_codes, ctx)}
        else:
            loss = loss + codebook_loss(vectors, quantized)
        metrics = {"mse": l2.detach(), "l1": l1.detach(), "commitment": commitment.detach()}
        return PhaseOutput(loss, metrics, stats), rebuilt

    def after_step(self, phase: str, stats: dict[str, Tensor], ctx: Context) -> None:
        if isinstance(self.quantizer, AveragingQuantizer) and phase == "autoencoder":
            self.quantizer.update(stats["code_count"], stats["code_total"], stats["candidates"])

    def evaluate(self, batch: Batch, ctx: Context) -> dict[str, tuple[Tensor, Tensor]]:
        images = pixels(batch)
        codes = self.encode(images)
        error = self.decode(codes) - images
        usage = torch.bincount(codes.flatten(), minlength=self.config.num_codes)
        return {
            "mse": (error.square().double().sum(), torch.tensor(error.numel())),
            "l1": (error.abs().double().sum(), torch.tensor(error.numel())),
            "code_usage": (usage.double(), torch.tensor(codes.numel())),
        }

    def finish(self, totals: Mapping[str, tuple[Tensor, Tensor]], rows: Mapping[str, Tensor]) -> dict[str, Any]:
        """Adds the share of codes in use and their perplexity over the whole data set to the quotients."""
        usage = totals["code_usage"][0]
        used = (usage > 0).double().mean()
        return super().finish(totals, rows) | {"codes_used": used.item(), "code_perplexity": perplexity(usage).item()}

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to codes (B, h, w) int64."""
        return self.quantizer.codes(self.encoder(images))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) to images (B, C, H, W) in [0, 1]."""
        return self.decoder(self.quantizer.look_up(codes)).float().clamp(0, 1)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1], through their codes and back."""
        return self.decode(self.encode(images))

    def adopt(self, name: str, model: Family) -> None:
        """Takes a trained VQ-VAE's weights as a warm start under the name `vqvae`; raises UserError when the shapes differ."""
        if name != "vqvae":
            return super().adopt(name, model)
        for child in ("encoder", "decoder", "quantizer"):
            theirs = getattr(model, child, None)
            try:
                self.get_submodule(child).load_state_dict(theirs.state_dict() if theirs else {})
            except RuntimeError:
                raise UserError(
                    f"the {child} of {type(model).__name__} {name!r} has another shape than this model's; use equal sizes"
                ) from None
        return None


def vectors_at_random(vectors: Tensor, count: int, ctx: Context) -> Tensor:
    """(count, D) vectors of uniformly drawn rows and positions of the whole batch, as this call's share of a sum over all calls.

    The draw is the same on every worker; the one that holds a drawn row of its (B, D, h, w) fills it in and the others leave zeros.
    """
    rows, _, height, width = vectors.shape
    shared = ctx.random.shared("revival")
    row = torch.randint(ctx.global_rows, (count,), generator=shared).to(vectors.device) - ctx.first_row
    place = torch.randint(height * width, (count,), generator=shared).to(vectors.device)
    mine = (row >= 0) & (row < rows)
    drawn = vectors.detach().float().flatten(2)[row.clamp(0, rows - 1), :, place]
    return drawn * mine[:, None]
