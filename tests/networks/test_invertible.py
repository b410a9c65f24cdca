"""Recomputation from outputs: gradients of plain backpropagation, memory that does not grow with blocks, two workers, autocast."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.recompute import kept_bytes, peak_bytes
from components.families.flow import Flow
from components.networks import coupling as flows
from components.networks.invertible import InvertibleChain
from components.training.recompute import recompute
from tests.gang import Gang

WIDTH, ROWS = 6, 16


class Coupling(nn.Module):
    """An affine coupling of halves that take turns, with a condition if it is given one; it counts its runs."""

    def __init__(self, turned: bool, hidden: int = 16) -> None:
        super().__init__()
        self.turned, self.runs = turned, 0
        self.net = nn.Sequential(nn.Linear(WIDTH // 2, hidden), nn.Tanh(), nn.Linear(hidden, WIDTH))

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.chunk(2, dim=1)
        return (b, a) if self.turned else (a, b)

    def _join(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([b, a] if self.turned else [a, b], dim=1)

    def _map(self, a: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        raw, shift = self.net(a if condition is None else a + condition).chunk(2, dim=1)
        return raw.tanh().to(a.dtype), shift.to(a.dtype)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.runs += 1
        a, b = self._halves(x)
        log_scale, shift = self._map(a, condition)
        return self._join(a, (b + shift) * log_scale.exp()), log_scale.sum(1)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> Tensor:
        a, b = self._halves(y)
        log_scale, shift = self._map(a, condition)
        return self._join(a, b * (-log_scale).exp() - shift)


class Turn(nn.Module):
    """A rotation without weights, whose log_det has no gradient."""

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x.roll(1, dims=1), x.new_zeros(len(x))

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> Tensor:
        return y.roll(-1, dims=1)


def chain(blocks: int = 8, dtype: torch.dtype = torch.float64, hidden: int = 16) -> InvertibleChain:
    torch.manual_seed(0)
    parts = (Turn() if number % 4 == 3 else Coupling(number % 2 == 1, hidden) for number in range(blocks))
    return InvertibleChain(*parts).to(dtype)


def from_outputs(plain: InvertibleChain) -> InvertibleChain:
    again = copy.deepcopy(plain)
    again.from_outputs = True
    return again


def rows(dtype: torch.dtype, width: int = WIDTH, seed: int = 0) -> Tensor:
    return torch.randn(ROWS, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype).requires_grad_()


def loss_of(model: nn.Module, x: Tensor, *extra: Tensor | None) -> Tensor:
    z, log_det = model(x, *extra)
    return (z.square().sum(1) / 2 - log_det).mean()


def gradients(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    model.zero_grad(set_to_none=True)
    inputs = tuple(value.detach().clone().requires_grad_() for value in inputs)
    loss_of(model, *inputs).backward()
    found = [*(value.grad for value in inputs), *(parameter.grad for parameter in model.parameters())]
    assert all(gradient is not None for gradient in found)
    return found


def distance(a: list[Tensor], b: list[Tensor]) -> float:
    """The largest difference relative to the size of its tensor."""
    return max(float((one - two).norm() / two.norm()) for one, two in zip(a, b, strict=True))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
@pytest.mark.parametrize("conditional", [False, True])
def test_gradients_are_those_of_plain_backpropagation(dtype: torch.dtype, bound: float, conditional: bool) -> None:
    plain = chain(24, dtype)
    again = from_outputs(plain)
    inputs = (rows(dtype), rows(dtype, WIDTH // 2, seed=1)) if conditional else (rows(dtype),)
    for a, b in zip(plain(*inputs), again(*inputs), strict=True):
        assert torch.equal(a, b)
    assert distance(gradients(again, *inputs), gradients(plain, *inputs)) < bound
    assert torch.allclose(again.inverse(again(*inputs)[0], *inputs[1:]), inputs[0], rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-12)


def test_a_block_that_comes_twice_and_frozen_weights() -> None:
    block = chain(1)[0]
    plain = InvertibleChain(block, Turn(), block, chain(1)[0])
    plain[3].requires_grad_(False)
    again = from_outputs(plain)
    x = rows(torch.float64)
    for model in (plain, again):
        loss_of(model, x.detach()).backward()
    assert distance([p.grad for p in again[0].parameters()], [p.grad for p in plain[0].parameters()]) < 1e-13
    assert all(parameter.grad is None for parameter in again[3].parameters())


def test_what_is_kept_and_the_peak_do_not_grow_with_the_blocks() -> None:
    sizes: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
    for again in sizes:
        for blocks in (8, 64):
            model = chain(blocks, torch.float32, hidden=64)
            model.from_outputs = again
            x = rows(torch.float32).detach()
            loss_of(model, x).backward()  # gradients are there from now on
            kept = kept_bytes(model, lambda model=model, x=x: loss_of(model, x))
            sizes[again].append((kept, peak_bytes(lambda model=model, x=x: loss_of(model, x))))
    (plain_few, _), (plain_many, plain_peak) = sizes[False]
    (few, peak_few), (many, peak_many) = sizes[True]
    assert plain_many > 7 * plain_few
    assert many == few
    assert peak_many < 1.1 * peak_few
    assert peak_many < plain_peak / 8


def test_each_block_runs_once_forward_and_once_backward() -> None:
    model = from_outputs(chain(3))
    loss_of(model, rows(torch.float64)).backward()
    assert [block.runs for block in model] == [2, 2, 2]
    with torch.no_grad():
        model(rows(torch.float64))
    assert [block.runs for block in model] == [3, 3, 3]


def test_under_autocast_gradients_are_those_of_plain_autocast() -> None:
    """Conditioners compute in bfloat16, alike both times; a use of the same weights afterwards keeps its gradient."""
    plain = chain(8, torch.float32)
    again = from_outputs(plain)
    x, found = rows(torch.float32).detach(), []
    for model in (plain, again):
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, x) + model[0].net(x[:, : WIDTH // 2]).float().square().mean()
            assert model[0].net(x[:, : WIDTH // 2]).dtype == torch.bfloat16
        loss.backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert distance(found[1], found[0]) < 0.02
    exact = gradients(chain(8, torch.float32), x)[1:]
    assert distance(found[0], exact) > 1e-3  # so that it was bfloat16 that they agreed in


def test_no_second_derivatives_and_changed_weights_are_noticed() -> None:
    model = from_outputs(chain(4))
    x = rows(torch.float64)
    (slope,) = torch.autograd.grad(loss_of(model, x), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.square().sum().backward()
    loss = loss_of(model, x)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


def test_backward_may_come_again() -> None:
    model = from_outputs(chain(6))
    x = rows(torch.float64)
    loss = loss_of(model, x)
    first, second = (torch.autograd.grad(loss, (x, *model.parameters()), retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def on_worker(rank_rows: list[Tensor], state: dict[str, Tensor]) -> list[Tensor]:
    model = from_outputs(chain())
    model.load_state_dict(state)
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
    loss_of(wrapped, rank_rows[torch.distributed.get_rank()]).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_on_two_workers_gradients_are_averaged(gang: Gang) -> None:
    plain, x = chain(), rows(torch.float64).detach()
    one, two = gang.run(on_worker, 2, list(x.chunk(2)), plain.state_dict())
    expected = gradients(plain, x)[1:]
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert distance(one, expected) < 1e-12


@pytest.mark.parametrize("kind", ["nice", "realnvp", "glow"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (4,)])
@pytest.mark.parametrize("autocast", [False, True])
def test_flows_learn_the_same_from_outputs(kind: str, shape: tuple[int, ...], autocast: bool) -> None:
    """Their couplings retrace: the conditioner runs twice a step, as with activation checkpointing, not three times."""
    found, dtype = [], torch.float32 if autocast else torch.float64
    x = torch.rand(8, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    for again in (False, True):
        torch.manual_seed(0)
        model = Flow(Flow.Config.parse({"shape": shape, "network": {"kind": kind, "width": 8, "from_outputs": again}}, "test")).to(dtype)
        perturb(model)
        runs = counted_runs(model)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = -model.network.log_prob(x).mean()
        loss.backward()
        couplings = len(set(runs))
        assert couplings > 1
        assert len(runs) == (2 if again else 1) * couplings
        found.append([parameter.grad for parameter in model.parameters()])
    assert distance(found[1], found[0]) < (0.05 if autocast else 1e-9)


def counted_runs(model: nn.Module) -> list[nn.Module]:
    """Grows by a conditioner whenever it runs."""
    runs: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, flows.Coupling):
            module.conditioner.register_forward_hook(lambda conditioner, *_: runs.append(conditioner))
    return runs


def perturb(model: nn.Module) -> None:
    """Weights far from those of the identity that flows begin as."""
    for number, parameter in enumerate(model.parameters()):
        with torch.no_grad():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))


@pytest.mark.parametrize("length", [1, 3, 8])
def test_activation_checkpointing_joins_blocks_in_segments_of_equal_bits(length: int) -> None:
    plain, again = chain(), chain()
    holder = nn.ModuleDict({"blocks": again})
    segments = recompute(holder, ("blocks.*",), length)
    assert [len(segment) for segment in segments] == [length] * (8 // length) + ([8 % length] if 8 % length else [])
    x, condition = rows(torch.float64), rows(torch.float64, WIDTH // 2, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(gradients(again, x, condition), gradients(plain, x, condition), strict=True))
    plain_kept, kept = (kept_bytes(model, lambda model=model: loss_of(model, x.detach(), condition.detach())) for model in (plain, again))
    assert kept < plain_kept
