"""The U-Net: its time embedding beside diffusers', its gradient beside differences, its doubling, recomputation, labels and bad shapes.

That the whole is diffusers' `UNet2DModel` is seen in `tests/families/test_diffusers_export.py`.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor

from components.errors import UserError
from components.networks.unet import Grow, UNet, UNetConfig, time_embedding
from components.training.randomness import LANE, Draws
from components.training.recompute import recompute

CPU = torch.device("cpu")
SMALL = UNetConfig(widths=(8, 16), attention=(False, True), blocks=1, groups=2, dropout=0.25)
PATTERNS = ("down.*", "middle.*", "up.*")


def network(config: UNetConfig = SMALL, channels: int = 1, num_classes: int = 0) -> UNet:
    """With weights such that every part moves the output."""
    torch.manual_seed(0)
    model = config.build(channels, num_classes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def inputs(rows: int = 6, channels: int = 1, size: tuple[int, int] = (8, 12)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, channels, *size, generator=generator), 999 * torch.rand(rows, generator=generator)


def draws(first_row: int = 0) -> Draws:
    return Draws(0, 3, "denoiser", first_row, CPU)


@pytest.mark.parametrize("width", [8, 32, 130])
def test_time_embedding_is_diffusers(width: int) -> None:
    steps = torch.cat([torch.arange(1000).float(), torch.tensor([0.5, 123.456, 998.999])])
    theirs = get_timestep_embedding(steps, width, flip_sin_to_cos=False, downscale_freq_shift=1)
    assert torch.allclose(time_embedding(steps, width), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("widths", "patch", "channels", "size"),
    [((8, 8), 1, 1, (2, 2)), ((8, 16), 1, 3, (14, 10)), ((8, 8, 16), 1, 1, (12, 20)), ((8, 16), 2, 3, (28, 12)), ((8,), 1, 2, (5, 7))],
)
def test_shape_is_that_of_the_pictures_and_a_new_network_says_0(
    widths: tuple[int, ...], patch: int, channels: int, size: tuple[int, int]
) -> None:
    config = UNetConfig(widths=widths, attention=tuple(width > 8 for width in widths), patch=patch)
    config.require_size(*size)
    x, steps = inputs(3, channels, size)
    new = config.build(channels)(x, steps)
    assert new.shape == x.shape
    assert not new.any()
    assert network(config, channels)(x, steps).std() > 0.01


def test_gradient_is_that_of_finite_differences() -> None:
    model = network(num_classes=3).double()
    x, steps = inputs(2, size=(4, 4))
    x, labels, weights = x.double(), torch.tensor([0, 3]), torch.randn(2, 1, 4, 4, dtype=torch.float64)

    def value() -> Tensor:
        return (model(x, steps, labels, draws()) * weights).sum()

    value().backward()
    for name, parameter in model.named_parameters():
        way = torch.randn_like(parameter)
        assert parameter.grad is not None, name
        with torch.no_grad():
            parameter.add_(1e-6 * way)
            above = value()
            parameter.sub_(2e-6 * way)
            below = value()
            parameter.add_(1e-6 * way)
        slope = (parameter.grad * way).sum()
        assert torch.isclose((above - below) / 2e-6, slope, rtol=1e-5, atol=1e-6), name


def test_gradients_lie_in_memory_as_their_weights_do() -> None:
    """Distributed training copies, and warns, where they do not."""
    model = network(SMALL, channels=1, num_classes=3)
    model(*inputs(), torch.arange(6) % 4).square().sum().backward()
    assert all(p.grad is not None and p.grad.stride() == p.stride() for p in model.parameters())


@pytest.mark.parametrize("rows", [1, 40])
def test_doubling_is_repetition_of_pixels_and_a_convolution(rows: int) -> None:
    torch.manual_seed(0)
    grow = Grow(6).double()
    torch.nn.init.normal_(grow.conv.bias)
    x = torch.randn(rows, 6, 3, 5, dtype=torch.float64)
    assert torch.allclose(grow(x), grow.conv(F.interpolate(x, scale_factor=2, mode="nearest")), atol=1e-12)


@pytest.mark.parametrize("length", [1, 2])
def test_recomputation_changes_no_bit(length: int) -> None:
    x, steps = inputs()
    gradients = []
    for segments in (0, length):
        model = network(num_classes=3).train()
        if segments:
            found = recompute(model, PATTERNS, segments)
            assert len(found) == len(model.residual_blocks())
        output = model(x, steps, torch.arange(6) % 4, draws())
        output.square().sum().backward()
        gradients.append([output.detach(), *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_recomputed_blocks_keep_less() -> None:
    def kept(model: UNet) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(*inputs(8, size=(16, 16)))
        return sum(sizes.values())

    plain, again = network(), network()
    recompute(again, PATTERNS, 1)
    assert kept(again) < 0.6 * kept(plain)


@torch.no_grad()
def test_a_label_moves_its_own_row_and_none_is_the_class_after_the_last() -> None:
    model = network(num_classes=3)
    x, steps = inputs()
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    before = model(x, steps, labels)
    changed = labels.clone()
    changed[2] = 1
    rows = (model(x, steps, changed) - before).abs().amax((1, 2, 3)) > 1e-3
    assert rows.tolist() == [False, False, True, False, False, False]
    assert torch.equal(model(x, steps), model(x, steps, torch.full((6,), 3)))


@torch.no_grad()
@pytest.mark.parametrize("num_classes", [0, 3])
def test_one_time_for_all_rows_is_that_time_for_each(num_classes: int) -> None:
    model, labels = network(num_classes=num_classes), torch.arange(6) % 4 if num_classes else None
    x, _ = inputs()
    one = torch.tensor(417.0)
    assert torch.allclose(model(x, one, labels), model(x, one.expand(6), labels), atol=1e-5)
    assert not torch.allclose(model(x, one, labels), model(x, one + 50, labels), atol=1e-2)


@torch.no_grad()
def test_dropout_of_a_row_does_not_depend_on_who_computes_it() -> None:
    model = network()
    x, steps = inputs(2 * LANE)
    whole = model(x, steps, None, draws())
    halves = [model(x[rows], steps[rows], None, draws(rows.start)) for rows in (slice(0, LANE), slice(LANE, 2 * LANE))]
    assert torch.allclose(whole, torch.cat(halves), atol=1e-5)
    assert not torch.allclose(whole, model(x, steps), atol=0.1)


@torch.no_grad()
def test_bfloat16_autocast_is_near_float32() -> None:
    model = network(num_classes=3)
    x, steps = inputs(40)
    exact = model(x, steps)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(x, steps)
    assert (rough.float() - exact).square().mean() < 1e-3 * exact.square().mean()


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"widths": (32, 64)}, ("attention=(False, False, True)", "3 values", "widths=(32, 64)")),
        ({"widths": (), "attention": ()}, ("widths", "at least 1")),
        ({"groups": 7}, ("32 is no multiple of groups=7",)),
        ({"head_width": 24}, ("32 is no multiple of head_width=24",)),
        ({"widths": (3,), "attention": (False,), "groups": 1}, ("the first is 3", "even")),
        ({"blocks": 0}, ("blocks=0",)),
        ({"patch": 0}, ("patch=0",)),
        ({"dropout": 1.0}, ("dropout=1.0",)),
        ({"head_widths": 8}, ("head_widths", "did you mean 'head_width'")),
    ],
)
def test_a_shape_that_does_not_fit_is_named(values: dict[str, object], named: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as error:
        UNetConfig.parse(values, "network")
    assert all(part in str(error.value) for part in named), error.value


@pytest.mark.parametrize(
    ("widths", "patch", "size", "named"),
    [((8, 8, 8), 1, (28, 30), ("30", "multiple of 4")), ((8, 8), 4, (28, 28), ("28", "multiple of 8")), ((8,), 2, (27, 28), ("27", "2"))],
)
def test_a_picture_that_cannot_be_halved_is_named(
    widths: tuple[int, ...], patch: int, size: tuple[int, int], named: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match="no multiple") as error:
        UNetConfig(widths=widths, attention=(False,) * len(widths), patch=patch).require_size(*size)
    assert all(part in str(error.value) for part in named)
