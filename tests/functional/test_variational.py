"""Check D7 of the decoder, and the variational bound against divergences taken one by one and the entropy of known data."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from components.errors import UserError
from components.functional.ancestral import Variance
from components.functional.noise_schedules import Discrete, cosine_betas, linear_betas
from components.functional.predictions import Denoiser, Noise, noise_of
from components.functional.timesteps import times_of, times_of_levels
from components.functional.variational import discretized_gaussian_log_likelihood, variational_bound, variational_terms
from tests.functional.exact import SCHEDULES, exact_denoiser, normal, one_point, two_bumps

PIXELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1
VARIANCES: tuple[Variance, ...] = get_args(Variance)


@pytest.mark.parametrize("std", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("mean", [-1.2, -1.0, -0.3, 0.0, 0.501, 1.0, 1.4])
def test_d7_the_decoder_sums_to_one(std: float, mean: float) -> None:
    log_likelihood = discretized_gaussian_log_likelihood(PIXELS, torch.full((256,), mean), std)
    assert log_likelihood.exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_d7_edge_bins_are_open_and_the_others_as_wide_as_a_pixel() -> None:
    got = discretized_gaussian_log_likelihood(PIXELS.float(), torch.tensor(0.2).expand(256), 0.4).exp()
    law = Normal(torch.tensor(0.2, dtype=torch.float64), 0.4)
    assert got[0].item() == pytest.approx(law.cdf(PIXELS[0] + 1 / 255).item(), rel=1e-6)
    assert got[255].item() == pytest.approx(1 - law.cdf(PIXELS[255] - 1 / 255).item(), rel=1e-6)
    torch.testing.assert_close(got[1:-1], law.cdf(PIXELS[1:-1] + 1 / 255) - law.cdf(PIXELS[1:-1] - 1 / 255), rtol=1e-5, atol=1e-9)


def test_d7_far_tails_keep_their_logarithm() -> None:
    """No floor below which all pixels are equally unlikely: 0.01 around -1, seen from 1, is about -200^2 / 2 nats."""
    got = discretized_gaussian_log_likelihood(PIXELS, torch.full((256,), 1.0), 0.01)
    assert torch.isfinite(got).all()
    assert (got[:250].diff() > 0).all()
    assert got[0].item() == pytest.approx(-(((2 - 1 / 255) / 0.01) ** 2) / 2, rel=1e-3)
    mirrored = discretized_gaussian_log_likelihood(PIXELS, torch.full((256,), -1.0), 0.01).flip(0)
    torch.testing.assert_close(got, mirrored, rtol=1e-6, atol=1e-9)


def one_by_one(denoiser: Denoiser, x0: Tensor, noise: Noise, levels: list[int], variance: Variance) -> Tensor:
    """The terms from cumulative products and torch's own divergence, for falling levels."""
    schedule = denoiser.schedule
    assert isinstance(schedule, Discrete)
    kept = torch.cumprod(1 - schedule.betas, 0)
    terms = []
    for place, level in reversed(list(enumerate(levels))):
        x = kept[level].sqrt() * x0 + (1 - kept[level]).sqrt() * noise(x0)
        predicted, _ = denoiser.x0_and_eps(x, schedule.time_of(torch.tensor(level)))
        if place == len(levels) - 1:
            above = levels[place - 1]
            std = ((1 - kept[above] / kept[level]) * (1 - kept[level]) / (1 - kept[above])).sqrt()
            terms.append(-discretized_gaussian_log_likelihood(x0, predicted, std.item()))
            continue
        before = kept[levels[place + 1]]
        beta = 1 - kept[level] / before
        small = beta * (1 - before) / (1 - kept[level])
        true, model = (
            Normal((before.sqrt() * beta * data + (1 - beta).sqrt() * (1 - before) * x) / (1 - kept[level]), width.sqrt())
            for data, width in ((x0, small), (predicted, small if variance == "small" else beta))
        )
        terms.append(kl_divergence(true, model))
    end = kept[levels[0]]
    terms.append(kl_divergence(Normal(end.sqrt() * x0, (1 - end).sqrt()), Normal(torch.zeros_like(x0), 1)))
    return torch.stack([term.flatten(1).sum(1) for term in terms])


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("levels_at_once", [1, 7, 64])
def test_every_term_equals_the_divergence_taken_by_itself(levels_at_once: int, variance: Variance) -> None:
    schedule = Discrete(cosine_betas(30))
    denoiser, x0 = exact_denoiser(schedule, two_bumps, "v"), PIXELS[torch.tensor([[0, 255, 30], [3, 120, 250]])]
    expected = one_by_one(denoiser, x0, noise_of(torch.Generator().manual_seed(2)), list(range(30))[::-1], variance)
    noise = noise_of(torch.Generator().manual_seed(2))
    got = variational_terms(denoiser, x0, noise, variance=variance, levels_at_once=levels_at_once)
    assert got.shape == (31, 2)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("variance", VARIANCES)
