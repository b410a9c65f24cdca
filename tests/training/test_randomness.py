"""Draws are functions of the global row: the same for every cut of the batch."""

from __future__ import annotations

import pytest
import torch

from components.training.communication import rows_of
from components.training.randomness import LANE, Draws, derive_seed

CPU = torch.device("cpu")


def draws(first_row: int = 0, step: int = 3, phase: str = "p") -> Draws:
    return Draws(seed=1, step=step, phase=phase, first_row=first_row, device=CPU)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("global_rows", [32, 50])
def test_rows_of_all_workers_are_the_rows_of_one(size: int, global_rows: int) -> None:
    whole = draws().normal("x", (global_rows, 5))
    parts = []
    for rank in range(size):
        mine = rows_of(rank, size, global_rows, LANE)
        parts.append(draws(mine.start).normal("x", (mine.stop - mine.start, 5)))
    assert torch.equal(torch.cat(parts), whole)


def test_name_step_and_phase_tell_draws_apart() -> None:
    one = draws().uniform("a", (16,))
    for other in (draws().uniform("b", (16,)), draws(step=4).uniform("a", (16,)), draws(phase="q").uniform("a", (16,))):
        assert not torch.equal(one, other)
    assert torch.equal(one, draws().uniform("a", (16,)))


def test_draws_have_the_moments_they_promise() -> None:
    uniform, normal = draws().uniform("u", (4096, 8)), draws().normal("n", (4096, 8))
    assert abs(uniform.mean() - 0.5) < 0.01
    assert abs(uniform.var() - 1 / 12) < 0.005
    assert abs(normal.mean()) < 0.03
    assert abs(normal.std() - 1) < 0.03
    assert draws().integers("i", 7, (4096,)).bincount(minlength=7).min() > 450


def test_seeds_of_unequal_parts_differ() -> None:
    seeds = {derive_seed(a, b) for a in range(50) for b in ("x", "y")} | {derive_seed("1x"), derive_seed(1, "x", "")}
    assert len(seeds) == 102
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_too_many_workers_for_the_batch() -> None:
    with pytest.raises(ValueError, match="too few for 3 workers"):
        rows_of(0, 3, 16, LANE)
