"""Attention beside torch's own modules: whole sequences, causality, the cache."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from components.functional.attention import cached_attention, causal_attention

ROWS, LENGTH, HEADS, WIDTH = 3, 7, 4, 16


@pytest.fixture
def projected() -> torch.Tensor:
    return torch.randn(ROWS, LENGTH, 3 * WIDTH, generator=torch.Generator().manual_seed(0))


def test_equals_the_formula_head_by_head(projected: torch.Tensor) -> None:
    queries, keys, values = projected.double().split(WIDTH, dim=-1)
    outputs = []
    for head in torch.arange(WIDTH).split(WIDTH // HEADS):
        scores = queries[..., head] @ keys[..., head].transpose(1, 2) / (WIDTH / HEADS) ** 0.5
        hidden = torch.ones(LENGTH, LENGTH).triu(1).bool()
        outputs.append(scores.masked_fill(hidden, -torch.inf).softmax(-1) @ values[..., head])
    assert torch.allclose(causal_attention(projected, HEADS).double(), torch.cat(outputs, -1), atol=1e-6)


def test_equals_multihead_attention() -> None:
    torch.manual_seed(1)
    theirs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    nn.init.normal_(theirs.in_proj_bias)
    x = torch.randn(ROWS, LENGTH, WIDTH)
    mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
    expected, _ = theirs(x, x, x, attn_mask=mask, need_weights=False)
    ours = theirs.out_proj(causal_attention(F.linear(x, theirs.in_proj_weight, theirs.in_proj_bias), HEADS))
    assert torch.allclose(ours, expected, atol=1e-6)


def test_step_by_step_equals_at_once(projected: torch.Tensor) -> None:
    cache = torch.full((2, ROWS, HEADS, LENGTH, WIDTH // HEADS), torch.nan)  # what is not written yet must not be read
    steps = [cached_attention(projected[:, i], cache, i) for i in range(LENGTH)]
    assert torch.allclose(torch.stack(steps, 1), causal_attention(projected, HEADS), atol=1e-6)


def test_later_positions_change_no_bit_of_earlier_ones(projected: torch.Tensor) -> None:
    before = causal_attention(projected, HEADS)
    changed = projected.clone()
    changed[:, 4] += 1
    after = causal_attention(changed, HEADS)
    assert torch.equal(before[:, :4], after[:, :4])
    assert (before[:, 4:] != after[:, 4:]).any(-1).all()
