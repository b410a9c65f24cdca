"""Fitted maps and warped pictures against scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.transform import ProjectiveTransform, SimilarityTransform
from skimage.transform import warp as reference_warp

from components.functional.geometry import apply, fit_homography, fit_similarity, warp


def points(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 30 + 50


@pytest.mark.parametrize("count", [2, 3, 5, 68])
def test_similarity_is_that_of_scikit_image(count: int) -> None:
    source, target = points(20, count), points(count, seed=1)
    for found, one in zip(fit_similarity(source, target), source, strict=True):
        reference = SimilarityTransform.from_estimate(one.numpy(), target.numpy())
        np.testing.assert_allclose(found.numpy(), reference.params[:2], atol=1e-9, rtol=1e-9)


def test_a_similarity_is_found_again() -> None:
    truth = torch.tensor([[[0.6, -0.8, 3.0], [0.8, 0.6, -7.0]]], dtype=torch.float64) * 1.7
    source = points(1, 5)
    torch.testing.assert_close(fit_similarity(source, apply(truth, source)), truth)


def test_mirrored_points_give_no_reflection() -> None:
    source = points(50, 5)
    mirrored = source * torch.tensor([-1.0, 1.0], dtype=torch.float64)
    linear = fit_similarity(source, mirrored)[:, :, :2]
    assert (torch.linalg.det(linear) > 0).all()
    scales = torch.linalg.svdvals(linear)
    torch.testing.assert_close(scales[:, 0], scales[:, 1])


def test_points_on_a_line_are_enough() -> None:
    source = torch.tensor([[[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]])
    found = fit_similarity(source, torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]]))
    torch.testing.assert_close(apply(found, source.double())[0], torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]]).double())
    assert torch.linalg.det(found[0, :, :2]) > 0


def test_homography_is_that_of_scikit_image() -> None:
    square = torch.tensor([[0, 0], [90, 0], [0, 70], [90, 70]], dtype=torch.float64).expand(10, 4, 2)
    moved = square + points(10, 4) / 10
    for found, target in zip(fit_homography(square, moved), moved, strict=True):
        reference = ProjectiveTransform.from_estimate(square[0].numpy(), target.numpy())
        np.testing.assert_allclose(found.numpy(), reference.params / reference.params[2, 2], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("border", "mode"), [("zeros", "constant"), ("border", "edge")])
def test_warping_is_that_of_scikit_image(border: str, mode: str) -> None:
    images = torch.rand(2, 3, 40, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrices = torch.tensor([[[0.9, -0.2, 4.0], [0.2, 0.9, -3.0]], [[1.6, 0.0, -9.5], [0.0, 1.6, 2.25]]], dtype=torch.float64)
    found = warp(images, matrices, (33, 52), border)  # type: ignore[arg-type]
    for image, matrix, one in zip(images, matrices, found, strict=True):
        back = np.linalg.inv(np.vstack([matrix.numpy(), [0, 0, 1]]))
        reference = reference_warp(image.permute(1, 2, 0).numpy(), back, output_shape=(33, 52), order=1, mode=mode)
        inside = slice(None) if border == "border" else _inside(matrix, image.shape[1:], one.shape[1:])
        np.testing.assert_allclose(one.permute(1, 2, 0).numpy()[inside], reference[inside], atol=1e-9)


def _inside(matrix: torch.Tensor, source: torch.Size, size: torch.Size) -> np.ndarray:
    """Output pixels that show the image, or nothing of it: on its very edge scikit-image does not fade to black as we do."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    back = np.linalg.inv(np.vstack([matrix.numpy(), [0, 0, 1]]))
    x, y, _ = np.einsum("ij,jhw->ihw", back, np.stack([columns, rows, np.ones_like(rows)]))
    return _off_edge(x, source[1]) & _off_edge(y, source[0])


def _off_edge(place: np.ndarray, count: int) -> np.ndarray:
    return ((place >= 0) & (place <= count - 1)) | (place <= -1) | (place >= count)


def test_the_identity_changes_nothing() -> None:
    images = torch.rand(1, 1, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(warp(images, torch.eye(2, 3)[None], (9, 7)), images)
