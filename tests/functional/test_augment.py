"""Random changes of pictures against per-picture slicing."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from components.functional.augment import flip, shift


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
