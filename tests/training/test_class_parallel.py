"""The softmax over class slices equals F.cross_entropy over the whole matrix: loss and all gradients, for any number of workers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from components.functional.margins import Margin, margin_logits
from components.networks.class_rows import rows_owned
from components.training.class_parallel import cross_entropy, gather_rows
from components.training.communication import Communication
from components.training.context import Context
from components.training.randomness import Draws
from tests.gang import Gang

CLASSES, DIM = 10, 6
ROWS = {1: (14,), 2: (8, 6), 3: (8, 4, 2), 4: (5, 1, 6, 2)}  # uneven batches
ARCFACE = Margin("arcface", scale=64.0, m2=0.5)


def problem(classes: int, rows: int, dtype: torch.dtype, labels_below: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(rows, DIM, generator=g, dtype=torch.float64).to(dtype)
    w = torch.randn(classes, DIM, generator=g, dtype=torch.float64).to(dtype)
    return x, w, torch.randint(labels_below, (rows,), generator=g)


def whole(x: torch.Tensor, w: torch.Tensor, labels: torch.Tensor, kept: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    """Loss, dX and dW of one process: the arc margin written out by hand, then the library's cross-entropy over the kept classes."""
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    cosine = F.normalize(x) @ F.normalize(w).T
    target = cosine.gather(1, labels[:, None])[:, 0]
    moved = torch.where(target >= -math.cos(0.5), (target.acos() + 0.5).cos(), target - 0.5 * math.sin(0.5))
    logits = 64 * cosine.scatter(1, labels[:, None], moved[:, None])
    if kept is not None:
        logits = logits.masked_fill(~kept, -torch.inf)
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    assert x.grad is not None
    assert w.grad is not None
    return loss.detach(), x.grad, w.grad


def on_worker(classes: int, dtype: torch.dtype, labels_below: int, kept: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    """Loss, this worker's dX as data parallelism averages it, and dW of its slice."""
    world = Communication.current()
    counts = ROWS[world.size]
    x, w, labels = problem(classes, sum(counts), dtype, labels_below)
    first = sum(counts[: world.rank])
    mine = slice(first, first + counts[world.rank])
    ctx = Context(0, "p", Draws(0, 0, "p", 0, torch.device("cpu")), counts[world.rank], len(x), world, counts)
    low, high = rows_owned(world.rank, world.size, classes)
    own = x[mine].clone().requires_grad_()
    slice_ = w[low:high].clone().requires_grad_()
    index = torch.arange(low, high) if kept is None else torch.arange(low, high)[kept[low:high]]
    places = torch.full((classes,), -1)
    places[index] = torch.arange(len(index))
    targets = places[ctx.gather(labels[mine])]
    loss = cross_entropy(margin_logits(gather_rows(own, ctx), slice_[index - low], targets, ARCFACE), targets, world).mean()
    loss.backward()
    gradient = own.grad if own.grad is not None else torch.zeros_like(own)
    return loss.detach(), gradient / world.size, torch.zeros_like(slice_) if slice_.grad is None else slice_.grad


def check(found: list[Any], expected: tuple[torch.Tensor, ...], loss_within: float, gradient_within: float) -> None:
    for loss, _, _ in found:
        assert abs(loss - expected[0]) < loss_within
    assert (torch.cat([dx for _, dx, _ in found]) - expected[1]).abs().max() < gradient_within
    assert (torch.cat([dw for _, _, dw in found]) - expected[2]).abs().max() < gradient_within


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize(("dtype", "loss_within", "gradient_within"), [(torch.float64, 1e-10, 1e-10), (torch.float32, 2e-5, 2e-6)])
def test_equals_the_library_on_the_whole_matrix(
    gang: Gang, workers: int, dtype: torch.dtype, loss_within: float, gradient_within: float
) -> None:
    found = gang.run(on_worker, workers, CLASSES, dtype, CLASSES)
    check(found, whole(*problem(CLASSES, 14, dtype, CLASSES)), loss_within, gradient_within)


@pytest.mark.parametrize("workers", [2, 4])
def test_with_fewer_classes_than_workers_and_workers_without_positives(gang: Gang, workers: int) -> None:
    check(gang.run(on_worker, workers, 3, torch.float64, 2), whole(*problem(3, 14, torch.float64, 2)), 1e-10, 1e-10)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_some_classes_equal_the_library_on_those(gang: Gang, workers: int) -> None:
    _, _, labels = problem(CLASSES, 14, torch.float64, 4)
    kept = torch.zeros(CLASSES, dtype=torch.bool)
    kept[labels] = kept[[6, 9]] = True
    found = gang.run(on_worker, workers, CLASSES, torch.float64, 4, kept)
    check(found, whole(*problem(CLASSES, 14, torch.float64, 4), kept), 1e-10, 1e-10)
    assert (torch.cat([dw for _, _, dw in found])[~kept] == 0).all()


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation gave."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return out


def largest_on_worker() -> int:
    world = Communication.current()
    low, high = rows_owned(world.rank, world.size, 4000)
    rows = torch.randn(high - low, DIM, requires_grad=True)
    ctx = Context(0, "p", Draws(0, 0, "p", 0, torch.device("cpu")), 32, 64, world, (32, 32))
    labels = torch.arange(64) * 60
    targets = (labels - low).where((labels >= low) & (labels < high), -1)
    with Largest() as seen:
        x = gather_rows(torch.randn(32, DIM, requires_grad=True), ctx)
        cross_entropy(margin_logits(x, rows, targets, ARCFACE), targets, world).mean().backward()
    return seen.elements


def test_no_worker_makes_a_tensor_of_all_classes(gang: Gang) -> None:
    for elements in gang.run(largest_on_worker, 2):
        assert elements == 64 * 2000  # batch x own classes
