"""Likelihoods along exact flows beside the densities themselves; estimates of divergences; bits of uniform data."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from components.errors import UserError
from components.functional.likelihood import bits_per_dim, dequantized, log_likelihood
from components.functional.noise_schedules import Schedule, StraightLine, SubVariancePreserving, VarianceExploding, VariancePreserving
from components.functional.oracles import GaussianOracle, MixtureOracle
from components.functional.predictions import Denoiser, noise_of

TIGHT = {"rtol": 1e-7, "atol": 1e-7}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def a_gaussian(schedule: Schedule) -> GaussianOracle:
    return GaussianOracle(torch.tensor([[0.3, -0.2], [0.1, 0.9]]), torch.tensor([[0.4, 0.2], [0.9, 0.5]]), schedule)


def test_a_gaussian_on_the_straight_line_has_its_own_density() -> None:
    oracle = a_gaussian(StraightLine())
    x = oracle.sample(20, seeded())
    nats = log_likelihood(oracle.denoiser("velocity"), x, divergence="exact", **TIGHT)
    expected = stats.norm.logpdf(x.numpy(), oracle.mean.numpy(), oracle.std.numpy()).sum((1, 2))
    assert nats.dtype == torch.float64
    assert nats.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "schedule", [VariancePreserving(), SubVariancePreserving(), VarianceExploding(sigma_max=5.0)], ids=["vp", "subvp", "ve"]
)
def test_a_gaussian_has_the_density_that_its_flow_makes_of_the_prior(schedule: Schedule) -> None:
    """The flow of a Gaussian is affine, so the density is known: that of the prior at its end, times how much it stretches."""
    oracle, ends = a_gaussian(schedule), torch.tensor([schedule.start, 1.0], dtype=torch.float64)
    x = oracle.sample(20, seeded())
    arrived = oracle.flow(x, ends[0], ends[1])
    alpha, sigma = schedule.alpha(ends), schedule.sigma(ends)
    first, last = (alpha[i].square() * oracle.std.square() + sigma[i].square() for i in (0, 1))
    stretch = (last / first).log().sum() / 2
    expected = stats.norm.logpdf(arrived.numpy(), 0, float(sigma[1])).sum((1, 2)) + float(stretch)
    nats = log_likelihood(oracle.denoiser("eps"), x, divergence="exact", **TIGHT)
    assert nats.tolist() == pytest.approx(expected, abs=1e-4)


def test_a_mixture_has_its_own_density() -> None:
    centres = torch.tensor([[-1.0, 0.5], [1.0, -0.2], [0.0, 0.0]])
    oracle = MixtureOracle(centres, torch.tensor([0.2, 0.4, 0.3]), torch.tensor([1.0, 2.0, 1.0]), StraightLine())
    x = oracle.sample(30, seeded())
    nats = log_likelihood(oracle.denoiser("velocity"), x, divergence="exact", **TIGHT)
    torch.testing.assert_close(nats, oracle.log_density(x, torch.tensor(0.0)), rtol=0, atol=1e-4)


def test_signs_are_exact_for_a_field_without_mixed_derivatives() -> None:
    oracle = a_gaussian(VariancePreserving())
    x = oracle.sample(20, seeded())
    exact = log_likelihood(oracle.denoiser("eps"), x, divergence="exact", **TIGHT)
    estimated = log_likelihood(oracle.denoiser("eps"), x, noise=noise_of(seeded()), **TIGHT)
    torch.testing.assert_close(estimated, exact, rtol=0, atol=1e-5)


def test_estimates_are_right_on_average() -> None:
    """4,000 estimates for one row of a field whose derivatives mix."""
    mix = torch.randn(3, 3, generator=seeded(1), dtype=torch.float64) / 2
    denoiser = Denoiser(lambda x, t: (x @ mix.T).tanh(), "velocity", StraightLine())
    row = torch.tensor([[0.3, -0.5, 0.8]], dtype=torch.float64)
    exact = log_likelihood(denoiser, row, divergence="exact")
    estimates = log_likelihood(denoiser, row.expand(4000, 3), noise=noise_of(seeded()))
    error = float(estimates.mean() - exact)
    assert float(estimates.std()) > 0.01
    assert abs(error) < 3 * float(estimates.std()) / math.sqrt(4000)


def test_noise_is_drawn_once_for_a_solution() -> None:
    calls: list[torch.Tensor] = []

    def noise(x: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        return torch.randn(x.shape, generator=seeded(), dtype=x.dtype)

    oracle = a_gaussian(StraightLine())
    log_likelihood(oracle.denoiser("velocity"), oracle.sample(2, seeded()), noise=noise)
    assert len(calls) == 1


def test_float32_networks_in_inference_mode_gather_no_gradients() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.SiLU(), torch.nn.Linear(8, 4))
    denoiser = Denoiser(lambda x, t: network(x), "velocity", StraightLine())
    with torch.inference_mode():
        x = torch.randn(5, 4, generator=seeded())
        inside = log_likelihood(denoiser, x, divergence="exact")
    outside = log_likelihood(denoiser, x.clone(), divergence="exact")
    assert torch.equal(inside, outside)
    assert not outside.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_uniform_density_needs_8_bits() -> None:
    for dims in (1, 3, 784, 3072):
        nats = torch.full((2,), -dims * math.log(2), dtype=torch.float64)
        assert bits_per_dim(nats, dims).tolist() == [8.0, 8.0]


def test_bits_count_a_density_on_0_to_1_with_its_scale() -> None:
    """(nll / D + ln 256) / ln 2 for data in [0, 1]; in [-1, 1] each density is half as high."""
    nats, dims = torch.tensor([1234.5]), 784
    in_unit = nats + dims * math.log(2)
    assert float(bits_per_dim(nats, dims)) == pytest.approx(float((-in_unit / dims + math.log(256)) / math.log(2)), rel=1e-6)


def test_dequantized_values_fill_their_own_width() -> None:
    values = torch.tensor([0, 1, 128, 255], dtype=torch.uint8)
    low, high = dequantized(values, torch.zeros(4)), dequantized(values, torch.full((4,), 1 - 2**-24))
    assert low.tolist() == [-1.0, -1 + 1 / 128, 0.0, 1 - 1 / 128]
    assert (high - low).tolist() == pytest.approx([1 / 128] * 4, rel=1e-4)
    assert high.max() <= 1


def test_what_is_refused() -> None:
    denoiser, x = a_gaussian(StraightLine()).denoiser("velocity"), torch.zeros(1, 2, 2)
    with pytest.raises(UserError, match="choose exact or hutchinson"):
        log_likelihood(denoiser, x, divergence="trace")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^rtol"):
        log_likelihood(denoiser, x, divergence="exact", rtol=0)
