"""Rivals' losses on logits made by hand, and at the optimum that theory names: checks G1, G2, G4 and Q1; R1; the weight of rivalry."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import jensenshannon

from components.functional.adversarial import (
    adaptive_weight,
    generator_loss,
    hinge_discriminator_loss,
    logistic_discriminator_loss,
    non_saturating_generator_loss,
    r1_penalty,
    saturating_generator_loss,
)


def test_g1_the_best_discriminator_of_two_discrete_distributions() -> None:
    real, fake = torch.tensor([7, 1, 4, 3, 5]), torch.tensor([2, 6, 4, 1, 7])  # counts of 20 draws each
    logits = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = logistic_discriminator_loss(logits.repeat_interleave(real), logits.repeat_interleave(fake))
        value.backward()
        return value

    optimizer.step(loss)
    p, q = real.double() / 20, fake.double() / 20
    torch.testing.assert_close(logits.detach().sigmoid(), p / (p + q), rtol=0, atol=1e-5)
    assert -loss().item() == pytest.approx(-math.log(4) + 2 * jensenshannon(p, q) ** 2, abs=1e-6)


@pytest.mark.parametrize(
    ("objective", "slope"),
    [(non_saturating_generator_loss, lambda s: s.sigmoid() - 1), (saturating_generator_loss, lambda s: -s.sigmoid())],
)
def test_g2_what_pulls_a_generator(objective, slope) -> None:
    scores = torch.tensor([-100.0, -3.0, 0.0, 0.5, 4.0, 100.0], requires_grad=True)
    loss = objective(scores)
    loss.backward()
    assert torch.isfinite(loss)
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()
    torch.testing.assert_close(6 * scores.grad, slope(scores.detach()))


def test_g4_the_logistic_losses_are_cross_entropies_with_hard_labels() -> None:
    drawn = torch.Generator().manual_seed(0)
    real, fake = (5 * torch.randn(50, generator=drawn) for _ in range(2))
    ones, zeros = torch.ones(50), torch.zeros(50)
    entropy = F.binary_cross_entropy_with_logits
    torch.testing.assert_close(logistic_discriminator_loss(real, fake), entropy(real, ones) + entropy(fake, zeros), rtol=0, atol=1e-6)
    torch.testing.assert_close(non_saturating_generator_loss(fake), entropy(fake, ones), rtol=0, atol=1e-6)
    torch.testing.assert_close(saturating_generator_loss(fake), -entropy(fake, zeros), rtol=0, atol=1e-6)


def test_r1_of_a_quadratic_score_and_its_gradient() -> None:
    """s(x) = a |x|^2: the gradient is 2 a x, the penalty 4 a^2 E |x|^2, and its gradient in a 8 a E |x|^2."""
    x = torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    a = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    penalty = r1_penalty(a * x.square().flatten(1).sum(1), x)
    penalty.backward()
    square = x.detach().square().flatten(1).sum(1).mean()
    torch.testing.assert_close(penalty.detach(), 9 * square)
    torch.testing.assert_close(a.grad, 12 * square)


def test_q1_hinge_loss_and_its_gradients() -> None:
    real = torch.tensor([2.0, 0.5, -1.0, 1.5], requires_grad=True)
    fake = torch.tensor([-2.0, -0.5, 1.0, -1.5], requires_grad=True)
    loss = hinge_discriminator_loss(real, fake)
    assert loss.item() == pytest.approx(0.5 * (0.5 + 2.0) / 4 + 0.5 * (0.5 + 2.0) / 4)
    loss.backward()
    assert real.grad is not None
    assert fake.grad is not None
    assert real.grad.tolist() == [0.0, -0.125, -0.125, 0.0]  # nothing beyond the margin
    assert fake.grad.tolist() == [0.0, 0.125, 0.125, 0.0]


def test_q1_the_generator_pulls_evenly_everywhere() -> None:
    fake = torch.tensor([-5.0, 0.0, 5.0, 4.0], requires_grad=True)
    loss = generator_loss(fake)
    loss.backward()
    assert loss.item() == -1.0
    assert fake.grad is not None
    assert fake.grad.tolist() == [-0.25] * 4


def test_the_weight_is_the_ratio_of_norms_and_bounded() -> None:
    reconstruction, rival = torch.tensor([[3.0, 4.0]], requires_grad=True), torch.tensor([[0.0, 2.0]])
    weight = adaptive_weight(reconstruction, rival)
    assert weight.item() == pytest.approx(5.0 / (2.0 + 1e-4))
    assert not weight.requires_grad
    assert adaptive_weight(reconstruction, torch.zeros(1, 2)).item() == 1e4  # a vanished rival
    assert adaptive_weight(torch.zeros(2), rival).item() == 0.0
