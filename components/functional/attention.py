"""Scaled dot-product attention of many heads (Vaswani et al. 2017, arXiv 1706.03762, section 3.2), whole sequences and one cached step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_attention(queries_keys_values: Tensor, heads: int) -> Tensor:
    """Every position attends to itself and to what is before it; else as `self_attention`."""
    return _attention(queries_keys_values, heads, causal=True)


def self_attention(queries_keys_values: Tensor, heads: int) -> Tensor:
    """Every position attends to all.

    `queries_keys_values` is (B, L, 3 * W): queries, keys and values of all heads side by side, head h in columns h * W / heads and on.
    Returns (B, L, W), heads side by side. softmax(Q K^T / sqrt(W / heads)) V, eq. 1.
    """
    return _attention(queries_keys_values, heads, causal=False)


def _attention(queries_keys_values: Tensor, heads: int, causal: bool) -> Tensor:
    rows, length, width = queries_keys_values.shape
    with _precision(queries_keys_values) as dtype:
        split = queries_keys_values.to(dtype).view(rows, length, 3, heads, width // (3 * heads))
        queries, keys, values = split.permute(2, 0, 3, 1, 4)  # (B, heads, L, W / heads) each
        attended = F.scaled_dot_product_attention(queries, keys, values, is_causal=causal)
    return attended.transpose(1, 2).reshape(rows, length, width // 3).to(queries_keys_values.dtype)


@contextmanager
def _precision(x: Tensor) -> Iterator[torch.dtype]:
    """float32 for bfloat16 on a CPU, where the backward of the fused kernel takes seven times as long in bfloat16; else unchanged."""
    if x.device.type == "cpu" and x.dtype == torch.bfloat16:
        with torch.autocast("cpu", enabled=False):
            yield torch.float32
    else:
        yield x.dtype


def cached_attention(queries_keys_values: Tensor, cache: Tensor, position: int) -> Tensor:
    """One position of `causal_attention`: writes its keys and values into `cache` in place and attends to all places up to it.

    `queries_keys_values` is (B, 3 * W), `cache` is (2, B, heads, L, W / heads): keys, then values. Returns (B, W).
    """
    _, rows, heads, _, size = cache.shape
    split = queries_keys_values.view(rows, 3, heads, size)
    cache.select(3, position).copy_(split[:, 1:].transpose(0, 1))
    keys, values = cache.view(2, rows * heads, -1, size)[:, :, : position + 1]
    # Two products are faster than the fused kernel for one query: that one is made for many.
    scores = torch.bmm(split[:, 0].reshape(rows * heads, 1, size), keys.transpose(1, 2))
    return torch.bmm(scores.mul_(size**-0.5).softmax(-1), values).view(rows, heads * size)
