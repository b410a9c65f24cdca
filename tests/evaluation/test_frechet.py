"""Check E1: the Fréchet distance against scipy's matrix root, and streamed moments against whole ones."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from components.evaluation.frechet import Moments, frechet_distance


def features(seed: int, rows: int = 300, width: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64) @ mix + seed


def by_scipy(a: np.ndarray, b: np.ndarray) -> float:
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root))


@pytest.mark.parametrize(("first", "second"), [(0, 1), (2, 5)])
def test_distance_equals_scipys(first: int, second: int) -> None:
    a, b = features(first), features(second, rows=200)
    assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(by_scipy(a.numpy(), b.numpy()), rel=1e-6)


def test_equal_statistics_are_at_distance_zero() -> None:
    moments = Moments.of(features(3))
    assert frechet_distance(moments, moments) < 1e-6


def test_a_shift_alone_costs_its_squared_length() -> None:
    x = features(1)
    assert frechet_distance(Moments.of(x), Moments.of(x + 2.0)) == pytest.approx(4.0 * x.shape[1], rel=1e-6)


def test_moments_of_parts_add_up() -> None:
    x = features(4)
    whole, parts = Moments.of(x), Moments.of(x[:7]) + Moments.of(x[7:])
    assert parts.count == whole.count == 300
    torch.testing.assert_close(parts.covariance, whole.covariance, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(whole.covariance.numpy(), np.cov(x.numpy().T), rtol=1e-10)


def test_fewer_features_than_dimensions_are_allowed() -> None:
    a, b = features(0, rows=6), features(1, rows=6)
    assert np.isfinite(frechet_distance(Moments.of(a), Moments.of(b)))
