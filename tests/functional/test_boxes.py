"""Boxes against loops over pixels and pairs."""

from __future__ import annotations

import pytest
import torch

from components.functional.boxes import move_edges, overlap, squared, suppress


def random_boxes(count: int, seed: int, grid: int = 12) -> torch.Tensor:
    """Boxes with whole-numbered edges, some of them empty."""
    corners = torch.randint(0, grid, (count, 2, 2), generator=torch.Generator().manual_seed(seed))
    return torch.cat([corners.amin(1), corners.amax(1)], 1).double()


def pixels_of(box: torch.Tensor) -> set[tuple[int, int]]:
    left, top, right, bottom = (int(edge) for edge in box)
    return {(x, y) for x in range(left, right) for y in range(top, bottom)}


@pytest.mark.parametrize("of_smaller", [False, True])
def test_overlap_counts_shared_pixels(of_smaller: bool) -> None:
    boxes = random_boxes(40, seed=0)
    found = overlap(boxes[:, None], boxes[None], of_smaller)
    for i, a in enumerate(map(pixels_of, boxes)):
        for j, b in enumerate(map(pixels_of, boxes)):
            whole = min(len(a), len(b)) if of_smaller else len(a | b)
            assert float(found[i, j]) == pytest.approx(len(a & b) / whole if a & b else 0.0)


def brute_force(boxes: torch.Tensor, scores: list[float], threshold: float, of_smaller: bool) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        if all(float(overlap(boxes[i], boxes[j], of_smaller)) <= threshold for j in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("of_smaller", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("count", [0, 1, 2, 60])
def test_suppression_is_that_of_brute_force_with_ties(count: int, threshold: float, of_smaller: bool) -> None:
    for seed in range(5):
        boxes = random_boxes(count, seed)
        boxes[count // 2 :] = boxes[: count - count // 2].clone()  # twins
        scores = torch.randint(0, 6, (count,), generator=torch.Generator().manual_seed(seed)).double() / 6  # ties
        assert suppress(boxes, scores, threshold, of_smaller).tolist() == brute_force(boxes, scores.tolist(), threshold, of_smaller)


def test_edges_move_in_units_of_their_side() -> None:
    moved = move_edges(torch.tensor([[10.0, 20.0, 14.0, 30.0]]), torch.tensor([[0.5, -0.1, 0.25, 0.2]]))
    torch.testing.assert_close(moved, torch.tensor([[12.0, 19.0, 15.0, 32.0]]))


def test_squares_keep_the_centre_and_the_longer_side() -> None:
    boxes = torch.rand(20, 4, generator=torch.Generator().manual_seed(0)).double()
    boxes[:, 2:] += boxes[:, :2]
    squares = squared(boxes)
    sides = squares[:, 2:] - squares[:, :2]
    torch.testing.assert_close(sides[:, 0], sides[:, 1])
    torch.testing.assert_close(sides[:, 0], (boxes[:, 2:] - boxes[:, :2]).amax(1))
    torch.testing.assert_close(squares[:, :2] + squares[:, 2:], boxes[:, :2] + boxes[:, 2:])
