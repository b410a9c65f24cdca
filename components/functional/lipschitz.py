"""How a critic is kept Lipschitz: a penalty on its gradients, a box for its weights, or weights divided by their spectral norms.

The Kantorovich-Rubinstein dual asks for functions that change by no more than the distance (Arjovsky, Chintala and Bottou 2017, arXiv
1701.07875, eq. 2). Clipping: ibid., algorithm 1. Penalty: Gulrajani et al. 2017, arXiv 1704.00028, eq. 3. Spectral normalisation: Miyato et
al. 2018, arXiv 1802.05957, algorithm 1. Everything is computed in float32 or wider, under autocast too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Critic = Callable[[Tensor], Tensor]  # x (B, ...) -> scores (B,); a row's score may depend on that row alone


def interpolated(real: Tensor, fake: Tensor, share: Tensor) -> Tensor:
    """share real + (1 - share) fake, of the shape (B, ...) of both; one share in [0, 1] a row: (B,)."""
    return torch.lerp(_wide(fake), _wide(real), share.view(-1, *[1] * (real.dim() - 1)))


def gradient_norms(critic: Critic, x: Tensor) -> Tensor:
    """||grad f(x)||_2 over all that belongs to a row of x (B, ...): (B,), with the graph that its own gradient in the weights needs."""
    with torch.autocast(x.device.type, enabled=False), torch.enable_grad():
        x = _wide(x.detach()).requires_grad_()
        (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
        return torch.linalg.vector_norm(gradient.flatten(1), dim=1)


def gradient_penalty(norms: Tensor, one_sided: bool = False) -> Tensor:
    """mean (||grad f|| - 1)^2 of the norms (B,), a scalar; one-sided, norms below 1 cost nothing."""
    excess = norms - 1
    return (F.relu(excess) if one_sided else excess).square().mean()


@torch.no_grad()
def clip_weights(parameters: Iterable[Tensor], bound: float) -> None:
    """Moves every number of the parameters into [-bound, bound], in place."""
    torch._foreach_clamp_max_(values := list(parameters), bound)
    torch._foreach_clamp_min_(values, -bound)


def overlap(layer: nn.Module) -> float:
    """The square root of how many windows of a convolution see a pixel, at most; 1 for a linear layer.

    A convolution lengthens no picture by more than this times the spectral norm of its kernel as a matrix (outputs, inputs x height x
    width), which is what it does to one window (Tsuzuku, Sato and Sugiyama 2018, arXiv 1802.04034, section 4.1).
    """
    if isinstance(layer, nn.Conv2d):
        assert layer.groups == 1
        assert layer.padding_mode == "zeros"
        windows = [math.ceil(size / step) for size, step in zip(layer.kernel_size, layer.stride, strict=True)]
        return math.sqrt(math.prod(windows))
    assert isinstance(layer, nn.Linear), f"no bound is known for {type(layer).__name__}"
    return 1.0


def layer_bound(layer: nn.Module) -> Tensor:
    """A bound on the Lipschitz constant of a linear layer or a convolution, exact for the first: a scalar, float64."""
    assert isinstance(layer.weight, Tensor)
    return torch.linalg.matrix_norm(layer.weight.detach().flatten(1).double(), ord=2) * overlap(layer)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
