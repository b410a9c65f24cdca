"""Transformer prior: learns which grids of codes a class of pictures has, and draws new ones.

The second stage of Esser et al. 2021, arXiv 2012.09841. A sequence is [class token, code 1, ..., code L-1] and predicts code 1, ...,
code L, row by row. `python -m pipelines.cli train prior CODES`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from components.config import Config
from components.config import Config as AnyConfig
from components.errors import UserError
from components.families.contract import Batch, DataShape, Family, OptimizerConfig, Phase, PhaseOutput, Proof
from components.families.gpt2_export import write_gpt2
from components.families.images import classes_in_turn, require_below
from components.functional.token_sampling import draw, guide, keep_top_k, keep_top_p
from components.networks.transformer import Activation, Transformer
from components.training.context import Context
from components.training.randomness import Draws


class PriorConfig(Config):
    """Shape and regularization. The data decides `grid` and `num_classes`; `code_count` is the size of the tokenizer's codebook."""

    code_count: int = Field(256, gt=1)
    grid: tuple[int, int] = Field((7, 7), description="rows and columns of codes of one picture")
    num_classes: int = Field(10, ge=0, description="0: no classes, the null token stands at the start of every sequence")
    layers: int = Field(4, gt=0)
    heads: int = Field(4, gt=0)
    width: int = Field(128, gt=0)
    activation: Activation = "gelu_tanh"
    dropout: float = Field(0.1, ge=0, lt=1, description="of embeddings and of each branch, rounded to 1/256")
    pkeep: float = Field(1.0, gt=0, le=1, description="probability that an input code is kept; else it is a random code")
    condition_dropout: float = Field(0.1, ge=0, lt=1, description="share of rows trained without their class, for guidance")

    @property
    def length(self) -> int:
        """Codes of one picture."""
        return self.grid[0] * self.grid[1]

    @property
    def vocabulary(self) -> int:
        """Codes, then one token a class, then the null token."""
        return self.code_count + self.num_classes + 1

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is no multiple of heads={self.heads}")
        if min(self.grid) < 1:
            raise ValueError(f"grid={self.grid} must have at least one row and one column")
        if self.condition_dropout and not self.num_classes:
            raise ValueError("condition_dropout has no effect with num_classes=0; set it to 0")
        return self


