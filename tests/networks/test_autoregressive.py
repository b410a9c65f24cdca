"""FVSBN, NADE and MADE beside their definitions: sums over all pictures, derivatives, and pictures drawn one pixel at a time."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from components.families.autoregressive import NetworkConfig
from components.networks.autoregressive import AutoregressiveNetwork, DenseNetwork
from components.networks.made import MADE, MADEConfig
from components.networks.nade import NADE, NADEConfig
from components.training.randomness import Draws

SHAPE = (1, 2, 5)
PIXELS = 10
CLASSES = 3
LISTED = (7, 2, 9, 0, 4, 1, 8, 5, 3, 6)
SETTINGS: dict[str, dict[str, Any]] = {
    "fvsbn": {"kind": "fvsbn"},
    "fvsbn, random order": {"kind": "fvsbn", "order": "random", "order_seed": 3},
    "nade": {"kind": "nade", "hidden": 4},
    "nade, listed order": {"kind": "nade", "hidden": 4, "order": LISTED},
    "made": {"kind": "made", "hidden": [24, 17]},
    "made, two layers alone": {"kind": "made", "hidden": [24, 17], "direct": False},
    "made of few units": {"kind": "made", "hidden": [3], "direct": False},
    "made, random order": {"kind": "made", "hidden": [16], "order": "random", "order_seed": 1},
    "made, many masks": {"kind": "made", "hidden": [9, 12], "masks": 4, "order": LISTED},
    "made, many orders": {"kind": "made", "hidden": [12], "direct": False, "masks": 3, "order_agnostic": True},
}


def make(values: dict[str, Any], classes: int = 0, shape: tuple[int, int, int] = SHAPE) -> DenseNetwork:
    """A network in float64 whose weights are large enough for every pixel to matter."""
    network = TypeAdapter(NetworkConfig).validate_python(values).build(shape, classes, 1)
    assert isinstance(network, DenseNetwork)
    draw = torch.Generator().manual_seed(5)
    for parameter in network.parameters():
        parameter.data.normal_(0, 0.7, generator=draw)
    return network.double().eval()


def all_pictures(pixels: int = PIXELS) -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=pixels)), dtype=torch.float64)


def log_probability(parameters: Tensor, x: Tensor) -> Tensor:
    """log p (B,) of pictures from the logits of their pixels, by the definition of a Bernoulli."""
    ink = torch.special.expit(parameters[:, 0])
    return torch.where(x > 0, ink, 1 - ink).log().flatten(1).sum(1)


def parameters_of_each_mask(network: DenseNetwork, x: Tensor, labels: Tensor | None = None) -> list[Tensor]:
    if isinstance(network, MADE):
        return [network.parameters_of_mask(x, labels, mask) for mask in range(network.masks)]
    return [network(x, labels)]


def binary(parameters: Tensor, uniform: Tensor) -> Tensor:
    return (uniform < torch.special.expit(parameters[:, 0])).to(uniform)


@pytest.fixture(params=SETTINGS)
def network(request: pytest.FixtureRequest) -> DenseNetwork:
    return make(SETTINGS[request.param])


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_probabilities_of_all_pictures_add_up_to_1(network: DenseNetwork, dtype: torch.dtype, error: float) -> None:
    network, x = network.to(dtype), all_pictures().to(dtype).view(-1, *SHAPE)
    for parameters in parameters_of_each_mask(network, x):
        assert log_probability(parameters, x).exp().sum().item() == pytest.approx(1, abs=error)


def test_a_pixel_depends_on_earlier_ones_alone(network: DenseNetwork) -> None:
    draw = torch.Generator().manual_seed(0)
    for mask in range(getattr(network, "masks", 1)):
        slopes = torch.zeros(PIXELS, PIXELS, dtype=torch.float64)
        for _ in range(20):  # a rectifier is silent at some numbers
            x = 30 * torch.randn(1, PIXELS, dtype=torch.float64, generator=draw)
            slopes += torch.autograd.functional.jacobian(
                lambda x, mask=mask: parameters_of_each_mask(network, x.view(1, *SHAPE))[mask].flatten(), x
            )[:, 0].abs()  # fmt: skip
        order = network.order
        if isinstance(network, MADE):  # the order in which this mask sees places
            order = order[network.degrees(mask)[0].argsort()]
        by_place = slopes[order][:, order]
        assert torch.equal(by_place.triu(), torch.zeros_like(by_place))
        assert all(by_place[place, :place].any() for place in range(1, PIXELS))
        assert all(by_place[place + 1 :, place].any() for place in range(PIXELS - 1)), "a pixel that nothing looks at"


def test_orders_are_what_they_are_asked_to_be() -> None:
    assert make(SETTINGS["fvsbn"]).order.tolist() == list(range(PIXELS))
    assert make(SETTINGS["nade, listed order"]).order.tolist() == list(LISTED)
    drawn = make(SETTINGS["fvsbn, random order"]).order.tolist()
    assert sorted(drawn) == list(range(PIXELS)) != drawn
    assert drawn != make(SETTINGS["fvsbn, random order"] | {"order_seed": 4}).order.tolist()


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_nade_is_its_definition(dtype: torch.dtype, error: float) -> None:
    shape = (1, 5, 7)  # more pixels than one block
    network = make(SETTINGS["nade"], CLASSES, shape).to(dtype)
    assert isinstance(network, NADE)
    assert network.class_hidden is not None
    assert network.class_bias is not None
    x = (torch.rand(6, 35, generator=torch.Generator().manual_seed(1)) < 0.5).to(dtype)
    labels = torch.arange(6) % CLASSES
    weight, outward = network.shared.inward.T, network.shared.outward
    for place in range(35):
        hidden = (network.hidden_bias + network.class_hidden(labels) + x[:, :place] @ weight[:, :place].T).sigmoid()
        expected = network.bias[place] + network.class_bias(labels)[:, place] + (hidden - 0.5) @ outward[place]
        found = network(x.view(6, *shape), labels).flatten(1)[:, place]
        assert (found - expected).abs().max() < error


def test_nade_has_the_gradients_of_its_definition() -> None:
    """Those that autograd finds through a forward pass without blocks, and without a hand-written backward pass."""
    network = make(SETTINGS["nade"], CLASSES, (1, 5, 7))
    assert isinstance(network, NADE)
    assert network.class_hidden is not None
    x = (torch.rand(6, 35, generator=torch.Generator().manual_seed(1)) < 0.5).double()
    labels = torch.arange(6) % CLASSES
    network(x.view(6, 1, 5, 7), labels).square().sum().backward()
    found = gradients(network)
    network.zero_grad(set_to_none=True)
    before = torch.tril(torch.ones(35, 35, dtype=torch.float64), -1)
    sums = torch.einsum("bj,ij,jh->bih", x, before, network.shared.inward) + network.hidden_bias + network.class_hidden(labels)[:, None]
    (((sums.sigmoid() - 0.5) * network.shared.outward).sum(2) + network.visible_bias(labels)).square().sum().backward()
    for name, expected in gradients(network).items():
        assert torch.allclose(found[name], expected, rtol=1e-10, atol=1e-12), name


def gradients(network: DenseNetwork) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}


def test_nade_keeps_little_for_the_backward_pass() -> None:
    network = NADEConfig(hidden=50).build((1, 20, 20), 0)
    sizes: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
        network(torch.ones(10, 1, 20, 20))
    assert sum(sizes) < 400 * 10 * 50 / 2, "about as much as all hidden units of all pixels"


@torch.no_grad()
@pytest.mark.parametrize("classes", [0, CLASSES])
@pytest.mark.parametrize("setting", SETTINGS)
def test_probabilities_of_drawn_pixels_are_those_of_the_whole_picture(setting: str, classes: int) -> None:
    network = make(SETTINGS[setting], classes).float()
    labels = torch.arange(8) % classes if classes else None
    uniform = torch.rand(8, PIXELS, generator=torch.Generator().manual_seed(2))
    logits: list[Tensor] = []

    def pick(parameters: Tensor, numbers: Tensor) -> Tensor:
        logits.append(parameters[:, 0])
        return binary(parameters, numbers)

    x = network.draw(uniform, labels, None, None, pick)
    whole = network(x, labels)
    assert (torch.stack(logits, 1) - whole.flatten(1)[:, network.order]).abs().max() < 1e-4
    along = log_probability(torch.stack(logits, 1)[:, None], x.flatten(1)[:, network.order])
    assert (along - log_probability(whole, x)).abs().max() < 1e-4
    assert torch.equal(x, binary(whole, uniform.view(8, *SHAPE))), "each number decides the pixel of its own place in the picture"


@torch.no_grad()
@pytest.mark.parametrize("setting", ["fvsbn, random order", "nade, listed order", "made, random order", "made, many masks"])
def test_completions_have_the_distribution_that_enumeration_gives(setting: str) -> None:
    """p(rest | known) of pixels that come first in the order, from the probabilities of all pictures."""
    network = make(SETTINGS[setting])
    first, rest = network.order[:7], network.order[7:].sort().values
    given = torch.zeros(PIXELS, dtype=torch.float64)
    given[first[::2]] = 1
    known = torch.zeros(PIXELS, dtype=torch.bool)
    known[first] = True
    count = 4000
    uniform = torch.rand(count, PIXELS, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    drawn = network.draw(uniform, None, given.expand(count, -1).view(-1, *SHAPE), known.view(SHAPE), binary).flatten(1)
    assert torch.equal(drawn[:, known], given[known].expand(count, -1))
    x = all_pictures()
    x = x[(x[:, known] == given[known]).all(1)]
    weights = log_probability(network(x.view(-1, *SHAPE)), x.view(-1, *SHAPE)).exp()
    expected = (weights / weights.sum()).numpy()
    places = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
    found = np.bincount((drawn[:, rest] @ places).long().numpy(), minlength=8)[(x[:, rest] @ places).long().numpy()] / count
    assert np.all(np.abs(found - expected) <= 3 * np.sqrt(expected * (1 - expected) / count) + 1e-9)


def test_classes_change_what_is_said_of_every_pixel() -> None:
    for values in ({"kind": "fvsbn"}, {"kind": "nade", "hidden": 4}, {"kind": "made", "hidden": [6]}):
        network = make(values, CLASSES)
        x = all_pictures()[:4].view(-1, *SHAPE)
        first, other = network(x, torch.zeros(4, dtype=torch.int64)), network(x, torch.ones(4, dtype=torch.int64))
        assert (first - other).abs().min() > 0


@torch.no_grad()
@pytest.mark.parametrize("setting", SETTINGS)
def test_an_untrained_network_says_what_it_begins_with(setting: str) -> None:
    network: AutoregressiveNetwork = TypeAdapter(NetworkConfig).validate_python(SETTINGS[setting]).build(SHAPE, 0, 1)
    logits = torch.arange(10.0).view(1, *SHAPE) - 4
    network.begin(logits)
    assert torch.equal(network((torch.rand(3, *SHAPE) < 0.5).float()), logits.expand(3, 1, *SHAPE))


def test_steps_take_the_masks_in_turn() -> None:
    network = make(SETTINGS["made, many orders"])
    x = all_pictures()[::100].view(-1, *SHAPE)
    each = parameters_of_each_mask(network, x)
    assert not torch.allclose(each[0], each[1])
    for step in range(7):
        for first_row in (0, 8):
            assert torch.equal(network(x, None, Draws(0, step, "pixels", first_row, torch.device("cpu"))), each[step % 3])
    assert torch.equal(network(x, None), each[0])


@pytest.mark.parametrize("width", [1, 3, 9, 40])
def test_degrees_leave_no_pixel_unconnected(width: int) -> None:
    for degrees in MADEConfig(hidden=(width, 2 * width), masks=3).degrees(PIXELS):
        for layer in degrees[1:]:
            assert layer.min() == 1
            assert layer.max() == (PIXELS - 1 if len(layer) > 1 else 1)
