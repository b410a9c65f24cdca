"""The sliced Wasserstein distance beside SciPy's in one dimension and POT's in several."""

from __future__ import annotations

import ot
import pytest
import torch
from scipy.stats import wasserstein_distance

from components.functional.sliced import directions, sliced_w1


def clouds(rows: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.Generator().manual_seed(0)
    x, y = (torch.randn(rows, width, generator=drawn, dtype=torch.float64) for _ in range(2))
    return x, 2 * y + 0.5


def test_in_one_dimension_it_is_w1() -> None:
    x, y = clouds(500, 1)
    assert directions(1).abs().eq(1).all()
    expected = wasserstein_distance(x[:, 0], y[:, 0])
    assert sliced_w1(x @ directions(1).double(), y @ directions(1).double()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("width", [2, 50])
def test_in_several_dimensions_it_is_what_pot_says(width: int) -> None:
    x, y = clouds(300, width)
    axes = directions(width, 40).double()
    expected = ot.sliced_wasserstein_distance(x, y, projections=axes, p=1)
    assert sliced_w1(x @ axes, y @ axes) == pytest.approx(float(expected), rel=1e-9)


def test_a_translation_costs_its_mean_length_along_the_directions() -> None:
    x, shift, axes = clouds(100, 3)[0], torch.tensor([3.0, -4.0, 12.0], dtype=torch.float64), directions(3).double()
    assert sliced_w1(x @ axes, (x + shift) @ axes) == pytest.approx((shift @ axes).abs().mean().item(), rel=1e-9)


def test_directions_are_unit_vectors_and_always_the_same() -> None:
    axes = directions(20)
    assert axes.shape == (20, 128)
    torch.testing.assert_close(axes.norm(dim=0), torch.ones(128))
    assert torch.equal(axes, directions(20))
    assert not torch.equal(axes[:, :64], axes[:, 64:])
