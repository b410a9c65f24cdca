"""Aligned faces lie on the template, the right way round."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from components.faces.align import MIRRORED, TEMPLATE, align, mirror_landmarks, template
from components.faces.detect import FaceDetector
from components.functional.geometry import apply, fit_similarity
from tests.faces.samples import portrait


def test_the_template_to_itself_is_the_identity() -> None:
    torch.testing.assert_close(fit_similarity(template(112)[None], template(112)), torch.eye(2, 3, dtype=torch.float64)[None])
    torch.testing.assert_close(template(112), torch.tensor(TEMPLATE, dtype=torch.float64))
    image = torch.randint(0, 256, (3, 112, 112), dtype=torch.uint8)
    assert torch.equal(align(image, TEMPLATE), image)


@pytest.mark.parametrize("size", [56, 224])
def test_templates_of_all_sizes_are_one_picture(size: int) -> None:
    factor = size / 112
    np.testing.assert_allclose((template(size) + 0.5) / factor, (template(112) + 0.5))


def test_mirrored_landmarks_change_sides_and_are_not_reflected() -> None:
    mirrored = mirror_landmarks(template(112), 112)
    assert mirrored[0, 0] < mirrored[1, 0]  # the left eye is left
    assert mirrored[3, 0] < mirrored[4, 0]
    assert torch.equal(mirror_landmarks(mirrored, 112), template(112))
    matrix = fit_similarity(mirrored[None], template(112))
    assert torch.linalg.det(matrix[0, :, :2]) > 0
    assert (apply(matrix, mirrored[None])[0] - template(112)).abs().max() < 2  # the template is nearly symmetric
    unswapped = mirrored[list(MIRRORED)]
    assert torch.linalg.det(fit_similarity(unswapped[None], template(112))[0, :, :2]) > 0


def dotted(landmarks: torch.Tensor, height: int, width: int, spread: float) -> torch.Tensor:
    """A black picture with a soft dot at each landmark."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    distance = (x - landmarks[:, 0, None, None]) ** 2 + (y - landmarks[:, 1, None, None]) ** 2
    return (255 * (-distance / (2 * spread**2)).exp().amax(0)).round().to(torch.uint8)[None]


@pytest.mark.parametrize(("scale", "degrees"), [(0.5, 10), (1.0, -35), (3.7, 20), (8.0, 170)])
def test_landmarks_come_to_lie_on_the_template(scale: float, degrees: float) -> None:
    angle = np.deg2rad(degrees)
    turn = scale * torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    side = int(200 * scale)
    landmarks = (template(112) - 55.5) @ turn.mT + side / 2
    aligned = align(dotted(landmarks, side, side, spread=2 * scale), landmarks, 112)[0].double()
    y, x = torch.meshgrid(torch.arange(112), torch.arange(112), indexing="ij")
    for px, py in TEMPLATE:
        near = aligned * ((x - px).abs() < 7) * ((y - py).abs() < 7)
        assert float((near * x).sum() / near.sum()) == pytest.approx(px, abs=0.15)
        assert float((near * y).sum() / near.sum()) == pytest.approx(py, abs=0.15)


def test_large_pictures_are_averaged_not_picked_from() -> None:
    noise = torch.randint(0, 256, (1, 896, 896), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    landmarks = (template(112) + 0.5) * 8 - 0.5
    expected = torch.nn.functional.avg_pool2d(noise.float(), 8).round()
    assert (align(noise, landmarks).float() - expected).abs().max() <= 1


@pytest.mark.parametrize(("border", "corner"), [("zeros", 0), ("border", 90)])
def test_what_lies_outside_is_black_or_goes_on(border: str, corner: int) -> None:
    image = torch.full((1, 60, 60), 90, dtype=torch.uint8)
    aligned = align(image, template(112) - 26, border=border)  # type: ignore[arg-type]
    assert aligned[0, 0, 0] == corner
    assert aligned[0, 56, 56] == 90


def test_a_turned_and_shrunken_portrait_gives_the_same_face() -> None:
    image = torch.from_numpy(np.moveaxis(portrait(), 2, 0).copy())
    detector = FaceDetector()
    turned = torch.from_numpy(np.array(_turn(portrait(), 15))).permute(2, 0, 1).contiguous()
    plain, other = (align(picture, detector.detect(picture[None])[0][0].landmarks).float() for picture in (image, turned))
    inner = slice(20, 92)
    a, b = plain[:, inner, inner].flatten(), other[:, inner, inner].flatten()
    assert float(torch.corrcoef(torch.stack([a, b]))[0, 1]) > 0.95


def _turn(pixels: np.ndarray, degrees: float) -> object:
    from PIL import Image

    image = Image.fromarray(pixels).rotate(degrees, Image.Resampling.BICUBIC)
    return image.resize((400, 400), Image.Resampling.BICUBIC)
