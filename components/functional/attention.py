"""Scaled dot-product attention of many heads (Vaswani et al. 2017, arXiv 1706.03762, section 3.2), whole sequences and one cached step."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def causal_attention(queries_keys_values: Tensor, heads: int) -> Tensor:
    """Every position attends to itself and to what is before it.

    `queries_keys_values` is (B, L, 3 * W): queries, keys and values of all heads side by side, head h in columns h * W / heads and on.
    Returns (B, L, W), heads side by side. softmax(Q K^T / sqrt(W / heads)) V, eq. 1.
    """
    rows, length, width = queries_keys_values.shape
    split = queries_keys_values.view(rows, length, 3, heads, width // (3 * heads))
    queries, keys, values = split.permute(2, 0, 3, 1, 4)  # (B, heads, L, W / heads) each
    attended = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    return attended.transpose(1, 2).reshape(rows, length, width // 3)


def cached_attention(queries_keys_values: Tensor, cache: Tensor, position: int) -> Tensor:
    """One position of `causal_attention`: writes its keys and values into `cache` in place and attends to all places up to it.

    `queries_keys_values` is (B, 3 * W), `cache` is (2, B, heads, L, W / heads): keys, then values. Returns (B, W).
    No causal flag here: with one query and many keys it would hide all keys but the first.
    """
    _, rows, heads, _, size = cache.shape
    split = queries_keys_values.view(rows, 3, heads, size)
    cache[:, :, :, position] = split[:, 1:].transpose(0, 1)
    seen = cache[:, :, :, : position + 1]
    return F.scaled_dot_product_attention(split[:, 0].unsqueeze(2), seen[0], seen[1]).reshape(rows, heads * size)
