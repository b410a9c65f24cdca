"""The continuous flow beside matrix exponentials, Jacobians and closed forms; solvers, traces, adjoint gradients, also on two workers."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from scipy.linalg import expm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.recompute import kept_bytes
from components.errors import UserError
from components.functional.continuous import carried, coordinates, signs
from components.networks.bijection import BijectionChain, Logit
from components.networks.concatsquash import ConcatSquashField
from components.networks.continuous_flow import ContinuousConfig, ContinuousFlow
from components.networks.solver import SolverConfig
from components.training.randomness import Draws
from tests.gang import Gang

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def draws(first: int = 0) -> Draws:
    return Draws(0, 0, "flow", first, CPU)


def bent(module: nn.Module, size: float = 0.5) -> nn.Module:
    """The module with weights that make a field far from zero."""
    for number, parameter in enumerate(module.parameters()):
        with torch.no_grad():
            parameter.copy_(size * normal(*parameter.shape, seed=number) / math.sqrt(parameter[0].numel() if parameter.dim() > 1 else 1))
    return module


def flow(shape: tuple[int, ...] = (2,), dtype: torch.dtype = torch.float64, **config: object) -> ContinuousFlow:
    settings = {"widths": (16, 16), "solver": TIGHT, "test_solver": TIGHT} | config
    start = BijectionChain(Logit(0.01)) if len(shape) == 3 else BijectionChain()
    network = ContinuousConfig.parse(settings, "test").build(shape, start).to(dtype)
    bent(network.field)
    return network


def test_a_linear_field_is_its_matrix_exponential_and_trace() -> None:
    matrix = normal(3, 3, seed=1)
    x = normal(5, 3)
    found = carried(
        lambda t, x, tangents: (x @ matrix.T, tangents @ matrix.T),
        x,
        coordinates(x),
        SolverConfig(rtol=1e-10, atol=1e-10).solver(),
        penalties=True,
    )
    torch.testing.assert_close(found.x, x @ torch.from_numpy(expm(matrix.numpy())).T, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.log_det, matrix.trace().expand(5), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.frobenius, matrix.square().sum().expand(5), rtol=0, atol=1e-6)
    gram = _integral_of_gram(matrix)
    torch.testing.assert_close(found.kinetic, torch.einsum("bi,ij,bj->b", x, gram, x), rtol=1e-6, atol=1e-6)


def _integral_of_gram(matrix: Tensor) -> Tensor:
    """The integral over t in [0, 1] of exp(A t)' A' A exp(A t), by Van Loan's block exponential."""
    zero = torch.zeros_like(matrix)
    block = torch.cat([torch.cat([-matrix.T, matrix.T @ matrix], 1), torch.cat([zero, matrix], 1)])
    whole = torch.from_numpy(expm(block.numpy()))
    return whole[3:, 3:].T @ whole[:3, 3:]


@pytest.mark.parametrize("activation", ["tanh", "softplus"])
@pytest.mark.parametrize("pictures", [False, True])
def test_tangents_are_derivatives(activation: str, pictures: bool) -> None:
    field = bent(ConcatSquashField(2, (8, 6), activation, pictures).double(), 2.0)
    x = normal(3, 2, 4, 3) if pictures else normal(3, 2)
    tangents, t = normal(5, *x.shape, seed=1), torch.tensor(0.3, dtype=torch.float64)
    velocity, pushed = field(t, x, tangents)
    for tangent, found in zip(tangents, pushed, strict=True):
        value, expected = torch.func.jvp(lambda rows: field(t, rows, tangents[:0])[0], (x,), (tangent,))
        torch.testing.assert_close(velocity, value, rtol=0, atol=1e-12)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    later, _ = field(t + 0.5, x, tangents)
    assert (later - velocity).abs().max() > 1e-2


