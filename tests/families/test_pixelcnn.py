"""PixelCNNs in the family, under each head: exact likelihoods of 8-bit numbers, samples, completions, and options that do not fit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from components.errors import UserError
from components.families.autoregressive import Autoregressive, AutoregressiveConfig, AutoregressiveSampler
from components.families.pixel_heads import HeadName, head_of
from components.training.communication import Communication
from components.training.context import Context
from components.training.randomness import Draws

CPU = torch.device("cpu")
SMALL = {"width": 6, "blocks": 1, "hidden": 8, "first_kernel": 3}


def family(shape: tuple[int, int, int], head: str = "binary", kind: str = "gated_pixelcnn", num_classes: int = 0) -> Autoregressive:
    torch.manual_seed(0)
    values: dict[str, Any] = {"image_channels": shape[0], "image_size": shape[1:], "network": SMALL | {"kind": kind}, "head": head}
    config = AutoregressiveConfig.parse(values | {"num_classes": num_classes, "conditional": num_classes > 0}, "test")
    model = Autoregressive(config).eval()
    for parameter in model.network.head.parameters():  # type: ignore[union-attr]
        parameter.data *= 3
    return model


def context(rows: int) -> Context:
    return Context(0, "pixels", Draws(0, 0, "pixels", 0, CPU), rows, rows, Communication())


@pytest.mark.parametrize("head", ["categorical", "logistic"])
@pytest.mark.parametrize("shape", [(1, 1, 2), (2, 1, 1)])
@torch.no_grad()
def test_probabilities_of_pairs_of_grey_values_sum_to_those_of_the_first(head: str, shape: tuple[int, int, int]) -> None:
    """Of a place and the next, and of a colour and the next."""
    model = family(shape, head)
    levels = torch.arange(256, dtype=torch.uint8)
    of_first = model.head.nats(model.network(torch.zeros(256, *shape)), model.head.values(levels.view(-1, 1, 1, 1).expand(-1, *shape)))
    first = (-of_first.flatten(1)[:, 0]).exp()
    assert abs(first.sum().item() - 1) < 1e-5
    images = torch.cartesian_prod(levels[::51], levels).view(-1, *shape)
    nats = model.nats(model.head.values(images), None)
    assert torch.allclose((-nats).exp().view(6, 256).sum(1), first[::51].double(), rtol=1e-5)
    assert torch.allclose(model.bits_per_dim(images, context(len(images))) * 2 * math.log(2), nats)
    told = model.network(model.head.values(images)).flatten(2)[:, :, 1]
    assert told.std(0).max() > 1e-3, "the test wants a model for which the first number matters to the second"


@pytest.mark.parametrize("head", ["binary", "categorical", "logistic"])
def test_a_head_picks_what_it_says_is_likely(head: HeadName) -> None:
    """The likelihood of what is drawn is its entropy, on average."""
    own = head_of(head, 127)
    torch.manual_seed(0)
    rows = 2000
    parameters = torch.randn(1, own.parameters, 1, 1, 2).expand(rows, -1, -1, -1, -1)
    drawn = own.pick(parameters, torch.rand(rows, 1, 1, 2))
    assert torch.equal(own.values((own.pictures(drawn) * 255).round().to(torch.uint8)), drawn)
    every = torch.tensor([0, 255] if head == "binary" else range(256), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 1, 2)
    each = own.nats(parameters[: len(every)], own.values(every))
    entropy = ((-each).exp() * each).sum(0)
    found = own.nats(parameters, drawn)
    assert ((found.mean(0) - entropy).abs() < 4 * found.std(0) / rows**0.5).all()


@pytest.mark.parametrize("head", ["categorical", "logistic"])
def test_heads_begin_at_pixels_alone(head: HeadName) -> None:
    """Better than the 8 bits of knowing nothing, on pictures whose pixels have peaks of their own."""
    own = head_of(head, 127)
    generator = torch.Generator().manual_seed(0)
    peaks = torch.randint(40, 210, (1, 1, 4, 4), generator=generator)
    images = (peaks + 8 * torch.randn(1000, 1, 4, 4, generator=generator)).round().clamp(0, 255).to(torch.uint8)
    values = own.values(images)
    bits = own.nats(own.independent(values)[None].expand(1000, -1, -1, -1, -1), values).mean() / math.log(2)
    assert bits < 6


@pytest.mark.parametrize("kind", ["pixelcnn", "gated_pixelcnn"])
@pytest.mark.parametrize("head", ["categorical", "logistic"])
@torch.no_grad()
def test_colours_are_drawn_and_completed_and_told_alike(kind: str, head: str) -> None:
    model = family((3, 4, 3), head, kind, num_classes=2)
    sampler = AutoregressiveSampler(batch_size=3)
    drawn = model.sample(8, 0, sampler)
    assert drawn.shape == (8, 3, 4, 3)
    assert torch.allclose(drawn, model.sample(8, 0, AutoregressiveSampler()), atol=1e-6)
    assert ((drawn * 255 - (drawn * 255).round()).abs() < 1e-3).all()
    images = (drawn * 255).round().to(torch.uint8)
    known = torch.zeros(4, 3, dtype=torch.bool)
    known[:2] = True
    completed = model.complete(images, known, 5, sampler)
    assert torch.equal((completed * 255).round()[:, :, :2], images[:, :, :2].float())
    assert not torch.allclose(completed, drawn)
    scores = model.evaluate({"image": images, "label": torch.arange(8) % 2}, context(8))
    nats, rows = scores["nats"]
    bits, numbers = scores["bits_per_dim"]
    assert (rows, numbers) == (8, 8 * 36)
    assert math.isclose(bits * math.log(2), nats, rel_tol=1e-6)


def test_a_kernel_without_a_centre_is_told() -> None:
    with pytest.raises(UserError, match=r"kernel.*4 is even"):
        AutoregressiveConfig.parse({"network": {"kind": "gated_pixelcnn", "kernel": 4}}, "test")


def test_dense_networks_have_no_logistic_head() -> None:
    with pytest.raises(UserError, match="head=binary"):
        AutoregressiveConfig.parse({"network": {"kind": "made"}, "head": "logistic"}, "test")
