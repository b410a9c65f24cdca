"""Activation checkpointing gives equal bits, runs a block twice, keeps only its input, and refuses patterns that match nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from components.errors import UserError
from components.training.randomness import Draws
from components.training.recompute import recompute

DRAWS = Draws(0, 0, "p", 0, torch.device("cpu"))


class Block(nn.Module):
    """A layer whose dropout is a function of its name, as the families' is."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.linear, self.name, self.calls = nn.Linear(16, 16), name, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + torch.tanh(self.linear(x)) * (DRAWS.uniform(self.name, tuple(x.shape)) > 0.2)


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block(str(n)) for n in range(8))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def saved_bytes(model: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    sizes: dict[int, int] = {}
    parameters = {p.data_ptr() for p in model.parameters()}

    def pack(t: Tensor) -> Tensor:
        if t.data_ptr() not in parameters:
            sizes[t.data_ptr()] = t.numel() * t.element_size()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        return model(x).square().mean(), sum(sizes.values())


@pytest.mark.parametrize("every", [1, 2, 4])
def test_equal_bits_and_fewer_bytes(every: int) -> None:
    plain = Stack()
    again = copy.deepcopy(plain)
    assert recompute(again, ("blocks.*",), every) == [f"blocks.{n}" for n in range(0, 8, every)]
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    loss, bytes_plain = saved_bytes(plain, x)
    loss_again, bytes_again = saved_bytes(again, x)
    loss.backward()
    loss_again.backward()
    assert torch.equal(loss, loss_again)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), again.parameters(), strict=True))
    assert [block.calls for block in again.blocks] == [2 if n % every == 0 else 1 for n in range(8)]
    state, inside = 32 * 16 * 4, (bytes_plain - 32 * 16 * 4) // 8  # bytes of a boundary, and of all that one block keeps
    assert bytes_again == pytest.approx((8 - 8 // every) * inside + (8 // every) * state, abs=2 * state)


def test_patterns_must_match() -> None:
    with pytest.raises(ValueError, match=r"'block\.\*' matches no module"):
        recompute(Stack(), ("block.*",), 1)
    with pytest.raises(ValueError, match="inside another match"):
        recompute(Stack(), ("blocks.*", "blocks.*.linear"), 1)
    with pytest.raises(UserError, match="names no blocks"):
        recompute(Stack(), (), 1)