@pytest.mark.parametrize("shape", [(3,), (1, 2, 2)])
def test_the_log_determinant_is_that_of_the_jacobian_and_the_way_back_leads_back(shape: tuple[int, ...]) -> None:
    network = flow(shape).eval()
    x = normal(4, *shape).sigmoid()
    network.initialize(normal(32, *shape, seed=1).sigmoid())
    z, log_det = network(x)
    for row, found in zip(x, log_det.tolist(), strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda one: network(one.unsqueeze(0))[0].flatten(), row).reshape(row.numel(), -1)
        assert found == pytest.approx(float(torch.linalg.slogdet(jacobian).logabsdet), abs=1e-6)
    torch.testing.assert_close(network.inverse(z), x, rtol=0, atol=1e-6)
    torch.testing.assert_close(network.latents(x), z, rtol=0, atol=1e-6)


def test_round_trip_at_the_tolerance_of_evaluation() -> None:
    network = flow(dtype=torch.float32, test_solver={}, solver={}).eval()
    network.config = ContinuousConfig(widths=(16, 16))
    x = normal(64, 2, dtype=torch.float32)
    with torch.inference_mode():
        assert (network.inverse(network(x)[0]) - x).abs().max() < 1e-4


def test_the_density_integrates_to_one() -> None:
    network = flow(test_solver={"rtol": 1e-6, "atol": 1e-6}).eval()
    places = torch.linspace(-8, 8, 161, dtype=torch.float64)
    grid = torch.cartesian_prod(places, places)
    with torch.no_grad():
        assert float(network.log_prob(grid).exp().sum() * (places[1] - places[0]) ** 2) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("method", "factor"), [("euler", 2), ("midpoint", 4), ("heun", 4), ("rk4", 16)])
def test_halving_the_step_divides_the_error(method: str, factor: int) -> None:
    field, x = flow().field, normal(7, 2)
    none = x.new_empty(0, *x.shape)
    exact = carried(field, x, none, SolverConfig(rtol=1e-12, atol=1e-12).solver()).x
    errors = []
    for steps in (16, 32):
        config = SolverConfig(method=method, steps=steps)
        found = carried(field, x, none, config.solver())
        errors.append((found.x - exact).detach().norm())
        assert found.evaluations == config.evaluations
    assert float(errors[0] / errors[1]) == pytest.approx(factor, rel=0.1)


def test_signs_give_the_trace_exactly_of_a_diagonal_jacobian_and_on_average_of_a_dense_one() -> None:
    x = normal(4000, 3)
    probe = signs(torch.rand(4000, 3, generator=torch.Generator().manual_seed(0)).double())
    assert set(probe.unique().tolist()) == {-1.0, 1.0}
    exact, estimated = (
        carried(lambda t, x, e: (x.sin(), e * x.cos()), x, probes, SolverConfig(method="rk4").solver())
        for probes in (coordinates(x), probe)
    )
    torch.testing.assert_close(estimated.log_det, exact.log_det, rtol=0, atol=1e-12)
    matrix = normal(3, 3, seed=2)
    dense = carried(lambda t, x, e: (x @ matrix.T, e @ matrix.T), x, probe, SolverConfig(method="rk4").solver())
    assert float(dense.log_det.std()) > 0.1
    assert abs(float(dense.log_det.mean() - matrix.trace())) < 3 * float(dense.log_det.std()) / math.sqrt(4000)


def test_signs_are_drawn_once_a_solve_and_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    network = flow(divergence="hutchinson", solver={}, test_solver={"method": "rk4"})
    asked: list[str] = []
    uniform = Draws.uniform
    monkeypatch.setattr(Draws, "uniform", lambda self, name, shape: asked.append(name) or uniform(self, name, shape))
    x = normal(16, 2)
    found = network.objective(x, draws())
    assert asked == ["probe"]
    assert found.metrics["evaluations"] < 60
    network.eval()
    parts = [network.log_prob(part, draws(first)) for first, part in ((0, x[:8]), (8, x[8:]))]
    torch.testing.assert_close(torch.cat(parts), network.log_prob(x, draws()), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="give random"):
        network.log_prob(x)


def test_exact_up_to_sixteen_numbers() -> None:
    assert flow((16,)).divergence == "exact"
    assert flow((17,)).divergence == flow((1, 6, 6)).divergence == "hutchinson"
    assert flow((17,), divergence="exact").divergence == "exact"