class PriorSampler(Config):
    """How codes are drawn. The filters act in this order: guidance, temperature, top_k, top_p."""

    label: int | None = Field(None, ge=0, description="class of every sample; None: each class in turn")
    temperature: float = Field(1.0, gt=0)
    top_k: int | None = Field(None, gt=0, description="keep the k most likely codes; 1 is greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="keep the fewest codes with this much probability")
    guidance: float = Field(1.0, ge=0, description="0: ignore the class; 1: as trained; above 1: exaggerate the class")
    batch_size: int = Field(256, gt=0, description="rows drawn at once; samples do not depend on it")


class Prior(Family):
    """A class-conditional distribution over grids of codes; a tokenizer, adopted as `tokenizer`, turns its samples into pictures."""

    Config = PriorConfig
    Sampler = PriorSampler
    config: PriorConfig
    phases = (Phase("prior", ("transformer",)),)
    averaged = ("transformer",)
    recomputed = ("transformer.blocks.*",)
    headline = ("bits_per_code", "min")
    kept = ("tokenizer",)
    proof = Proof(
        data="codes",
        model={"code_count": 16, "layers": 2, "heads": 2, "width": 32},
        optimizer=OptimizerConfig.parse({"lr": 3e-3}, "proof of the prior"),
        steps=60,
        improves=0.8,
    )

    def __init__(self, config: PriorConfig) -> None:
        super().__init__(config)
        c = config
        self.transformer = Transformer(c.vocabulary, c.length, c.layers, c.heads, c.width, c.dropout, c.activation)
        self._tokenizer: tuple[Any, ...] = ()  # in a tuple: its weights are another model's, neither trained nor saved with these

    @property
    def sample_shape(self) -> tuple[int, int]:
        return self.config.grid

    @classmethod
    def fit(cls, config: AnyConfig, data: DataShape) -> AnyConfig:
        column = data.columns.get("codes")
        if column is None:
            raise UserError(
                f"the data set has columns {', '.join(data.columns)}, but a prior learns from 'codes'; make codes with a tokenizer"
            )
        if len(column.shape) != 2 or column.dtype == "float32":
            raise UserError(f"the column 'codes' holds {column.dtype} of shape {column.shape}, expected integers of shape (rows, columns)")
        num_classes = len(data.class_names) if "label" in data.columns else 0
        found = {"grid": column.shape, "num_classes": num_classes} | ({} if num_classes else {"condition_dropout": 0.0})
        return cls.Config.parse(config.to_json() | found, "prior config with the shape of its codes")

    def adopt(self, name: str, model: Family) -> None:
        """Takes the `tokenizer` that made the codes; raises UserError when its codes are others than this model's."""
        if name != "tokenizer":
            return super().adopt(name, model)
        theirs = getattr(model.config, "num_codes", None), getattr(model.config, "grid", None)
        if theirs != (self.config.code_count, self.config.grid):
            raise UserError(
                f"the tokenizer makes grids {theirs[1]} of {theirs[0]} codes, the prior draws {self.config.grid} of "
                f"{self.config.code_count}; use the tokenizer that made the prior's data set"
            )
        self._tokenizer = (model.requires_grad_(False).eval(),)
        return None

    def loss(self, phase: str, batch: Batch, ctx: Context) -> PhaseOutput:
        codes, labels = self._read(batch)
        random = ctx.random if self.training else None
        logits = self._logits(self._inputs(codes, labels, random), random)
        nats = F.cross_entropy(logits.flatten(0, 1), codes.flatten())  # a mean over exactly L codes a row
        return PhaseOutput(nats, {"bits_per_code": nats.detach() / math.log(2)})

    def evaluate(self, batch: Batch, ctx: Context) -> dict[str, tuple[Tensor, Tensor]]:
        """Cross-entropy in bits, by code and by picture, with the true class."""
        codes, labels = self._read(batch)
        logits = self._logits(self._inputs(codes, labels, None), None)
        bits = F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none").double().sum() / math.log(2)
        return {"bits_per_code": (bits, torch.tensor(codes.numel())), "bits_per_image": (bits, torch.tensor(codes.shape[0]))}

    def _read(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Codes (B, L) and class tokens (B,), int64; raises UserError for values that the vocabulary does not have."""
        codes = batch["codes"].flatten(1).long()
        c = self.config
        if not c.num_classes:
            return codes, codes.new_full((codes.shape[0],), self._null_token)
        labels = batch["label"].long()
        if codes.device.type == "cpu":  # elsewhere the look would wait for the device; there the loss itself stops on a foreign code
            require_below(codes, c.code_count, "codes", "code_count")
            require_below(labels, c.num_classes, "label", "num_classes")
        return codes, c.code_count + labels

    @property
    def _null_token(self) -> int:
        return self.config.code_count + self.config.num_classes

    def _inputs(self, codes: Tensor, labels: Tensor, random: Draws | None) -> Tensor:
        """Tokens (B, L): the condition, then all codes but the last; with `random`, some of them replaced."""
        c, before = self.config, codes[:, :-1]
        if random is not None and c.condition_dropout:
            labels = labels.masked_fill(random.uniform("condition", labels.shape) < c.condition_dropout, self._null_token)
        if random is not None and c.pkeep < 1:
            other = random.integers("pkeep.code", c.code_count, before.shape)
            before = torch.where(random.uniform("pkeep", before.shape) < c.pkeep, before, other)
        return torch.cat([labels[:, None], before], dim=1)

    def _logits(self, tokens: Tensor, random: Draws | None) -> Tensor:
        """Tokens (B, L) to scores (B, L, K) of the K codes, float32: classes are never predicted."""
        return self.transformer.logits(self.transformer(tokens, random), self.config.code_count).float()

    def sample(self, count: int, seed: int, sampler: AnyConfig, first: int = 0) -> Tensor:
        """Codes (count, h, w) int64; row i depends on the seed, its number and the sampler only.

        Raises UserError for a label, top_k or guidance that this model does not have.
        """
        assert isinstance(sampler, PriorSampler)
        self.settled(sampler)
        device = self.transformer.norm.weight.device
        uniform = Draws(seed, 0, "sample", first, device).uniform("codes", (count, self.config.length))
        labels = self.sample_labels(count, sampler, first)
        conditions = torch.full((count,), self._null_token) if labels is None else self.config.code_count + labels
        conditions = conditions.to(device)
        codes = torch.empty(count, self.config.length, dtype=torch.int64, device=device)
        for part in range(0, count, sampler.batch_size):
            rows = slice(part, part + sampler.batch_size)
            self._draw_codes(codes[rows], conditions[rows], uniform[rows].T.contiguous(), sampler)
        return codes.view(count, *self.config.grid)

    def sample_labels(self, count: int, sampler: AnyConfig, first: int = 0) -> Tensor | None:
        """Each class in turn, or the one that `sampler` names."""
        assert isinstance(sampler, PriorSampler)
        return classes_in_turn(count, first, self.config.num_classes, sampler.label)

    def evaluations(self, sampler: AnyConfig) -> int:
        """Steps of the transformer, one a code."""
        assert isinstance(sampler, PriorSampler)
        return self.config.length * (2 if sampler.guidance != 1 else 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) to images (B, C, H, W) in [0, 1] by the adopted tokenizer; raises UserError without one."""
        if not self._tokenizer:
            raise UserError("this prior has no tokenizer to make pictures with; adopt the one that made its codes")
        with torch.inference_mode():
            return self._tokenizer[0].to(codes.device).decode(codes)

    def settled(self, sampler: AnyConfig) -> PriorSampler:
        """The sampler as it is. Raises UserError for a label, top_k or guidance that this model does not have."""
        assert isinstance(sampler, PriorSampler)
        c = self.config
        if sampler.label is not None and sampler.label >= c.num_classes:
            raise UserError(
                f"sampler.label={sampler.label}: the prior knows {c.num_classes} classes; choose 0 to {c.num_classes - 1} or none"
            )
        if sampler.top_k is not None and sampler.top_k > c.code_count:
            raise UserError(f"sampler.top_k={sampler.top_k} is more than the {c.code_count} codes there are; lower it or leave it out")
        if sampler.guidance != 1 and not c.condition_dropout:
            raise UserError(f"sampler.guidance={sampler.guidance} needs a prior trained with condition_dropout above 0; set guidance=1")
        return sampler

    @torch.inference_mode()
    def _draw_codes(self, codes: Tensor, conditions: Tensor, uniform: Tensor, sampler: PriorSampler) -> None:
        """Fills `codes` (B, L) in place, one position after another; `uniform` (L, B) decides. Guidance runs both streams in one batch."""
        model, rows, guided = self.transformer, codes.shape[0], sampler.guidance != 1
        tokens = torch.cat([conditions, torch.full_like(conditions, self._null_token)]) if guided else conditions
        cache = model.new_cache(tokens.shape[0])
        for position in range(self.config.length):
            logits = model.logits(model.step(tokens, position, cache), self.config.code_count)
            if guided:
                logits = guide(logits[:rows], logits[rows:], sampler.guidance)
            drawn = draw(_filtered(logits, sampler), uniform[position])
            codes[:, position] = drawn
            tokens = drawn.repeat(2) if guided else drawn

    def export(self, folder: Path) -> None:
        """A Hugging Face `GPT2LMHeadModel` folder: tokens are codes, then classes, then the null token."""
        write_gpt2(self.transformer, folder, self.config.code_count)


def _filtered(logits: Tensor, sampler: PriorSampler) -> Tensor:
    if sampler.temperature != 1:
        logits = logits / sampler.temperature
    if sampler.top_k is not None:
        logits = keep_top_k(logits, sampler.top_k)
    return keep_top_p(logits, sampler.top_p) if sampler.top_p < 1 else logits
