"""How a run is trained, whatever the family: length, batch, optimizer, schedule, precision, averages, recomputation, checkpoints."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from components.config import Config
from components.families.contract import OptimizerConfig


class TrainConfig(Config):
    """One run's settings. Steps count optimizer steps; the batch is the global one, whatever the number of workers."""

    steps: int = Field(1000, gt=0)
    batch_size: int = Field(128, gt=0, description="rows of the global batch")
    accumulate: int = Field(1, ge=1, description="micro-batches a worker splits its rows into")
    seed: int = Field(0, ge=0)
    optimizer: OptimizerConfig = OptimizerConfig()
    warmup_steps: int = Field(0, ge=0)
    final_lr_fraction: float = Field(0.0, ge=0, le=1, description="learning rate at the end of the cosine, as a fraction of its peak")
    clip_norm: float | None = Field(1.0, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="average of the weights by steps of the loop, used to evaluate and to publish"
    )
    recompute: int = Field(0, ge=0, description="activation checkpointing: 0 off, k: segments of k blocks")
    log_every: int = Field(20, gt=0)
    checkpoint_every: int = Field(200, gt=0)
    keep_last: int = Field(1, ge=1, description="newest checkpoints kept")
    keep_best: int = Field(0, ge=0, description="checkpoints kept for their held-out score")
    held_out: str = Field("test", description="split of the data that is scored")
    evaluate_every: int = Field(0, ge=0, description="0: at the end only")
    evaluate_rows: int | None = Field(None, gt=0, description="held-out rows scored while training; all at the end")
    publish: Literal["last", "best"] = "last"

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps={self.warmup_steps} leaves nothing of steps={self.steps}; lower it")
        if (self.keep_best or self.publish == "best") and not self.evaluate_every:
            raise ValueError("keep_best and publish=best need scores on the way; set evaluate_every")
        if self.publish == "best" and not self.keep_best:
            raise ValueError("publish=best needs a kept best checkpoint; set keep_best=1")
        if self.evaluate_rows is not None and not self.evaluate_every:
            raise ValueError("evaluate_rows has no effect without evaluate_every; set both")
        if self.keep_best and self.evaluate_every % self.checkpoint_every:
            raise ValueError("keep_best scores checkpoints: evaluate_every must be a multiple of checkpoint_every")
        return self
