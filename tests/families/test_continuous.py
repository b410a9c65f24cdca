"""The flow family with a continuous network: how samples are solved, what that costs, what is refused; pictures with an estimated trace."""

from __future__ import annotations

import pytest
import torch

from benchmarks.densities import PINWHEEL, RING, Petals
from components.errors import UserError
from components.families.flow import Flow, FlowSampler
from components.training.communication import Communication
from components.training.context import Context
from components.training.randomness import Draws

CPU = torch.device("cpu")
RK4 = {"method": "rk4", "steps": 4}


def flow(shape: tuple[int, ...] = (2,), **network: object) -> Flow:
    torch.manual_seed(0)
    model = Flow(Flow.Config.parse({"shape": shape, "network": {"kind": "continuous", "widths": (8, 8)} | network}, "test"))
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def context(rows: int, step: int = 0) -> Context:
    return Context(step, "flow", Draws(0, step, "flow", 0, CPU), rows, rows, Communication())


def test_a_sampler_says_how_the_flow_is_solved() -> None:
    model = flow().eval()
    exact = model.sample(20, 0, FlowSampler(rtol=1e-8, atol=1e-8))
    errors = [float((model.sample(20, 0, FlowSampler(method="heun", steps=steps)) - exact).norm()) for steps in (2, 8, 32)]
    assert errors[0] > 8 * errors[1] > 64 * errors[2]
    assert float((model.sample(20, 0, FlowSampler()) - exact).norm()) < 1e-4
    assert model.evaluations(FlowSampler()) is None
    assert model.evaluations(FlowSampler(method="heun", steps=8)) == 16
    assert model.settled(FlowSampler(rtol=1e-3)).model_dump(include={"method", "steps", "rtol", "atol"}) == {
        "method": "dopri5",
        "steps": None,
        "rtol": 1e-3,
        "atol": 1e-6,  # as scores are solved
    }
    assert model.settled(FlowSampler(method="rk4")).steps == 16


def test_samples_of_equal_steps_do_not_depend_on_the_batch() -> None:
    model = flow(test_solver=RK4).eval()
    one, many = (model.sample(20, 0, FlowSampler(batch_size=size)) for size in (20, 3))
    torch.testing.assert_close(one, many, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.sample(4, 0, FlowSampler(), first=8), one[8:12], rtol=0, atol=1e-6)


def test_latents_lead_back_to_the_data() -> None:
    model = flow().eval()
    x = PINWHEEL.sample(50, 0)
    torch.testing.assert_close(model.decode_latents(model.encode(x)), x, rtol=0, atol=1e-4)
    between = model.interpolate(x[:5], x[5:10], (0.0, 0.5, 1.0))
    torch.testing.assert_close(between[0], x[:5], rtol=0, atol=1e-4)
    torch.testing.assert_close(between[2], x[5:10], rtol=0, atol=1e-4)


def test_pictures_are_learnt_with_an_estimated_trace() -> None:
    model = flow((1, 8, 8), solver=RK4, test_solver=RK4, kinetic=0.01, frobenius=0.01)
    images = torch.randint(256, (16, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)) // 4 + 96
    batch = {"image": images}
    model.begin(batch)
    optimizer, losses = torch.optim.Adam(model.parameters(), 1e-2), []
    for step in range(30):
        output = model.loss("flow", batch, context(16, step))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(float(output.metrics["bits_per_dim"]))
    assert output.metrics["evaluations"] == 16
    assert losses[-1] < losses[0] - 0.2
    assert losses[-1] > 6  # the entropy of the grey values
    scores = model.eval().evaluate(batch, context(16))
    assert float(scores["bits_per_dim"][0].detach() / 16) == pytest.approx(losses[-1], abs=0.3)
    assert torch.isfinite(model.sample(2, 0, FlowSampler())).all()


@pytest.mark.parametrize(
    ("model", "sampler", "message"),
    [
        ({"kind": "continuous"}, {"steps": 4}, "steps=4 has no effect with method=dopri5"),
        ({"kind": "continuous"}, {"method": "rk4", "rtol": 1e-3}, "rtol=0.001 has no effect with method=rk4"),
        ({"kind": "glow"}, {"method": "rk4"}, "sampler.method=rk4: the inverse of a flow of kind glow is exact"),
    ],
)
def test_options_that_do_not_fit_are_refused(model: dict[str, object], sampler: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Flow(Flow.Config.parse({"shape": (2,), "network": model}, "test")).settled(FlowSampler.parse(sampler, "test"))


@pytest.mark.parametrize("density", [RING, PINWHEEL])
def test_entropies_are_those_of_samples(density: Petals) -> None:
    """The known densities that continuous flows are measured by."""
    nats = -density.log_prob(density.sample(50_000, 0))
    assert abs(float(nats.mean()) - density.entropy()) < 3 * float(nats.std()) / 50_000**0.5