def test_a_sub_list_has_its_own_betas(variance: Variance) -> None:
    schedule, levels = Discrete(linear_betas()), [999, 600, 200, 40, 3]
    denoiser, x0 = exact_denoiser(schedule, two_bumps), PIXELS[torch.tensor([[0, 255, 30], [3, 120, 250]])]
    expected = one_by_one(denoiser, x0, noise_of(torch.Generator().manual_seed(2)), levels, variance)
    times = times_of_levels(schedule, torch.tensor(levels))
    got = variational_terms(denoiser, x0, noise_of(torch.Generator().manual_seed(2)), times, variance=variance)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def fine_betas(levels: int) -> Discrete:
    """sigma / alpha from 1e-3, well within a pixel, to 100 in equal ratios; of DDPM's betas the first level is wider than a pixel, and its
    decoder is never sure."""
    kept = 1 / (1 + torch.logspace(-3, 2, levels, dtype=torch.float64).square())
    return Discrete(1 - kept / torch.cat([torch.ones(1), kept[:-1]]))


def test_known_data_cost_nothing_with_the_small_variance() -> None:
    """Where the denoiser knows the data, both Gaussians of a step are the same, and the decoder is sure."""
    schedule, x0 = fine_betas(4000), PIXELS[torch.full((3, 2), 77)]
    terms = variational_terms(exact_denoiser(schedule, one_point(PIXELS[77].item())), x0, noise_of(torch.Generator()), levels_at_once=500)
    assert terms.shape == (4001, 3)
    assert terms[1:-1].abs().max() < 1e-8
    assert terms[0].max() < 1e-6
    assert terms[-1].min() > 0
    assert terms[-1].max() < 1e-3


VALUES, SHARES = PIXELS[torch.tensor([20, 90, 100, 230])], torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)


def four_values(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """E[x_0 | x_t] of data that take VALUES with probabilities SHARES, independently in every place."""
    logits = SHARES.log() - ((x - alpha * VALUES.view(-1, *[1] * x.dim())) / sigma).square().movedim(0, -1) / 2
    return logits.softmax(-1) @ VALUES


def mean_bound(levels: int, variance: Variance) -> float:
    schedule = fine_betas(levels)
    x0 = VALUES.repeat_interleave((SHARES * 1000).long()).view(-1, 1)
    return variational_bound(exact_denoiser(schedule, four_values), x0, noise_of(torch.Generator()), variance=variance).mean().item()


def test_the_bound_of_a_perfect_model_falls_to_the_entropy() -> None:
    """Nothing is below the entropy of the data; more levels bring the bound nearer to it, and a poor model is far above."""
    entropy = -(SHARES * SHARES.log()).sum().item()
    coarse, fine = mean_bound(20, "small"), mean_bound(300, "small")
    assert entropy < fine < coarse
    assert fine < 1.05 * entropy
    assert mean_bound(300, "large") > fine  # the small variance is the right one for data of single values


def test_a_bound_is_the_sum_of_its_terms_in_nats_a_row() -> None:
    schedule = Discrete(linear_betas(100))
    denoiser, x0 = (
        exact_denoiser(schedule, two_bumps),
        PIXELS[torch.randint(256, (3, 1, 4, 4), generator=torch.Generator().manual_seed(0))].float(),
    )
    got = variational_bound(denoiser, x0, noise_of(torch.Generator().manual_seed(0)), levels_at_once=10)
    assert got.shape == (3,)
    assert got.dtype == torch.float64
    terms = variational_terms(denoiser, x0, noise_of(torch.Generator().manual_seed(0)), levels_at_once=25)
    torch.testing.assert_close(got, terms.sum(0), rtol=1e-5, atol=0)
    alone = variational_bound(denoiser, x0[:1], noise_of(torch.Generator().manual_seed(0)))
    assert alone.item() != got[0].item()  # other numbers are drawn for it, and the bound is an estimate
    assert alone.item() == pytest.approx(got[0].item(), rel=0.2)


def test_the_prior_is_normal() -> None:
    """Pure noise at the end costs nothing; a list that starts at weaker noise pays for what is left of the data."""
    denoiser, x0 = exact_denoiser(SCHEDULES["VP"], two_bumps), torch.ones(1, 5, dtype=torch.float64)
    prior = {}
    for start in (1.0, 0.3):
        times = torch.tensor([start, 0.1, 0.01, 0.0])
        prior[start] = variational_terms(denoiser, x0, noise_of(torch.Generator()), times)[-1].item()
        alpha = SCHEDULES["VP"].alpha(torch.tensor(start, dtype=torch.float64)).item()
        assert prior[start] == pytest.approx(5 / 2 * (-(alpha**2) - math.log1p(-(alpha**2)) + alpha**2), rel=1e-6)
    assert prior[1.0] < 1e-3 < prior[0.3]


def test_bad_input() -> None:
    x0, noise = torch.zeros(2, 3), normal(2, 3)
    with pytest.raises(UserError, match="wants a list of times"):
        variational_bound(exact_denoiser(SCHEDULES["VP"], two_bumps), x0, lambda x: noise)
    with pytest.raises(UserError, match=r"ends at time 0, not at 0\.1"):
        variational_bound(exact_denoiser(SCHEDULES["VP"], two_bumps), x0, lambda x: noise, torch.tensor([1.0, 0.1]))
    times = times_of(SCHEDULES["VE"], "uniform", 10)
    with pytest.raises(UserError, match=r"alpha\^2 \+ sigma\^2 = 1"):
        variational_bound(exact_denoiser(SCHEDULES["VE"], two_bumps), x0, lambda x: noise, times)
