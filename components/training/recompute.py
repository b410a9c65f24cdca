"""Activation checkpointing by name patterns (Chen et al. 2016, arXiv 1604.06174): keep a block's input, recompute its inside."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from components.errors import UserError


def recompute(model: nn.Module, patterns: tuple[str, ...], every: int) -> list[str]:
    """Makes every `every`-th module whose qualified name matches a pattern recompute its activations; returns their names.

    In a pattern `*` stands for anything but a dot: `blocks.*` are the blocks, not what is inside them.

    Raises UserError when the model has no patterns, and ValueError when a pattern matches nothing or a match lies inside another.
    """
    if not patterns:
        raise UserError(f"recompute={every}: {type(model).__name__} names no blocks to recompute; set recompute=0")
    names = [name for name, _ in model.named_modules()]
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names):
            raise ValueError(f"recompute pattern {pattern!r} matches no module; modules: {', '.join(filter(None, names))}")
    matches = [name for name in names if any(_matches(name, pattern) for pattern in patterns)]
    inner = [a for a in matches for b in matches if a.startswith(b + ".")]
    if inner:
        raise ValueError(f"recompute patterns match {inner[0]!r} inside another match; it would be computed three times")
    chosen = matches[::every]
    for name in chosen:
        module = model.get_submodule(name)
        module.forward = _recomputed(module.forward)
    return chosen


def _matches(name: str, pattern: str) -> bool:
    parts, globs = name.split("."), pattern.split(".")
    return len(parts) == len(globs) and all(map(fnmatchcase, parts, globs))


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
