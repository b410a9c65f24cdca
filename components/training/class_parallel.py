"""The softmax over classes that no worker holds alone: gather the embeddings, reduce what a row of logits comes to.

Every worker sees all rows of the global batch and the logits of its own classes, (B, C / W); a (B, C) tensor never exists. The loss is
equal on all workers, and so is the gradient that it begins with (An et al. 2021, arXiv 2010.05222, section 3.1).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from components.training.communication import Communication
from components.training.context import Context


def gather_rows(value: Tensor, ctx: Context) -> Tensor:
    """All workers' `value` (b, ...), in order of rank: (B, ...). Its gradient is summed over workers.

    The gradient that goes on to a worker's own rows is multiplied by the number of workers, since averaging the gradients of replicated
    weights divides by it: they get the gradient of the mean over the global batch.
    """
    return value if ctx.world.size == 1 else _Gather.apply(value, ctx.rows_by_worker, ctx.world)


def cross_entropy(logits: Tensor, targets: Tensor, world: Communication) -> Tensor:
    """Losses (B,) of logits (B, n) over this worker's n classes; `targets` (B,) is the place of the true class among them, or -1.

    -log softmax as log-sum-exp minus the target's logit, so that a tiny probability is no rounding matter.
    """
    owned = targets >= 0
    # without classes here: zeros, with a gradient to nothing
    target = logits.gather(1, targets.clamp(min=0)[:, None])[:, 0].where(owned, 0.0) if logits.shape[1] else logits.sum(1)
    local = logits.logsumexp(1)
    highest = world.max(local)
    parts = torch.stack([(local - highest).exp(), target])
    total, target = (parts if world.size == 1 else _Sum.apply(parts, world)).unbind()
    return total.log() + highest - target


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, rows_by_worker: tuple[int, ...], world: Communication) -> Tensor:
        ctx.rows_by_worker, ctx.world = rows_by_worker, world
        return world.gather_uneven(value, rows_by_worker)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        world = ctx.world
        first = sum(ctx.rows_by_worker[: world.rank])
        mine = world.sum(gradient)[first : first + ctx.rows_by_worker[world.rank]]
        return mine * world.size, None, None


class _Sum(torch.autograd.Function):
    """The sum over workers of parts that enter one loss, equal everywhere: each part's gradient is that of the sum."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, world: Communication) -> Tensor:
        return world.sum(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
