"""A codebook as a layer: vectors in, their nearest codes out. The formulas are in `components/functional/quantize.py`."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from components.functional.quantize import code_statistics, codebook_of, is_first_of_kind, move_averages, nearest_codes


class Quantizer(nn.Module):
    """`num_codes` vectors of `code_dim` channels. Subclasses say how the vectors in `codebook` (K, D) come to change."""

    codebook: Tensor

    def __init__(self, num_codes: int, code_dim: int) -> None:
        super().__init__()
        self.num_codes, self.code_dim = num_codes, code_dim

    def codes(self, vectors: Tensor) -> Tensor:
        """The nearest code of each vector: (B, D, h, w) to (B, h, w) int64."""
        batch, _, height, width = vectors.shape
        return nearest_codes(rows_of_vectors(vectors), self.codebook).view(batch, height, width)

    def look_up(self, codes: Tensor) -> Tensor:
        """The vectors of codes: (B, h, w) to (B, D, h, w)."""
        return rearrange(nn.functional.embedding(codes, self.codebook), "b h w d -> b d h w")


class LearnedQuantizer(Quantizer):
    """The codebook is a parameter, trained by gradients."""

    def __init__(self, num_codes: int, code_dim: int) -> None:
        super().__init__(num_codes, code_dim)
        self.codebook = nn.Parameter(torch.empty(num_codes, code_dim).uniform_(-1 / num_codes, 1 / num_codes))


class AveragingQuantizer(Quantizer):
    """The codebook is made of moving averages of the members' counts N (K,) and sums m (K, D), in buffers; codes that die are revived.

    Both are kept per vector of the batch, so that N adds up to about 1 and nothing depends on the size of the batch. All start at zero:
    after the first step every code but one is dead and is revived from that step's vectors, which is the initialisation.
    """

    count: Tensor
    total: Tensor

    def __init__(self, num_codes: int, code_dim: int, decay: float, revive_below: float) -> None:
        super().__init__(num_codes, code_dim)
        self.decay, self.revive_below = decay, revive_below
        self.register_buffer("codebook", torch.zeros(num_codes, code_dim))
        self.register_buffer("count", torch.zeros(num_codes))
        self.register_buffer("total", torch.zeros(num_codes, code_dim))

    def statistics(self, vectors: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """Counts (K,) and sums (K, D) of the members of (B, D, h, w) vectors; they add up over micro-batches and workers."""
        count, total = code_statistics(rows_of_vectors(vectors), codes.flatten(), self.num_codes)
        return {"code_count": count, "code_total": total}

    @torch.no_grad()
    def update(self, count: Tensor, total: Tensor, candidates: Tensor) -> None:
        """One step of the averages from the whole batch's statistics; dead codes become `candidates` (K, D).

        A code is dead when its average count is below `revive_below` of an even share. Its totals are reset too: its stale average
        would overwrite it at the next step. A candidate that another code equals would win no vectors and is passed over.
        """
        vectors = count.sum()
        new_count, new_total = move_averages(self.count, self.total, count / vectors, total / vectors, self.decay)
        even = 1 / self.num_codes
        dead = new_count < self.revive_below * even
        if dead.any():
            revived = dead & is_first_of_kind(torch.where(dead[:, None], candidates, codebook_of(new_count, new_total)), dead)
            new_count = torch.where(revived, even, new_count)
            new_total = torch.where(revived[:, None], candidates * even, new_total)
        self.count.copy_(new_count)
        self.total.copy_(new_total)
        self.codebook.copy_(codebook_of(new_count, new_total))


def rows_of_vectors(vectors: Tensor) -> Tensor:
    """(B, D, h, w) to (B h w, D), row-major."""
    return rearrange(vectors, "b d h w -> (b h w) d")
