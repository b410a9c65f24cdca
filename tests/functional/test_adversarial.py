"""Check Q1 of the hinge losses on logits made by hand, and the weight between reconstruction and rivalry."""

from __future__ import annotations

import pytest
import torch

from components.functional.adversarial import adaptive_weight, generator_loss, hinge_discriminator_loss


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
