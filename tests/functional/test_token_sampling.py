"""Filters beside those of transformers, guidance and draws beside their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import TopKLogitsWarper, TopPLogitsWarper

from components.functional.token_sampling import draw, guide, keep_top_k, keep_top_p

NONE = torch.empty(0, dtype=torch.long)


@pytest.fixture
def logits() -> torch.Tensor:
    return 2 * torch.randn(50, 40, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("count", [1, 5, 40])
def test_top_k_equals_transformers(logits: torch.Tensor, count: int) -> None:
    assert torch.equal(keep_top_k(logits, count), TopKLogitsWarper(count)(NONE, logits))


@pytest.mark.parametrize("mass", [0.01, 0.3, 0.9, 0.999])
def test_top_p_equals_transformers(logits: torch.Tensor, mass: float) -> None:
    assert torch.equal(keep_top_p(logits, mass), TopPLogitsWarper(mass)(NONE, logits))


def test_top_p_keeps_the_token_that_crosses() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.4]]).log()
    assert keep_top_p(logits, 0.6).exp().tolist()[0] == pytest.approx([0.0, 0.5, 0.4])


@pytest.mark.parametrize(("count", "mass"), [(3, 1.0), (40, 0.5), (10, 0.8)])
def test_filtered_probabilities_keep_their_ratios_and_sum_to_one(logits: torch.Tensor, count: int, mass: float) -> None:
    whole = logits.softmax(-1)
    kept = keep_top_p(keep_top_k(logits, count), mass).softmax(-1)
    assert torch.allclose(kept.sum(-1), torch.ones(50))
    inside = kept > 0
    expected = (whole * inside) / (whole * inside).sum(-1, keepdim=True)
    assert torch.allclose(kept, expected, atol=1e-6)


def test_everything_kept_leaves_the_distribution(logits: torch.Tensor) -> None:
    assert torch.equal(keep_top_k(logits, 40), logits)
    assert torch.equal(keep_top_p(logits, 1.0), logits)


def test_top_one_is_greedy_for_any_draw(logits: torch.Tensor) -> None:
    greedy = logits.argmax(-1)
    for uniform in (0.0, 0.5, 1 - 2**-24):
        assert torch.equal(draw(keep_top_k(logits, 1), torch.full((50,), uniform)), greedy)


def test_guidance_is_linear_between_and_beyond_its_ends(logits: torch.Tensor) -> None:
    conditional, unconditional = logits[:25], logits[25:]
    assert torch.equal(guide(conditional, unconditional, 0.0), unconditional)
    assert torch.allclose(guide(conditional, unconditional, 1.0), conditional, atol=1e-6)
    for scale in (0.5, 2.0, 3.5):
        expected = unconditional.double() + scale * (conditional.double() - unconditional.double())
        assert torch.allclose(guide(conditional, unconditional, scale).double(), expected, atol=1e-5)


def test_draw_inverts_the_cumulative_sum() -> None:
    logits = torch.tensor([0.2, 0.0, 0.5, 0.3]).log().expand(6, 4)
    assert draw(logits, torch.tensor([0.0, 0.1999, 0.2001, 0.6999, 0.7001, 1 - 2**-24])).tolist() == [0, 0, 2, 2, 3, 3]


def test_draw_never_gives_a_token_without_probability() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = keep_top_k(4 * torch.randn(2000, 64, generator=generator), 7)
    for uniform in (0.0, 1 - 2**-24):
        drawn = draw(logits, torch.full((2000,), uniform))
        assert torch.isfinite(logits.gather(1, drawn[:, None])).all()


def test_draws_follow_the_distribution(logits: torch.Tensor) -> None:
    count = 20_000
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(5))
    drawn = draw(logits[:1].expand(count, -1), uniform)
    expected = logits[0].double().softmax(-1).numpy() * count
    common = expected >= 5
    observed = np.bincount(drawn.numpy(), minlength=40)
    pairs = np.append(observed[common], observed[~common].sum()), np.append(expected[common], expected[~common].sum())
    assert stats.chisquare(*pairs).pvalue > 1e-3
