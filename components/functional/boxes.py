"""Boxes (..., 4) as left, top, right, bottom edges: overlap, non-maximum suppression, shifted edges, squares."""

from __future__ import annotations

import torch
from torch import Tensor


def area(boxes: Tensor) -> Tensor:
    """Areas (...) of boxes (..., 4)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def overlap(a: Tensor, b: Tensor, of_smaller: bool = False) -> Tensor:
    """Shared area of boxes `a` and `b` (..., 4), which broadcast, as a share of their union, or of the smaller one; 0 for empty boxes."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    whole = torch.minimum(area(a), area(b)) if of_smaller else area(a) + area(b) - shared
    return torch.where(shared > 0, shared / whole, torch.zeros_like(shared))


def suppress(boxes: Tensor, scores: Tensor, threshold: float, of_smaller: bool = False) -> Tensor:
    """Non-maximum suppression: indices (K,) of the boxes (N, 4) to keep, best score first, of equal ones the first.

    A box goes when a kept one of a better score overlaps it by more than `threshold`.
    """
    waiting = scores.argsort(descending=True, stable=True)
    kept = []
    while len(waiting):
        best, waiting = waiting[0], waiting[1:]
        kept.append(best)
        waiting = waiting[overlap(boxes[best], boxes[waiting], of_smaller) <= threshold]
    return torch.stack(kept) if kept else waiting


def move_edges(boxes: Tensor, shifts: Tensor) -> Tensor:
    """Boxes (N, 4) with each edge moved by its entry of `shifts` (N, 4), in units of the box's width and height."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return boxes + shifts * sides.repeat(1, 2)


def squared(boxes: Tensor) -> Tensor:
    """The squares (N, 4) about the centres of boxes (N, 4) whose side is the longer one."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).amax(1, keepdim=True) / 2
    return torch.cat([centre - half, centre + half], 1)
