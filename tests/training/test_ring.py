"""The ring all-reduce beside the library's: equal sums, equal bits on all workers, no more sent than the bound says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from components.training.communication import Communication
from components.training.ring import ring_all_reduce
from tests.gang import Gang

SIZES = (1, 2, 7, 1000, 1003)


def on_worker() -> list[tuple[torch.Tensor, torch.Tensor, int, int]]:
    """For each size the ring's sum and the library's, the elements it says that it sent and those that were seen on their way."""
    world, results = Communication.current(), []
    seen = 0
    exchange = dist.batch_isend_irecv

    def counted(transfers: list[dist.P2POp]) -> Any:
        nonlocal seen
        seen += sum(transfer.tensor.numel() for transfer in transfers if transfer.op is dist.isend)
        return exchange(transfers)

    dist.batch_isend_irecv = counted
    try:
        for size in SIZES:
            seen = 0
            value = torch.randn(size, generator=torch.Generator().manual_seed(world.rank))
            expected = world.sum(value)
            sent = ring_all_reduce(value, world)
            results.append((value, expected, sent, seen))
    finally:
        dist.batch_isend_irecv = exchange
    return results


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_equals_the_library_and_sends_as_little_as_can_be(gang: Gang, workers: int) -> None:
    results = gang.run(on_worker, workers)
    for size, found in zip(SIZES, zip(*results, strict=True), strict=True):
        for value, expected, sent, seen in found:
            assert (value - expected).abs().max() < 1e-6
            assert torch.equal(value, found[0][0])
            assert sent == seen
            assert abs(sent - 2 * (workers - 1) / workers * size) <= workers


def shapes_on_worker() -> None:
    world = Communication.current()
    value = torch.full((3, 5), float(world.rank + 1), dtype=torch.float64, requires_grad=True)
    ring_all_reduce(value, world)
    assert torch.equal(value, torch.full((3, 5), 6.0, dtype=torch.float64))
    ring_all_reduce(torch.empty(0), world)
    with pytest.raises(RuntimeError, match="view"):
        ring_all_reduce(torch.zeros(3, 5).T, world)


def test_any_shape_and_type(gang: Gang) -> None:
    gang.run(shapes_on_worker, 3)
