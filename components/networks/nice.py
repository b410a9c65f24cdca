"""NICE: rows as vectors, of which odd and even numbers shift each other, and one scale a number (Dinh et al. 2015, arXiv 1410.8516)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from components.networks.bijection import Bijection, BijectionChain, ChainFlow, ChainFlowConfig, DataDependent, Prior
from components.networks.coupling import Coupling, Permutation, dense_conditioner, inverse_order


class NICEConfig(ChainFlowConfig):
    """Number and size of its couplings."""

    kind: Literal["nice"] = "nice"
    couplings: int = Field(4, gt=1, description="odd and even numbers are shifted in turn")
    layers: int = Field(5, gt=0, description="hidden layers of a coupling's network")
    width: int = Field(1000, gt=0, description="of a hidden layer")
    prior: Prior = "logistic"

    def require_shape(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError for rows that have no two parts."""
        if math.prod(shape) < 2:
            raise ValueError("rows of one number have no two parts for a coupling; give data of more")

    def build(self, shape: tuple[int, ...], start: BijectionChain) -> NICE:
        """The flow of rows (B, *shape), which `start` prepares."""
        return NICE(self, shape, start)


class NICE(ChainFlow):
    """`start`, the couplings and the scales, whose sum is the log-determinant of all but `start`."""

    def __init__(self, config: NICEConfig, shape: tuple[int, ...], start: BijectionChain) -> None:
        dims = math.prod(shape)
        parts = (dims - dims // 2, dims // 2)
        couplings = []
        for number in range(config.couplings):
            kept, changed = parts if number % 2 == 0 else parts[::-1]
            conditioner = dense_conditioner(kept, changed, config.width, config.layers)
            couplings.append(Coupling(LinearBeside(conditioner, kept, changed), parts, number % 2 == 0, "none"))
        order = [*range(0, dims, 2), *range(1, dims, 2)]
        body = BijectionChain(*couplings, from_outputs=config.from_outputs)
        super().__init__(
            *(start, Reshape(shape, (dims,)), Permutation(order), Centring(dims), body, Scaling(dims)),
            *(Permutation(inverse_order(order)), Reshape((dims,), shape)),
            prior=config.prior,
            recomputed=() if config.from_outputs else ("chain.4.*",),
        )


class LinearBeside(nn.Module):
    """A network and a linear map, added: what neighbours say of each other is mostly linear, and learnt much sooner so."""

    def __init__(self, network: nn.Module, inputs: int, outputs: int) -> None:
        super().__init__()
        self.network, self.linear = network, nn.Linear(inputs, outputs, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) + self.linear(x)


class Centring(DataDependent):
    """y = x + b, number by number; b begins where the mean of data comes out as 0, which else takes thousands of steps to learn."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(dims))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + self.bias, x.new_zeros(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        return y - self.bias

    def _begin(self, x: Tensor) -> None:
        self.bias.copy_(-x.double().mean(0))


class Scaling(DataDependent):
    """y = exp(S) x, number by number; S begins where data come out with a standard deviation of 1."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(dims))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * self.log_scale.exp(), self.log_scale.sum().expand(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        return y * (-self.log_scale).exp()

    def _begin(self, x: Tensor) -> None:
        self.log_scale.copy_(-x.double().std(0, correction=0).clamp(min=1e-6).log())


class Reshape(Bijection):
    """Rows of one shape as rows of another."""

    def __init__(self, before: tuple[int, ...], after: tuple[int, ...]) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.reshape(len(x), *self.after), x.new_zeros(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        return y.reshape(len(y), *self.before)
