"""Optimizers, the learning-rate schedule and the average of weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from components.families.contract import Family, OptimizerConfig
from components.training.config import TrainConfig


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Linear warm-up to 1, then a cosine to `final_lr_fraction` at the last step (Loshchilov and Hutter 2017, arXiv 1608.03983, eq. 5)."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.final_lr_fraction + (1 - config.final_lr_fraction) * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(named: dict[str, nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of one phase; weight decay on matrices and kernels only. Fused kernels where there are, on CPUs too."""
    matrices = [p for p in named.values() if p.ndim >= 2]
    vectors = [p for p in named.values() if p.ndim < 2]
    groups = [{"params": params, "weight_decay": decay} for params, decay in ((matrices, config.weight_decay), (vectors, 0.0)) if params]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
    if config.name == "rmsprop":
        return torch.optim.RMSprop(groups, lr=config.lr, alpha=0.99, eps=config.eps, foreach=True)  # it has no fused kernel
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


@contextmanager
def touched_rows(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """In the block, a parameter with a sparse gradient stands in the optimizer as the rows that it has gradients for.

    So neither weight decay nor an average (momentum, Adam's) moves a row that the step did not touch, and the step costs what those rows
    cost. The number of the step counts for all rows.
    """
    swapped: list[tuple[nn.Parameter, nn.Parameter, Tensor]] = []
    for group in optimizer.param_groups:
        for place, whole in enumerate(group["params"]):
            if whole.grad is not None and whole.grad.is_sparse:
                index = whole.grad.indices()[0]
                part = nn.Parameter(whole.detach()[index])
                part.grad = whole.grad.values()
                state = optimizer.state.pop(whole, {})
                optimizer.state[part] = {slot: value[index] if _by_row(value, whole) else value for slot, value in state.items()}
                group["params"][place] = part
                swapped.append((whole, part, index))
                optimizer.state[whole] = state
    yield
    for whole, part, index in swapped:
        with torch.no_grad():
            whole[index] = part
        state = optimizer.state[whole]
        for slot, value in optimizer.state.pop(part).items():
            if _by_row(value, part):
                state.setdefault(slot, torch.zeros_like(whole))[index] = value
            else:
                state[slot] = value
        for group in optimizer.param_groups:
            group["params"] = [whole if each is part else each for each in group["params"]]


def _by_row(value: object, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


def optimizer_tensors(named: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as tensors `parameter/slot`, free of the order of parameters and of pickle."""
    return {
        f"{name}/{slot}": value if isinstance(value, Tensor) else torch.tensor(value)
        for name, parameter in named.items()
        for slot, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }


def restore_optimizer(named: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`, onto the parameters' device."""
    for key, value in tensors.items():
        name, _, slot = key.rpartition("/")
        parameter = named[name]
        optimizer.state[parameter][slot] = value.to(parameter.device, copy=True)


class WeightAverage:
    """Exponential moving average of the weights of a family's `averaged` children: w <- d w + (1 - d) v, d warmed up as (1 + k) / (10 + k).

    Buffers are not averaged: the averaged model uses the current ones.
    """

    def __init__(self, family: Family, decay: float) -> None:
        self.decay = decay
        self.live = {
            f"{child}.{name}": parameter for child in family.averaged for name, parameter in family.get_submodule(child).named_parameters()
        }
        self.average = {name: parameter.detach().clone() for name, parameter in self.live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.live.values()], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The family computes with the averaged weights inside the block, with its own again after it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.live.items():
            kept = parameter.detach().clone()
            parameter.copy_(self.average[name])
            self.average[name].copy_(kept)
