"""Generator and critic: check G5 of classes, their shapes for pictures of several sizes and points, rows that do not see each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from components.errors import UserError
from components.networks.adversarial import AdversarialNetworks, Critic, Generator

SHAPES = [(1, 28, 28), (3, 32, 32), (2, 24, 40), (1, 30, 44), (2,), (7,)]
ROWS, CLASSES = 6, 3


def networks(shape: tuple[int, ...], num_classes: int = CLASSES) -> AdversarialNetworks:
    return AdversarialNetworks(shape=shape, num_classes=num_classes, latent=5, width=8)


def shaken(module: nn.Module) -> nn.Module:
    """With weights such that every part moves the output."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(1)
    return torch.randn(ROWS, *shape, generator=drawn), torch.tensor([0, 1, 2, 2, 1, 0])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_classes", [0, CLASSES])
def test_shapes(shape: tuple[int, ...], num_classes: int) -> None:
    sizes = networks(shape, num_classes)
    (z, labels), classes = inputs((5,)), None
    if num_classes:
        classes = labels
    samples = shaken(Generator(sizes))(z, classes)
    assert samples.shape == (ROWS, *shape)
    assert shaken(Critic(sizes))(samples, classes).shape == (ROWS,)
    assert (samples.abs() <= 1).all() or not sizes.is_picture


@pytest.mark.parametrize(
    ("shape", "halvings", "coarse"),
    [((1, 28, 28), 2, (7, 7)), ((3, 32, 32), 3, (4, 4)), ((3, 64, 64), 4, (4, 4)), ((1, 12, 20), 1, (6, 10)), ((1, 30, 44), 1, (15, 22))],
)
def test_how_often_a_picture_is_halved(shape: tuple[int, int, int], halvings: int, coarse: tuple[int, int]) -> None:
    sizes = networks(shape)
    assert (sizes.halvings, sizes.coarse) == (halvings, coarse)
    assert sizes.widths == (8, 16, 32, 64)[:halvings]


@pytest.mark.parametrize("shape", [(1, 28, 28), (2,)])
def test_g5_a_generator_works_row_by_row_and_knows_the_class(shape: tuple[int, ...]) -> None:
    model = shaken(Generator(networks(shape)))
    z, labels = inputs((5,))
    samples, order = model(z, labels), torch.tensor([3, 5, 0, 1, 4, 2])
    torch.testing.assert_close(model(z[order], labels[order]), samples[order], rtol=0, atol=1e-6)
    torch.testing.assert_close(model(z[2:3], labels[2:3]), samples[2:3], rtol=0, atol=1e-6)
    other = model(z, (labels + 1) % CLASSES)
    assert ((other - samples).flatten(1).abs().amax(1) > 1e-3).all()


@pytest.mark.parametrize("shape", [(1, 28, 28), (2,)])
def test_a_critic_works_row_by_row(shape: tuple[int, ...]) -> None:
    """A penalty on one row's gradient is then about that row alone."""
    model = shaken(Critic(networks(shape)))
    x, labels = inputs(shape)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(model(x, labels)[2], x)
    assert gradient[2].abs().max() > 0
    gradient[2] = 0
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("shape", [(1, 28, 28), (2,)])
def test_a_class_is_a_projection_of_the_features(shape: tuple[int, ...]) -> None:
    model = shaken(Critic(networks(shape)))
    x, labels = inputs(shape)
    features = model.blocks(x)
    features = features.permute(0, 2, 3, 1).flatten(1) if features.dim() == 4 else features
    weights = model.out.weight[0] + model.classes.weight[labels]
    expected = torch.einsum("bf,bf->b", weights, features) + model.out.bias
    torch.testing.assert_close(model(x, labels), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 27, 28), r"shape=\(1, 27, 28\): pictures are halved in both networks"),
        ((1, 6, 6), r"even height and width of at least 8"),
        ((28, 28), r"shape=\(28, 28\) is neither"),
        ((0,), r"shape=\(0,\) is neither"),
    ],
)
def test_shapes_that_do_not_fit(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AdversarialNetworks.parse({"shape": shape}, "test")
