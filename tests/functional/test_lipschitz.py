"""Check W3 and the pitfalls of section 2: the penalty by hand and by finite differences, clipping, and bounds that real critics keep."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from components.functional.lipschitz import clip_weights, gradient_norms, gradient_penalty, interpolated, layer_bound


def linear_critic(*weights: float) -> tuple[nn.Linear, Tensor]:
    critic = nn.Linear(len(weights), 1)
    with torch.no_grad():
        critic.weight.copy_(torch.tensor([weights]))
    return critic, torch.randn(5, len(weights), generator=torch.Generator().manual_seed(0))


def test_w3_penalty_of_a_linear_critic() -> None:
    critic, x = linear_critic(3.0, 4.0)
    penalty = gradient_penalty(gradient_norms(lambda x: critic(x).squeeze(1), x))
    assert penalty.item() == pytest.approx(16, abs=1e-5)
    (gradient,) = torch.autograd.grad(penalty, critic.weight)
    torch.testing.assert_close(gradient, torch.tensor([[4.8, 6.4]]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("weights", "two_sided", "one_sided"), [((3.0, 4.0), 16.0, 16.0), ((0.3, 0.4), 0.25, 0.0), ((0.0, 0.0), 1.0, 0.0)])
def test_one_sided_norms_below_one_cost_nothing(weights: tuple[float, float], two_sided: float, one_sided: float) -> None:
    critic, x = linear_critic(*weights)
    norms = gradient_norms(lambda x: critic(x).squeeze(1), x)
    for sided, expected in ((False, two_sided), (True, one_sided)):
        penalty = gradient_penalty(norms, sided)
        assert penalty.item() == pytest.approx(expected, abs=1e-6)
        (gradient,) = torch.autograd.grad(penalty, critic.weight, retain_graph=True)
        assert torch.isfinite(gradient).all()  # at a gradient of zero too
        assert (gradient.abs().max() > 0) == (expected > 0 and weights != (0.0, 0.0))


def test_the_norm_is_over_all_that_belongs_to_a_row() -> None:
    weight = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    norms = gradient_norms(lambda x: (x * weight).flatten(1).sum(1) * torch.tensor([1.0, 2.0]), torch.zeros(2, 2, 3, 4))
    torch.testing.assert_close(norms, weight.norm() * torch.tensor([1.0, 2.0]))


def test_one_share_a_row_on_the_line_between() -> None:
    real, fake = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    share = torch.tensor([0.0, 0.25, 1.0])
    mixed = interpolated(real, fake, share)
    torch.testing.assert_close(mixed[1], 0.25 * real[1] + 0.75 * fake[1])
    torch.testing.assert_close(mixed[[0, 2]], torch.stack([fake[0], real[2]]))


def small_critic(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(3)
    layers = (nn.Conv2d(1, 4, 4, stride=2, padding=1), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 9, 1), nn.Flatten(0))
    return nn.Sequential(*layers).to(dtype)


def test_the_penalty_moves_weights_as_finite_differences_say() -> None:
    critic, x = small_critic(), torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    kernel, direction = critic[0].weight, torch.randn_like(critic[0].weight)
    (gradient,) = torch.autograd.grad(gradient_penalty(gradient_norms(critic, x)), kernel)
    values = []
    for move in (-1e-5, 1e-5):
        with torch.no_grad():
            kernel.add_(direction, alpha=move)
        values.append(gradient_penalty(gradient_norms(critic, x)).item())
        with torch.no_grad():
            kernel.add_(direction, alpha=-move)
    assert (gradient * direction).sum().item() == pytest.approx((values[1] - values[0]) / 2e-5, rel=1e-6)
    assert gradient.abs().max() > 1e-3


def test_it_is_computed_in_full_precision_under_autocast() -> None:
    critic, x = small_critic(torch.float32), torch.randn(3, 1, 6, 6)
    expected = gradient_norms(critic, x)
    with torch.autocast("cpu", torch.bfloat16):
        norms = gradient_norms(critic, x.bfloat16().float())
        same = gradient_norms(critic, x)
        assert critic(x).dtype == torch.bfloat16  # so the block does switch it off
    assert norms.dtype == torch.float32
    assert torch.equal(same, expected)


def test_clipping_reaches_every_number() -> None:
    critic = small_critic()
    before = [parameter.detach().clone() for parameter in critic.parameters()]
    clip_weights(critic.parameters(), 0.05)
    for old, new in zip(before, critic.parameters(), strict=True):
        assert torch.equal(new, old.clamp(-0.05, 0.05))
    assert any(old.abs().max() > 0.05 for old in before)


@pytest.mark.parametrize(("size", "step", "padding"), [(3, 1, 1), (4, 2, 1), (5, 2, 2), (1, 1, 0)])
def test_a_convolution_lengthens_no_picture_by_more_than_its_bound(size: int, step: int, padding: int) -> None:
    torch.manual_seed(5)
    layer = nn.Conv2d(2, 3, size, step, padding, bias=False).double()
    basis = torch.eye(2 * 8 * 8, dtype=torch.float64).view(-1, 2, 8, 8)
    exact = torch.linalg.matrix_norm(layer(basis).flatten(1), ord=2).item()  # the convolution as one whole matrix
    bound = layer_bound(layer).item()
    assert exact <= bound + 1e-12
    assert bound < 4 * exact


def test_a_constant_kernel_reaches_its_bound_within_the_border() -> None:
    layer = nn.Conv2d(1, 1, 4, 2, 1, bias=False).double()
    nn.init.ones_(layer.weight)
    picture = torch.ones(1, 1, 512, 512, dtype=torch.float64)
    assert (layer(picture).norm() / picture.norm()).item() == pytest.approx(layer_bound(layer).item(), rel=0.01)


def test_a_linear_layers_bound_is_its_norm() -> None:
    layer = nn.Linear(4, 3)
    assert layer_bound(layer).item() == pytest.approx(torch.linalg.svdvals(layer.weight.double())[0].item())
    with pytest.raises(AssertionError, match="no bound is known"):
        layer_bound(nn.Bilinear(2, 2, 1))
