"""Schedule, optimizer state without pickle, and the average of weights against their definitions."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from components.families.contract import Family, OptimizerConfig
from components.training.config import TrainConfig
from components.training.optimization import (
    WeightAverage,
    learning_rate_factor,
    make_optimizer,
    optimizer_tensors,
    restore_optimizer,
)


def test_schedule_warms_up_linearly_and_ends_at_the_fraction() -> None:
    config = TrainConfig(steps=110, warmup_steps=10, final_lr_fraction=0.1)
    assert [learning_rate_factor(step, config) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert learning_rate_factor(10, config) == 1.0
    assert learning_rate_factor(60, config) == pytest.approx(0.1 + 0.9 * 0.5)
    assert learning_rate_factor(110, config) == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_optimizer_state_goes_through_tensors(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    config = OptimizerConfig(name=name, momentum=0.9, weight_decay=0.1)
    named = dict(model.named_parameters())
    optimizer = make_optimizer(named, config)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        optimizer.zero_grad()
        model(torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
        optimizer.step()

    step(model, optimizer, 0)
    twin = copy.deepcopy(model)
    twin_named = dict(twin.named_parameters())
    twin_optimizer = make_optimizer(twin_named, config)
    restore_optimizer(twin_named, twin_optimizer, optimizer_tensors(named, optimizer))
    step(model, optimizer, 1)
    step(twin, twin_optimizer, 1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_decay_reaches_matrices_only() -> None:
    named = dict(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)).named_parameters())
    groups = make_optimizer(named, OptimizerConfig(weight_decay=0.1)).param_groups
    assert {group["weight_decay"]: [p.ndim for p in group["params"]] for group in groups} == {0.1: [2], 0.0: [1, 1, 1]}


class OneWeight(Family):
    averaged = ("net",)

    def __init__(self) -> None:
        super().__init__(TrainConfig())
        self.net = nn.Linear(1, 1, bias=False)


def test_average_equals_its_recursion() -> None:
    family = OneWeight()
    average = WeightAverage(family, decay=0.6)
    expected = family.net.weight.item()
    for step in range(8):
        with torch.no_grad():
            family.net.weight.fill_(math.sin(step))
        average.update(step)
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * math.sin(step)
    with average.in_place():
        assert family.net.weight.item() == pytest.approx(expected, abs=1e-6)
    assert family.net.weight.item() == pytest.approx(math.sin(7))
