"""A decoder-only Transformer in GPT-2's form (Radford et al. 2019): pre-norm blocks, learned positions, head tied to the token embedding.

`forward` reads whole sequences; `step` reads one position with a cache of keys and values. Weights have the shapes of `nn.Linear`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.functional.attention import cached_attention, causal_attention
from components.networks.chain import Chain
from components.networks.dropout import Dropout
from components.training.randomness import Draws

Activation = Literal["gelu_tanh", "gelu", "relu"]

_ACTIVATIONS = {"gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "gelu": F.gelu, "relu": F.relu}
_GPT2_STD, _GPT2_WIDTH = 0.02, 768


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); `name` is unique in the model."""

    def __init__(self, width: int, heads: int, dropout: float, activation: Activation, name: str) -> None:
        super().__init__()
        self.heads = heads
        self.activate = _ACTIVATIONS[activation]
        self.attention_norm = nn.LayerNorm(width)
        self.attention_in = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.attention_dropout = Dropout(dropout, f"{name}.attention")
        self.forward_norm = nn.LayerNorm(width)
        self.forward_in = nn.Linear(width, 4 * width)
        self.forward_out = nn.Linear(4 * width, width)
        self.forward_dropout = Dropout(dropout, f"{name}.forward")

    def forward(self, x: Tensor, random: Draws | None = None) -> Tensor:
        """(B, L, W) -> (B, L, W)."""
        attended = self.attention_out(causal_attention(self.attention_in(self.attention_norm(x)), self.heads))
        x = x + self.attention_dropout(attended, random)
        hidden = self.forward_out(self.activate(self.forward_in(self.forward_norm(x))))
        return x + self.forward_dropout(hidden, random)

    def step(self, x: Tensor, cache: Tensor, position: int) -> Tensor:
        """One position: (B, W) -> (B, W); `cache` (2, B, heads, L, W / heads) takes its keys and values in place."""
        attended = cached_attention(self.attention_in(self.attention_norm(x)), cache, position)
        x = x + self.attention_out(attended)
        return x + self.forward_out(self.activate(self.forward_in(self.forward_norm(x))))


class Transformer(nn.Module):
    """Tokens to hidden states from which `logits` reads the next token."""

    def __init__(
        self, vocabulary: int, length: int, layers: int, heads: int, width: int, dropout: float = 0.0, activation: Activation = "gelu_tanh"
    ) -> None:
        super().__init__()
        self.heads, self.activation = heads, activation
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.position_embedding = nn.Embedding(length, width)
        self.dropout = Dropout(dropout, "embedding")
        self.blocks = Chain(*(Block(width, heads, dropout, activation, f"blocks.{i}") for i in range(layers)))
        self.norm = nn.LayerNorm(width)
        self._initialize()

    @torch.no_grad()
    def _initialize(self) -> None:
        # GPT-2's spread is made for its width: a narrower sum needs larger terms to keep its size.
        std = _GPT2_STD * math.sqrt(_GPT2_WIDTH / self.norm.normalized_shape[0])
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                # Each block adds two branches to the residual sum: their last layers start smaller by sqrt(2 layers) (GPT-2, section 2.3).
                depth = math.sqrt(2 * len(self.blocks)) if name.endswith("_out.weight") else 1.0
                parameter.normal_(0.0, std / depth)
            elif name.endswith("bias"):
                parameter.zero_()

    def forward(self, tokens: Tensor, random: Draws | None = None) -> Tensor:
        """Hidden states (B, L, W) of `tokens` (B, L); state i depends on tokens 0..i only. `random` turns dropout on."""
        x = self.token_embedding(tokens) + self.position_embedding.weight[: tokens.shape[1]]
        x = self.dropout(x, random)
        return self.norm(self.blocks(x, random))

    def logits(self, hidden: Tensor, count: int | None = None) -> Tensor:
        """Scores (..., count) of the first `count` tokens of the vocabulary (all when None) by the tied head, without bias."""
        return F.linear(hidden, self.token_embedding.weight[:count])

    def new_cache(self, rows: int) -> Tensor:
        """Room for the keys and values of `rows` sequences: (layers, 2, rows, heads, L, W / heads)."""
        length, width = self.position_embedding.weight.shape
        return self.position_embedding.weight.new_empty((len(self.blocks), 2, rows, self.heads, length, width // self.heads))

    def step(self, tokens: Tensor, position: int, cache: Tensor) -> Tensor:
        """Hidden state (B, W) of `tokens` (B,) at `position`, equal to `forward`'s; positions 0, 1, ... come in turn, one cache for all."""
        x = self.token_embedding(tokens) + self.position_embedding.weight[position]
        for block, block_cache in zip(self.blocks, cache, strict=True):
            x = block.step(x, block_cache, position)  # type: ignore[operator]
        return self.norm(x)
