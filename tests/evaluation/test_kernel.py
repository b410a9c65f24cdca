"""The kernel distance beside scikit-learn's polynomial kernel, and both distances on real pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import polynomial_kernel

from components.evaluation import kernel
from components.evaluation.frechet import Moments, frechet_distance
from components.evaluation.kernel import kernel_distance
from tests.small_data import shipped_images


def features(rows: int, seed: int, width: int = 12) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)).relu()


def oracle(a: np.ndarray, b: np.ndarray) -> float:
    def within(x: np.ndarray) -> float:
        gram = polynomial_kernel(x, degree=3, gamma=1 / x.shape[1], coef0=1)
        return float((gram.sum() - np.trace(gram)) / (len(x) * (len(x) - 1)))

    return within(a) + within(b) - 2 * float(polynomial_kernel(a, b, degree=3, gamma=1 / a.shape[1], coef0=1).mean())


@pytest.mark.parametrize("rows", [2, 37, 200])
def test_equals_the_estimate_from_scikit_learn(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "ROWS", 64)
    a, b = features(rows, 0), 1.3 * features(150, 1)
    assert kernel_distance(a, b) == pytest.approx(oracle(a.double().numpy(), b.double().numpy()), abs=1e-8)


def test_it_is_unbiased_and_so_can_be_negative() -> None:
    values = [kernel_distance(features(40, 2 * i), features(40, 2 * i + 1)) for i in range(200)]
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(1, 12\) and \(5, 12\)"):
        kernel_distance(features(1, 0), features(5, 0))
    with pytest.raises(ValueError, match="equal width"):
        kernel_distance(features(5, 0), features(5, 0, width=3))


def test_real_held_out_pictures_are_near_the_training_ones_and_nearer_the_more_there_are() -> None:
    def coarse(part: str, rows: int) -> torch.Tensor:
        images = torch.from_numpy(shipped_images(part, rows)[0].copy()).float() / 255
        return torch.nn.functional.avg_pool2d(images, 7).flatten(1)

    train, test = coarse("train", 4000), coarse("t10k", 2000)
    fitted = Moments.of(train)
    few, many = (frechet_distance(Moments.of(test[:rows]), fitted) for rows in (100, 2000))
    noise = torch.rand(2000, 16, generator=torch.Generator().manual_seed(0))
    assert many < few < frechet_distance(Moments.of(noise), fitted) / 10
    assert abs(kernel_distance(test, train)) < kernel_distance(noise, train) / 100
