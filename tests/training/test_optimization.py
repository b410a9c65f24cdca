"""Schedule, optimizer state without pickle, and the average of weights against their definitions."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from components.errors import UserError
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


@pytest.mark.parametrize("settings", [{}, {"name": "sgd", "momentum": 0.9}, {"name": "rmsprop"}])
def test_optimizer_state_goes_through_tensors(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    config = OptimizerConfig.parse(settings | {"weight_decay": 0.1}, "test")
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


def test_rmsprop_equals_its_recursion() -> None:
    weight = nn.Parameter(torch.tensor([2.0]))
    optimizer = make_optimizer({"weight": weight}, OptimizerConfig(name="rmsprop", lr=0.1, eps=1e-3))
    expected, square = 2.0, 0.0
    for gradient in (0.5, -3.0, 1.0):
        weight.grad = torch.tensor([gradient])
        optimizer.step()
        square = 0.99 * square + 0.01 * gradient**2
        expected -= 0.1 * gradient / (math.sqrt(square) + 1e-3)
    assert weight.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 0.9}, "momentum=0.9 has no effect with name=adamw"),
        ({"name": "sgd", "betas": (0.5, 0.9)}, r"betas=\(0.5, 0.9\) has no effect with name=sgd"),
        ({"name": "rmsprop", "betas": (0.5, 0.9)}, r"leave it out, which is betas=\(0.9, 0.95\)"),
        ({"name": "rmsprop", "momentum": 0.9}, "has no effect with name=rmsprop"),
    ],
)
def test_options_without_effect_are_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        OptimizerConfig.parse(settings, "test")
    assert OptimizerConfig.parse(OptimizerConfig(name=settings.get("name", "adamw")).to_json(), "test")  # defaults are fine


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
