"""Random changes of pictures against per-picture slicing, closed forms and scikit-image."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from skimage.transform import ProjectiveTransform

from components.functional.augment import erase, flip, illuminate, jitter, perspective, shift


def pictures() -> torch.Tensor:
    return torch.randint(1, 256, (6, 2, 5, 7), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_flip_mirrors_the_chosen_rows_alone() -> None:
    images, chosen = pictures(), torch.tensor([True, False, True, False, False, True])
    out = flip(images, chosen)
    for before, after, mirrored in zip(images, out, chosen, strict=True):
        assert torch.equal(after, before[:, :, torch.arange(6, -1, -1)] if mirrored else before)


def test_shift_moves_each_row_by_its_own_offset() -> None:
    images, reach = pictures(), 2
    offsets = torch.tensor([[2, 2], [0, 2], [4, 2], [2, 0], [2, 4], [1, 3]])
    out = shift(images, offsets, reach)
    assert out.dtype == torch.uint8
    for before, after, (down, right) in zip(images, out, offsets.tolist(), strict=True):
        assert torch.equal(after, F.pad(before, (reach,) * 4)[:, down : down + 5, right : right + 7])
    assert torch.equal(out[0], images[0])


def floats() -> torch.Tensor:
    return torch.rand(6, 2, 24, 30, generator=torch.Generator().manual_seed(0))


def draws(width: int, normal: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, width, generator=generator) if normal else torch.rand(6, width, generator=generator)


def test_strength_zero_is_no_change() -> None:
    images = floats()
    torch.testing.assert_close(jitter(images, draws(4, normal=True), 0.0, 0.0, 0.0), images, atol=1e-5, rtol=0)
    torch.testing.assert_close(perspective(images, draws(8), 0.0), images, atol=1e-5, rtol=0)
    assert torch.equal(illuminate(images, draws(2), 0.0), images)
    assert torch.equal(erase(images, draws(4), 0.0), images)


def test_a_draw_in_the_middle_is_no_change() -> None:
    images = floats()
    torch.testing.assert_close(jitter(images, torch.zeros(6, 4), 30.0, 0.2, 0.1), images, atol=1e-5, rtol=0)
    torch.testing.assert_close(perspective(images, torch.full((6, 8), 0.5), 0.3), images, atol=1e-5, rtol=0)


def test_rows_do_not_depend_on_each_other() -> None:
    images, normal, uniform = floats(), draws(4, normal=True), draws(8)
    for whole, one in (
        (jitter(images, normal, 20.0, 0.2, 0.1), jitter(images[2:3], normal[2:3], 20.0, 0.2, 0.1)),
        (perspective(images, uniform, 0.2), perspective(images[2:3], uniform[2:3], 0.2)),
        (illuminate(images, uniform[:, :2], 0.5), illuminate(images[2:3], uniform[2:3, :2], 0.5)),
        (erase(images, uniform[:, :4], 0.3), erase(images[2:3], uniform[2:3, :4], 0.3)),
    ):
        torch.testing.assert_close(whole[2:3], one)


def test_jitter_of_a_quarter_turn_is_a_quarter_turn() -> None:
    images = torch.rand(1, 1, 15, 15, dtype=torch.float64)
    turned = jitter(images, torch.tensor([[1.0, 0.0, 0.0, 0.0]]), 90.0, 0.0, 0.0)
    torch.testing.assert_close(turned, torch.rot90(images, -1, (2, 3)))  # x to y: clockwise, as y points down


def test_jitter_moves_right_and_down() -> None:
    images = torch.rand(1, 1, 10, 20, dtype=torch.float64)
    moved = jitter(images, torch.tensor([[0.0, 0.0, 1.5, -1.0]]), 0.0, 0.0, 0.1, border="zeros")
    expected = torch.zeros_like(images)
    expected[..., :9, 3:] = images[..., 1:, :17]
    torch.testing.assert_close(moved, expected)


def test_jitter_zooms_about_the_centre() -> None:
    x = torch.arange(21, dtype=torch.float64).expand(1, 1, 21, 21)
    zoomed = jitter(x, torch.tensor([[0.0, 1.0, 0.0, 0.0]]), 0.0, math.log(2), 0.0)
    torch.testing.assert_close(zoomed[0, 0, 5], 10 + (x[0, 0, 5] - 10) / 2)


def test_perspective_takes_each_corner_from_its_draw() -> None:
    height, width, strength = 41, 61, 0.2
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    images, moves = torch.stack([x, y])[None], draws(8)[:1]
    found = perspective(images, moves, strength)
    corners = np.array([[-0.5, -0.5], [width - 0.5, -0.5], [-0.5, height - 0.5], [width - 0.5, height - 0.5]])
    sources = corners + strength * (2 * moves.double().numpy().reshape(4, 2) - 1) * [width, height]
    truth = ProjectiveTransform.from_estimate(corners, sources)(np.stack([x.flatten(), y.flatten()], 1)).reshape(height, width, 2)
    expected = torch.from_numpy(np.clip(truth, 0, [width - 1, height - 1])).permute(2, 0, 1)
    torch.testing.assert_close(found[0], expected, atol=1e-6, rtol=0)


def test_light_is_a_slope_that_leaves_the_mean_alone() -> None:
    images = torch.full((6, 1, 20, 30), 0.5, dtype=torch.float64)
    lit = illuminate(images, draws(2).double(), 0.8)
    torch.testing.assert_close(lit.mean((1, 2, 3)), torch.full((6,), 0.5, dtype=torch.float64))
    assert (lit >= 0.1 - 1e-9).all()
    assert (lit <= 0.9 + 1e-9).all()
    for direction in (2, 3):
        slopes = lit.diff(dim=direction)
        torch.testing.assert_close(slopes, slopes[:, :, :1, :1].expand_as(slopes))
    from_the_right = illuminate(images[:1], torch.tensor([[0.0, 0.99]]), 0.8)[0, 0, 0]
    assert (from_the_right.diff() > 0).all()


def test_erasing_covers_one_rectangle_of_the_drawn_share() -> None:
    images = torch.rand(500, 2, 40, 40, generator=torch.Generator().manual_seed(0))
    chosen = torch.rand(500, 4, generator=torch.Generator().manual_seed(1))
    out = erase(images, chosen, 0.3)
    covered = (out != images).any(1)
    for image, after, mask, area in zip(images, out, covered, 0.3 * 1600 * chosen[:, 0], strict=True):
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns[None])
        if mask.any():
            assert torch.equal(after[:, mask], image.mean((1, 2))[:, None].expand(-1, int(mask.sum())))
        height, width = int(rows.sum()), int(columns.sum())
        assert abs(height * width - float(area)) <= 0.5 * (height + width) + 0.75  # both sides are rounded
    assert covered.any(0).any(0).all()  # from edge to edge
    assert covered.any(0).any(1).all()
