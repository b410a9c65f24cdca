"""Discretized logistic mixtures against SciPy's logistic distribution and exact probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import softmax

from components.functional.discretized_logistic import VALUES, draw, log_prob


def parameters(rows: int, mixed: int, seed: int = 0) -> torch.Tensor:
    """Logits, means some of which lie outside [-1, 1], scales from a tenth of a bin to all bins."""
    generator = torch.Generator().manual_seed(seed)
    logits, means, spread = (torch.randn(rows, mixed, generator=generator) for _ in range(3))
    return torch.cat([2 * logits, means, 2 * spread - 3], 1)


def masses(of: torch.Tensor) -> torch.Tensor:
    """(rows, 256) float64."""
    return torch.stack([log_prob(torch.full((len(of),), value), of) for value in range(VALUES)], 1).double().exp()


def test_masses_of_all_values_sum_to_one() -> None:
    extreme = torch.tensor([[0.0, 5.0, -20.0], [0.0, -5.0, 20.0], [0.0, 1.0, -6.9]])
    for each in (parameters(200, 5), extreme):
        assert (masses(each).sum(1) - 1).abs().max() < 1e-6


def test_equals_differences_of_scipys_distribution_function() -> None:
    drawn = parameters(20, 3)
    logits, means, log_scales = (part.double().numpy() for part in drawn.chunk(3, 1))
    edges = np.concatenate([[-np.inf], (np.arange(VALUES - 1) + 0.5) / 127.5 - 1, [np.inf]])
    below = stats.logistic.cdf(edges[:, None, None], means, np.exp(log_scales))
    above = stats.logistic.sf(edges[:, None, None], means, np.exp(log_scales))
    each = np.where(below[:-1] < 0.5, np.diff(below, axis=0), -np.diff(above, axis=0))  # in the tail that keeps its digits
    expected = (each * softmax(logits, 1)).sum(2).T
    assert np.abs(masses(drawn).numpy() - expected).max() < 1e-6
    likely = expected > 1e-12
    assert np.abs(np.log(masses(drawn).numpy()[likely]) - np.log(expected[likely])).max() < 1e-3


def test_is_finite_and_gives_finite_gradients_far_from_all_means() -> None:
    far = torch.tensor([[0.0, 1.0, -7.0], [0.0, -30.0, -30.0], [0.0, 0.0, 30.0]], requires_grad=True)
    for value in (0, 1, 128, 254, 255):
        nats = -log_prob(torch.full((3,), value), far)
        assert torch.isfinite(nats).all()
        (gradient,) = torch.autograd.grad(nats.sum(), far)
        assert torch.isfinite(gradient).all()


def test_draws_follow_the_masses() -> None:
    one = parameters(1, 4, seed=3)
    drawn = draw(one.expand(20_000, -1), torch.rand(20_000, generator=torch.Generator().manual_seed(1)))
    expected = masses(one)[0].numpy()
    common = expected * 20_000 >= 5  # the rest counts as one
    counts = np.bincount(drawn.numpy(), minlength=VALUES)
    observed, wanted = (np.append(each[common], each[~common].sum()) for each in (counts, expected * 20_000))
    assert len(observed) > 20
    assert stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-3


@pytest.mark.parametrize(("uniform", "value"), [(0.0, 0), (1 - 2**-24, 255)])
def test_the_ends_of_the_unit_interval_are_the_edge_values(uniform: float, value: int) -> None:
    wide = torch.tensor([[0.0, 0.0, 0.0]])
    assert draw(wide, torch.tensor([uniform])).item() == value
