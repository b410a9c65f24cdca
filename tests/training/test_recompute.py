"""Activation checkpointing in segments: equal bits, each block run twice, only the segments' inputs kept, buffers moved once."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrizations import spectral_norm

from components.errors import UserError
from components.networks.chain import Chain
from components.training.communication import Communication
from components.training.recompute import recompute
from tests.gang import Gang

BLOCKS, ROWS, WIDTH = 8, 32, 16
BOUNDARY = ROWS * WIDTH * 4  # bytes
LENGTHS = [1, 2, 4, 8]


class Block(nn.Module):
    """A residual layer with a normalisation and torch's own dropout, as users bring them; it counts its runs."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm1d, dropout: float = 0.2) -> None:
        super().__init__()
        self.norm, self.linear, self.dropout, self.runs = norm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Dropout(dropout), 0

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        self.runs += 1
        return x + scale * self.dropout(torch.tanh(self.linear(self.norm(x))))


class Stages(nn.Module):
    """Blocks with something else between them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x).relu()
        return x


def model(kind: Callable[..., nn.Module] = nn.Sequential, block: Callable[[], nn.Module] = Block) -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"blocks": kind(*(block() for _ in range(BLOCKS)))})


def picture(rows: int = ROWS) -> Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(0), requires_grad=True)


def step(blocks: nn.Module, x: Tensor, *extra: float) -> tuple[Tensor, Tensor]:
    """The loss of one step, and the random numbers that come after it."""
    torch.manual_seed(1)
    loss = blocks(x, *extra).sum()
    loss.backward()
    return loss.detach(), torch.rand(3)


def assert_equal_steps(plain: nn.Module, again: nn.Module, *extra: float, steps: int = 2) -> None:
    """Loss, gradients, buffers and the random state after the step have equal bits, for a few steps."""
    for _ in range(steps):
        one, two = picture(), picture()
        for a, b in zip(step(plain, one, *extra), step(again, two, *extra), strict=True):
            assert torch.equal(a, b)
        assert torch.equal(one.grad, two.grad)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), again.buffers(), strict=True))


def kept_bytes(blocks: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    """The loss, and the bytes of distinct tensors that autograd keeps for backward, weights aside."""
    own = {tensor.data_ptr() for tensor in [*blocks.parameters(), *blocks.buffers()]}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        return blocks(x).sum(), sum(tensor.nbytes for tensor in kept.values())


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", [nn.Sequential, Chain])
def test_a_segment_keeps_its_input_alone_and_runs_twice(kind: type[nn.Sequential], length: int) -> None:
    again = model(kind)
    names = [f"blocks.{number}" for number in range(BLOCKS)]
    assert recompute(again, ("blocks.*",), length) == [names[first : first + length] for first in range(0, BLOCKS, length)]
    loss, kept = kept_bytes(again["blocks"], picture())
    assert kept == BLOCKS // length * BOUNDARY
    assert [block.runs for block in again["blocks"]] == [1] * BLOCKS
    loss.backward()
    assert [block.runs for block in again["blocks"]] == [2] * BLOCKS
    assert kept < kept_bytes(model(kind)["blocks"], picture())[1] / 4


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_equal_bits_with_dropout_and_batch_norm(length: int, momentum: float | None) -> None:
    plain = model(Chain, lambda: Block(lambda width: nn.BatchNorm1d(width, momentum=momentum)))
    again = copy.deepcopy(plain)
    recompute(again, ("blocks.*",), length)
    assert_equal_steps(plain["blocks"], again["blocks"], 0.5)
    assert all(int(block.norm.num_batches_tracked) == 2 for block in again["blocks"])


@pytest.mark.parametrize("length", [1, 4])
def test_buffers_that_the_result_depends_on(length: int) -> None:
    """The power iteration of spectral normalisation goes on in every run: backward needs the vectors that forward began with."""
    plain = model(block=lambda: spectral_norm(nn.Linear(WIDTH, WIDTH)))
    again = copy.deepcopy(plain)
    recompute(again, ("blocks.*",), length)
    assert_equal_steps(plain["blocks"], again["blocks"])


@pytest.mark.parametrize("length", [1, 3, 4])
def test_tied_blocks(length: int) -> None:
    def tied() -> nn.Module:
        torch.manual_seed(0)
        one, two = Block(), Block()
        return nn.ModuleDict({"blocks": nn.Sequential(one, two, one, one, two, two)})

    plain, again = tied(), tied()
    assert [len(segment) for segment in recompute(again, ("blocks.*",), length)] == {1: [1] * 6, 3: [3, 3], 4: [4, 2]}[length]
    assert_equal_steps(plain["blocks"], again["blocks"])
    assert again["blocks"][0].norm.num_batches_tracked == 6


def test_blocks_that_do_not_follow_one_another_are_segments_of_one() -> None:
    torch.manual_seed(0)
    plain = Stages()
    again = copy.deepcopy(plain)
    assert recompute(again, ("blocks.*",), 4) == [[f"blocks.{number}"] for number in range(BLOCKS)]
    assert_equal_steps(plain, again)
    assert [block.runs for block in again.blocks] == [4] * BLOCKS
    part = model()
    assert recompute(part, ("blocks.[124567]",), 4) == [["blocks.1", "blocks.2"], [f"blocks.{number}" for number in (4, 5, 6, 7)]]
    assert_equal_steps(model()["blocks"], part["blocks"])
    assert [block.runs for block in part["blocks"]] == [2, 4, 4, 2, 4, 4, 4, 4]


def test_a_kept_graph_and_a_copied_model() -> None:
    again = model()
    recompute(again, ("blocks.*",), 4)
    again = copy.deepcopy(again)
    x = picture()
    loss = again["blocks"](x).sum()
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert [int(block.norm.num_batches_tracked) for block in again["blocks"]] == [1] * BLOCKS
    with torch.no_grad():
        again["blocks"](x)
    assert [block.runs for block in again["blocks"]] == [4] * BLOCKS


def on_worker(length: int) -> list[Tensor]:
    """The gradients that data parallelism leaves on a rank that saw its half of the rows."""
    blocks = model(block=lambda: Block(nn.LayerNorm, dropout=0.0))
    recompute(blocks, ("blocks.*",), length)
    world, half = Communication.current(), ROWS // 2
    parallel = DistributedDataParallel(blocks["blocks"])
    parallel(picture()[world.rank * half :][:half].detach()).square().mean().backward()
    assert [block.runs for block in blocks["blocks"]] == [2] * BLOCKS
    return [parameter.grad for parameter in blocks.parameters()]


@pytest.mark.parametrize("length", [1, 4])
def test_two_workers_have_the_gradients_of_the_whole_batch(gang: Gang, length: int) -> None:
    whole = model(block=lambda: Block(nn.LayerNorm, dropout=0.0))
    whole["blocks"](picture().detach()).square().mean().backward()
    for gradients in gang.run(on_worker, 2, length):
        for found, parameter in zip(gradients, whole.parameters(), strict=True):
            assert (found - parameter.grad).abs().max() < 1e-6


def test_patterns_must_match() -> None:
    with pytest.raises(ValueError, match=r"'block\.\*' matches no module"):
        recompute(model(), ("block.*",), 1)
    with pytest.raises(ValueError, match="inside another match"):
        recompute(model(), ("blocks.*", "blocks.*.linear"), 1)
    with pytest.raises(UserError, match="names no blocks"):
        recompute(model(), (), 1)
