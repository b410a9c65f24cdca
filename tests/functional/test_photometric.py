"""Photometric normalisation against SciPy and scikit-image, and what it is for: light does not matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.data import astronaut
from skimage.exposure import equalize_hist

from components.functional.photometric import PHOTOMETRIC, difference_of_gaussians, equalise, self_quotient, standardise


def pictures() -> torch.Tensor:
    return torch.from_numpy(astronaut()[60:180, 160:280]).permute(2, 0, 1)[:, None].double() / 255  # three grey pictures


def test_standardised_pictures_have_given_mean_and_deviation() -> None:
    found = standardise(torch.rand(4, 2, 30, 30, generator=torch.Generator().manual_seed(0)).double() * 0.1 + 0.3)
    torch.testing.assert_close(found.mean((1, 2, 3)), torch.full((4,), 0.5).double())
    torch.testing.assert_close(found.std((1, 2, 3), correction=0), torch.full((4,), 1 / 6).double())


def test_equalisation_is_that_of_scikit_image() -> None:
    images = pictures()
    levels = (images * 255).round().to(torch.int64).numpy()
    for found, one in zip(equalise(images), levels, strict=True):
        np.testing.assert_allclose(found[0].numpy(), equalize_hist(one[0], nbins=256), atol=1e-9)


def test_difference_of_gaussians_is_that_of_scipy() -> None:
    images = pictures()
    rooted = np.sqrt(images.numpy())
    blurred = [np.stack([gaussian_filter(one[0], sigma, mode="nearest", truncate=3.0)[None] for one in rooted]) for sigma in (1.0, 2.0)]
    torch.testing.assert_close(difference_of_gaussians(images), standardise(torch.from_numpy(blurred[0] - blurred[1])))


@pytest.mark.parametrize("name", sorted(PHOTOMETRIC))
def test_results_are_pictures_even_of_one_colour(name: str) -> None:
    images = torch.cat([pictures(), torch.zeros(1, 1, 120, 120).double(), torch.ones(1, 1, 120, 120).double()])
    found = PHOTOMETRIC[name](images)
    assert found.shape == images.shape
    assert found.isfinite().all()
    assert ((found >= 0) & (found <= 1)).all()


@pytest.mark.parametrize("name", ["standardise", "difference_of_gaussians", "self_quotient"])
def test_darker_light_does_not_matter(name: str) -> None:
    images = pictures()
    difference = (PHOTOMETRIC[name](images) - PHOTOMETRIC[name](images * 0.6)).abs().mean()
    assert difference < 0.1 * (images - images * 0.6).abs().mean()


def test_light_from_one_side_matters_less_to_the_self_quotient() -> None:
    images = pictures()
    shaded = images * torch.linspace(0.4, 1, 120, dtype=torch.float64)

    def likeness(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])

    assert 1 - likeness(self_quotient(images), self_quotient(shaded)) < 0.5 * (1 - likeness(images, shaded))