def gradients(network: ContinuousFlow, x: Tensor) -> list[Tensor]:
    network.zero_grad(set_to_none=True)
    x = x.clone().requires_grad_()
    objective = network.train().objective(x, draws())
    (objective.penalty - objective.log_prob.mean()).backward()
    assert x.grad is not None
    return [x.grad, *(parameter.grad for parameter in network.parameters())]


def distance(a: list[Tensor], b: list[Tensor]) -> float:
    """The largest difference relative to the size of its tensor."""
    return max(float((one - two).norm() / two.norm()) for one, two in zip(a, b, strict=True))


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adjoint_gradients_are_those_of_backpropagation(divergence: str, dtype: torch.dtype) -> None:
    settings = {"divergence": divergence, "kinetic": 0.1, "frobenius": 0.1, "solver": {"rtol": 1e-7, "atol": 1e-7}}
    plain, adjoint = flow(dtype=dtype, **settings), flow(dtype=dtype, adjoint=True, **settings)
    x = normal(16, 2, dtype=dtype)
    assert distance(gradients(adjoint, x), gradients(plain, x)) < 1e-4


def test_the_adjoint_keeps_nothing_of_the_way() -> None:
    x, kept = normal(32, 2), {}
    for adjoint in (False, True):
        for tolerance in (1e-2, 1e-9):
            network = flow(adjoint=adjoint, solver={"rtol": tolerance, "atol": tolerance})
            kept[adjoint, tolerance] = kept_bytes(network, lambda network=network: -network.objective(x, draws()).log_prob.mean())
    assert kept[False, 1e-9] > 1.5 * kept[False, 1e-2]
    assert kept[True, 1e-9] == kept[True, 1e-2] < kept[False, 1e-2] / 20


class Loss(nn.Module):
    """What DDP wraps."""

    def __init__(self, network: ContinuousFlow) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        objective = self.network.objective(x, draws())
        return objective.penalty - objective.log_prob.mean()


def on_worker(parts: list[Tensor]) -> list[Tensor]:
    network = flow(adjoint=True, kinetic=0.1).train()
    wrapped = DistributedDataParallel(Loss(network))  # alive until backward: its hooks are what averages
    wrapped(parts[torch.distributed.get_rank()]).backward()
    return [parameter.grad.clone() for parameter in network.parameters()]


def test_adjoint_gradients_are_averaged_over_two_workers(gang: Gang) -> None:
    x = normal(16, 2)
    one, two = gang.run(on_worker, 2, list(x.chunk(2)))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert distance(one, gradients(flow(kinetic=0.1), x)[1:]) < 1e-4


def test_under_autocast_the_field_stays_exact() -> None:
    network = flow(dtype=torch.float32, solver={"method": "rk4"})
    x = normal(16, 2, dtype=torch.float32)
    plain = network.objective(x, draws()).log_prob
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network.objective(x, draws()).log_prob, plain)


def test_a_fresh_flow_only_scales() -> None:
    network = ContinuousConfig().build((2,), BijectionChain())
    network.initialize(3 + 2 * normal(100, 2, dtype=torch.float32))
    z, log_det = network(3 + 2 * normal(100, 2, dtype=torch.float32))
    torch.testing.assert_close(z.mean(0), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(log_det, copy.deepcopy(network.norm).log_scale.sum().expand(100), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "shape", "message"),
    [
        ({"solver": {"steps": 4}}, (2,), "steps=4 has no effect with method=dopri5"),
        ({"solver": {"method": "rk4", "rtol": 1e-3}}, (2,), "rtol=0.001 has no effect with method=rk4"),
        ({"adjoint": True, "solver": {"method": "rk4"}}, (2,), "adjoint=true is for solver.method=dopri5"),
        ({"patch": 2}, (2,), "patch=2 has no effect on points"),
        ({"patch": 3}, (1, 28, 28), "patch=3 does not divide 28 x 28"),
        ({"activation": "relu"}, (2,), "tanh"),
    ],
)
def test_what_does_not_fit_is_refused(config: dict[str, object], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises((UserError, ValueError), match=message):
        ContinuousConfig.parse(config, "test").require_shape(shape)
