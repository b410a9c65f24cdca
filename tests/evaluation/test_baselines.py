"""Baselines against scikit-learn, brute force and known distributions."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from sklearn.decomposition import PCA

from components.evaluation.baselines import class_gaussians, pca_error, unigram_bits


def test_pca_error_equals_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(16, 16, generator=generator)
    train, test = (torch.randn(n, 16, generator=generator) @ mix + 3 for n in (200, 50))
    pca = PCA(5, svd_solver="full").fit(train.double().numpy())
    rebuilt = torch.from_numpy(pca.inverse_transform(pca.transform(test.double().numpy())))
    expected = (rebuilt - test.double()).square().mean().item()
    assert pca_error(train.view(-1, 1, 4, 4), test.view(-1, 1, 4, 4), 5) == pytest.approx(expected, rel=1e-9)


def test_unigram_bits_equal_a_count_by_hand() -> None:
    train, test, codes = torch.tensor([[0, 2], [0, 1], [1, 1]]), torch.tensor([[0, 1], [2, 0]]), 3
    bits = []
    for place in range(2):
        counts = Counter(train[:, place].tolist())
        bits += [-math.log2((counts[code] + 1) / (len(train) + codes)) for code in test[:, place].tolist()]
    assert unigram_bits(train, test, codes) == pytest.approx(sum(bits) / len(bits), rel=1e-12)


def test_unigram_bits_of_even_codes_are_the_logarithm_of_their_number() -> None:
    train = torch.arange(8)[:, None].expand(8, 4)
    assert unigram_bits(train, train[:3], 8) == pytest.approx(3.0, rel=1e-12)


def test_class_gaussians_have_the_moments_of_their_class() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2000) % 2
    images = (0.5 + 0.2 * labels[:, None] + 0.03 * torch.randn(2000, 4, generator=generator)).view(-1, 1, 2, 2)
    images[:, 0, 0, 1] = images[:, 0, 0, 0]  # a degenerate direction
    drawn = class_gaussians(images, labels, 4000, generator)
    assert drawn.shape == (4000, 1, 2, 2)
    assert ((drawn >= 0) & (drawn <= 1)).all()
    for label in (0, 1):
        of_class, real = drawn[label::2].flatten(1), images[labels == label].flatten(1)
        torch.testing.assert_close(of_class.mean(0), real.mean(0), atol=0.005, rtol=0)
        torch.testing.assert_close(of_class.T.cov(), real.T.cov(), atol=1e-4, rtol=0)
    torch.testing.assert_close(drawn[:, 0, 0, 1], drawn[:, 0, 0, 0], atol=1e-5, rtol=0)
