"""The config of the pipeline `faces`."""

from __future__ import annotations

from typing import Any

MODEL: dict[str, Any] = {"backbone": "gabor", "embedding_dim": 256, "virtual_identities": 16, "augment": {"flip": True}}
TRAIN: dict[str, Any] = {
    "steps": 500,
    "batch_size": 64,
    "optimizer": {"lr": 1e-3, "betas": (0.9, 0.999)},
    "warmup_steps": 25,
    "clip_norm": 5.0,
    "log_every": 50,
}
RECIPE: dict[str, Any] = {"model": MODEL | {"loss": "cosface", "scale": 16.0, "m3": 0.2, "margin_warmup_steps": 165}, "train": TRAIN}
SOFTMAX: dict[str, Any] = {"model": MODEL | {"loss": "softmax"}, "train": TRAIN}
