"""The distance between feature maps on cases that can be worked out by hand."""

from __future__ import annotations

import pytest
import torch

from components.functional.perceptual import feature_distance


def test_it_compares_directions_and_not_lengths() -> None:
    a = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).expand(2, 2, 3, 3)
    across = torch.tensor([-4.0, 3.0]).view(1, 2, 1, 1).expand(2, 2, 3, 3)
    assert feature_distance([a], [7 * a]).item() == pytest.approx(0.0, abs=1e-6)
    assert feature_distance([a], [across]).item() == pytest.approx(2.0, rel=1e-5)  # |u - v|^2 of orthogonal unit vectors
    assert feature_distance([a, a], [across, -a]).item() == pytest.approx(6.0, rel=1e-5)


def test_a_place_without_features_has_a_finite_gradient() -> None:
    silent = torch.zeros(1, 2, 1, 1, requires_grad=True)
    feature_distance([silent], [torch.ones(1, 2, 1, 1)]).backward()
    assert silent.grad is not None
    assert torch.isfinite(silent.grad).all()
