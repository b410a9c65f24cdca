"""A chain of invertible blocks whose backward recomputes activations from the chain's output, so that none are kept.

Backward goes from the output to the input: it inverts a block, runs it again and takes its gradients, so that memory does not grow with
the number of blocks (Gomez et al. 2017, arXiv 1707.04585; for flows Kingma and Dhariwal 2018, arXiv 1807.03039, section 4). Gradients are
those of plain backpropagation but for the rounding of the inverse. The price is an inverse and a second forward of each block; of one
that retraces, as couplings do, less than a second forward, which is what activation checkpointing costs.

    chain = InvertibleChain(*blocks, from_outputs=True)
    z, log_det = chain(x)
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Invertible(Protocol):
    """A block: a map and the logarithm of its Jacobian's absolute determinant, the way back, and its weights.

    With `from_outputs` a block draws no random numbers, changes no buffer in its forward, and its inverse is right to rounding wherever it
    is trained: what is divided or inverted is float32, under autocast too. It may have a `retrace` of its own, as `_retrace` is.
    """

    def __call__(self, x: Tensor, *extra: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, ...) -> y (B, ...) and log_det (B,)."""
        ...

    def inverse(self, y: Tensor, *extra: Tensor | None) -> Tensor: ...

    def parameters(self) -> Any: ...


class InvertibleChain(nn.Sequential):
    """Invertible blocks one after another, all on the same extra arguments (a condition), which may have gradients too.

    With `from_outputs` its backward recomputes what it needs from its output; it has no second derivatives then.
    """

    def __init__(self, *blocks: nn.Module, from_outputs: bool = False) -> None:
        super().__init__(*blocks)
        self.from_outputs = from_outputs

    def forward(self, x: Tensor, *extra: Tensor | None) -> tuple[Tensor, Tensor]:
        """y (B, ...) and the sum of the blocks' log_det (B,)."""
        log_det = x.new_zeros(len(x))
        if not (self.from_outputs and torch.is_grad_enabled()):
            return self.onward(x, log_det, *extra)
        trail, blocks = _Trail(), tuple(_flat(self))
        for block in blocks:
            weights = [parameter for parameter in block.parameters() if parameter.requires_grad]
            x, log_det = _FromOutput.apply(block, trail, block is blocks[-1], len(extra), x, log_det, *extra, *weights)
        return x, log_det

    def onward(self, x: Tensor, log_det: Tensor, *extra: Tensor | None) -> tuple[Tensor, Tensor]:
        """y, and log_det (B,) with that of each block added in turn: of a chain in parts the same bits as of the whole."""
        for block in self:
            x, more = block(x, *extra)
            log_det = log_det + more
        return x, log_det

    def inverse(self, y: Tensor, *extra: Tensor | None) -> Tensor:
        """x (B, ...), of which y is the output."""
        for block in reversed(cast("tuple[Invertible, ...]", tuple(self))):
            y = block.inverse(y, *extra)
        return y


def _flat(chain: InvertibleChain) -> Iterator[Invertible]:
    """The blocks, of chains among them theirs."""
    for block in chain:
        if isinstance(block, InvertibleChain):
            yield from _flat(block)
        else:
            yield cast("Invertible", block)


class _Trail:
    """Where backward has come to: the output of the block that is next, which the one after it has found as its input."""

    y: Tensor


class _FromOutput(torch.autograd.Function):
    """One block, which keeps nothing of its own; the last of a chain keeps the chain's output, with which backward begins.

    Weights are inputs, so that each block's gradients are at once where they belong, and what waits for them (DistributedDataParallel) is
    told of them.
    """

    @staticmethod
    def forward(
        ctx: Any, block: Invertible, trail: _Trail, last: bool, extras: int, x: Tensor, log_det: Tensor, *inputs: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        device = x.device.type
        # No cache of cast weights: it would hold copies without gradients, and what comes after this chain would use them.
        ctx.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
            "cache_enabled": False,
        }
        ctx.block, ctx.trail, ctx.extras = block, trail, extras
        with torch.autocast(**ctx.autocast):
            y, more = block(x, *inputs[:extras])
        ctx.save_for_backward(y if last else None, *inputs)  # weights too: so a change of them before backward is noticed
        return y, log_det + more

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_log_det: Tensor) -> tuple[Tensor | None, ...]:
        y, *inputs = ctx.saved_tensors
        extra = [
            tensor.detach().requires_grad_(wanted) if tensor is not None else None
            for tensor, wanted in zip(inputs[: ctx.extras], ctx.needs_input_grad[6:], strict=False)
        ]
        with torch.enable_grad(), torch.autocast(**ctx.autocast):
            y = (ctx.trail.y if y is None else y).detach().requires_grad_()
            x, *again = getattr(ctx.block, "retrace", partial(_retrace, ctx.block))(y, *extra)
        ctx.trail.y = x.detach()
        leaves = [y, *(tensor for tensor in (*extra, *inputs[ctx.extras :]) if tensor is not None and tensor.requires_grad)]
        used = [(result, grad) for result, grad in zip(again, (grad_y, grad_log_det), strict=True) if result.requires_grad]
        results, weights = zip(*used, strict=True)
        grad_x, *found = torch.autograd.grad(results, leaves, weights, allow_unused=True)
        of_inputs = (found.pop(0) if wanted else None for wanted in ctx.needs_input_grad[6:])
        return None, None, None, None, grad_x, grad_log_det, *of_inputs


def _retrace(block: Invertible, y: Tensor, *extra: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """x, of which y is the output, and the block's results for it, whose gradients with respect to x are given to y."""
    with torch.no_grad():
        x = block.inverse(y, *extra)
    return x, *block(standing_for(x, y), *extra)


def standing_for(x: Tensor, y: Tensor) -> Tensor:
    """The values of x; gradients with respect to them are given to y, a tensor of the same shape."""
    stand_in: Tensor = _StandingFor.apply(x, y)
    return stand_in


class _StandingFor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad
