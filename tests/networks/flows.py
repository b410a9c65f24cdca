"""Small flows for tests: each layer and each stack, of pictures and points, no longer at their beginning."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from components.networks.actnorm import ActNorm
from components.networks.bijection import BijectionChain, FlowNetwork, Logit
from components.networks.coupling import Coupling, Permutation, coupling, dense_conditioner
from components.networks.glow import GlowConfig, InvertibleConv
from components.networks.multiscale import MultiScale
from components.networks.nice import Centring, LinearBeside, NICEConfig, Reshape, Scaling
from components.networks.realnvp import RealNVPConfig

M = TypeVar("M", bound=nn.Module)
PICTURE, POINT = (2, 2, 2), (5,)

LAYERS = {
    "logit": (lambda: Logit(0.02), PICTURE),
    "reshape": (lambda: Reshape(PICTURE, (8,)), PICTURE),
    "centring": (lambda: Centring(5), POINT),
    "scaling": (lambda: Scaling(5), POINT),
    "actnorm": (lambda: ActNorm(2), PICTURE),
    "actnorm of points": (lambda: ActNorm(5), POINT),
    "convolution": (lambda: InvertibleConv(2), PICTURE),
    "matrix": (lambda: InvertibleConv(5), POINT),
    "permutation": (lambda: Permutation((3, 0, 4, 1, 2)), POINT),
    "additive": (lambda: Coupling(LinearBeside(dense_conditioner(3, 2, 8, 2), 3, 2), (3, 2), True, "none"), POINT),
    "affine": (lambda: coupling(POINT, (3, 2), False, "exp", 8), POINT),
    "affine of pictures": (lambda: coupling(PICTURE, (1, 1), False, "exp", 8), PICTURE),
    "sigmoid": (lambda: coupling(PICTURE, (1, 1), True, "sigmoid", 8), PICTURE),
    "two scales": (lambda: MultiScale([BijectionChain(ActNorm(8)), BijectionChain(InvertibleConv(4))], (2, 1)), PICTURE),
}

STACKS = {
    "nice": (NICEConfig(layers=2, width=16), (3, 2, 2)),
    "nice of points": (NICEConfig(layers=1, width=16, couplings=3, prior="normal"), (3,)),
    "realnvp": (RealNVPConfig(squeezes=(2, 1), couplings=2, width=8), (1, 4, 2)),
    "realnvp of points": (RealNVPConfig(width=16), POINT),
    "glow": (GlowConfig(squeezes=(2,), steps=2, width=8), (1, 2, 4)),
    "glow, three levels": (GlowConfig(squeezes=(1, 2, 1), steps=1, width=8), (3, 2, 2)),
    "glow of points": (GlowConfig(steps=3, width=16), POINT),
    "glow, shifts alone": (GlowConfig(steps=2, width=8, scale="none"), POINT),
}


def layer(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    make, shape = LAYERS[name]
    return moved(make), shape


def stack(name: str, seed: int = 1, **options: object) -> tuple[FlowNetwork, tuple[int, ...]]:
    config, shape = STACKS[name]
    start = BijectionChain(*([Logit(0.02)] if len(shape) == 3 else []))
    return moved(lambda: config.model_copy(update=options).build(shape, start), seed), shape


def rows(count: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Numbers in (0, 1), where all of these flows are defined."""
    return 0.02 + 0.96 * torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def moved(make: Callable[[], M], seed: int = 1) -> M:
    """With weights that are equal for equal seeds, so that no layer is the identity."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = make()
        for parameter in module.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    return module
