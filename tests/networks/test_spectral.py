"""Spectral normalisation: PyTorch's weights from the same vectors, a forward that moves nothing, critics that keep distances."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from components.networks.adversarial import AdversarialNetworks, Critic
from components.networks.spectral import critic_bound, iterate, normalise

SHAPES = [((1, 8, 8), 0), ((1, 8, 8), 3), ((2,), 0), ((2,), 3)]


def make(shape: tuple[int, ...] = (1, 8, 8), num_classes: int = 0) -> Critic:
    torch.manual_seed(0)
    found = Critic(AdversarialNetworks(shape=shape, num_classes=num_classes, width=6))
    if found.classes is not None:
        nn.init.normal_(found.classes.weight)
    return found


def layers(module: Critic) -> list[nn.Module]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]


def test_it_equals_pytorchs_from_the_same_vectors() -> None:
    ours, theirs = make(), layers(make())
    normalise(ours)
    for mine, other in zip(layers(ours), theirs, strict=True):
        norm = spectral_norm(other).parametrizations.weight[0]
        mine.parametrizations.weight[0].left.copy_(norm._u)
        mine.parametrizations.weight[0].right.copy_(norm._v)
    iterate(ours)
    for mine, other in zip(layers(ours), theirs, strict=True):
        windows = 2.0 if isinstance(mine, nn.Conv2d) else 1.0
        weight, expected = mine.weight * windows, other.train().weight  # theirs iterates once
        torch.testing.assert_close(weight, expected)
        pull = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        (gradient,) = torch.autograd.grad((pull * weight).sum(), mine.parametrizations.weight.original)
        (known,) = torch.autograd.grad((pull * expected).sum(), other.parametrizations.weight.original)
        torch.testing.assert_close(gradient, known)


@pytest.mark.parametrize(("shape", "num_classes"), SHAPES)
@pytest.mark.parametrize("normalised", [False, True])
def test_no_critic_changes_more_than_its_bound_times_the_distance(shape: tuple[int, ...], num_classes: int, normalised: bool) -> None:
    module = make(shape, num_classes)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(3)
    if normalised:
        normalise(module)
        for _ in range(200):
            iterate(module)
    bound = critic_bound(module)
    x = torch.randn(256, *shape, requires_grad=True)
    labels = torch.arange(256) % num_classes if num_classes else None
    (gradient,) = torch.autograd.grad(module(x, labels).sum(), x)
    steepest = gradient.flatten(1).norm(dim=1).max().item()
    assert 0 < steepest <= bound * (1 + 1e-5)
    assert bound <= 1 + 1e-4 if normalised else bound > 2


def test_the_bound_of_a_flat_critic_is_reached() -> None:
    module = make((2,))
    with torch.no_grad():
        for layer in layers(module):
            layer.weight.zero_()
            layer.weight[0, 0] = 2.0
    x = torch.tensor([[1.0, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(module(x).sum(), x)
    assert critic_bound(module) == pytest.approx(16.0)
    assert gradient[0, 0].item() == pytest.approx(16.0)


def test_forward_moves_no_buffer_and_iterate_does() -> None:
    module = make((1, 8, 8), 3)
    normalise(module)
    before = copy.deepcopy(dict(module.named_buffers()))
    module.train()(torch.randn(3, 1, 8, 8), torch.arange(3)).sum().backward()
    assert len(before) == 2 * len(layers(module))
    assert all(torch.equal(before[name], value) for name, value in module.named_buffers())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
    iterate(module)
    assert all(not torch.equal(before[name], value) for name, value in module.named_buffers() if "out" not in name)


def test_under_autocast_the_norm_is_that_of_full_precision() -> None:
    module = make((2,))
    normalise(module)
    expected = module.out.weight
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module.out.weight, expected)
