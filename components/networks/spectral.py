"""Critics of Lipschitz constant 1 by spectral normalisation (Miyato et al. 2018, arXiv 1802.05957, algorithm 1), and a bound for any.

PyTorch's own iterates inside forward, in training as often as the layer is called, and so changes buffers where a loss must not. Here the
singular vectors move only when `iterate` is called, from the weights alone: on equal weights they are equal on every worker.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from components.functional.lipschitz import layer_bound, overlap
from components.networks.adversarial import Critic

FIRST_ITERATIONS = 15  # from random vectors


class SpectralNormalisation(nn.Module):
    """W -> W / (c sigma): c bounds what overlapping windows add, so that the layer changes no distance by more than a factor 1 / share.

    sigma = u^T W v is the largest singular value of W as a matrix, of which `left` u and `right` v are the vectors; they take no gradient.
    """

    left: Tensor
    right: Tensor

    def __init__(self, layer: nn.Module, share: float = 1.0) -> None:
        super().__init__()
        self.divisor = overlap(layer) * share
        assert isinstance(layer.weight, Tensor)
        self.register_buffer("left", torch.zeros(len(layer.weight)))
        self.register_buffer("right", F.normalize(torch.randn(layer.weight[0].numel()), dim=0))
        self.iterate(layer.weight, FIRST_ITERATIONS)

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            return weight / (self.divisor * torch.vdot(self.left, torch.mv(weight.flatten(1), self.right)))

    @torch.no_grad()
    def iterate(self, weight: Tensor, times: int = 1) -> None:
        """Moves the vectors towards those of the `weight` before it is divided, by power iteration."""
        matrix = weight.flatten(1)
        for _ in range(times):
            F.normalize(torch.mv(matrix, self.right), dim=0, out=self.left)
            F.normalize(torch.mv(matrix.t(), self.left), dim=0, out=self.right)


class RowsInBall(nn.Module):
    """Rows e of a matrix (rows, numbers) -> e / (c max(1, |e|)): none is longer than 1 / c."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, weight: Tensor) -> Tensor:
        return weight / (self.share * torch.linalg.vector_norm(weight, dim=1, keepdim=True).clamp(min=1))


def normalise(critic: Critic) -> None:
    """Divides all weights, so that no layer and so neither the critic changes more than the distance.

    Where there are classes, the two terms of the score have a half of it each; embeddings begin at zero and are only kept from growing.
    """
    halves = 1.0 if critic.classes is None else 2.0
    for layer in list(critic.blocks.modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            parametrize.register_parametrization(layer, "weight", SpectralNormalisation(layer))
    parametrize.register_parametrization(critic.out, "weight", SpectralNormalisation(critic.out, halves))
    if critic.classes is not None:
        parametrize.register_parametrization(critic.classes, "weight", RowsInBall(halves))


def iterate(critic: Critic) -> None:
    """One power iteration of every weight that `normalise` divides by its norm."""
    for weights in critic.modules():
        if isinstance(weights, parametrize.ParametrizationList):
            for each in weights:
                if isinstance(each, SpectralNormalisation):
                    each.iterate(weights.original)


@torch.no_grad()
def critic_bound(critic: Critic) -> float:
    """A bound on the critic's Lipschitz constant in x, for the worst class: the product over its layers; its activations have 1 each."""
    layers = [layer for layer in critic.blocks.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    heads = critic.out.weight if critic.classes is None else critic.out.weight + critic.classes.weight
    return math.prod([layer_bound(layer).item() for layer in layers]) * heads.double().norm(dim=1).max().item()
