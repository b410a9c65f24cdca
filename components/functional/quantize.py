"""Vector quantization: nearest codes, the straight-through estimator, its losses and the moving-average codebook.

van den Oord, Vinyals and Kavukcuoglu 2017, "Neural Discrete Representation Learning", arXiv 1711.00937. Vectors are rows: `z` is (N, D),
a codebook `e` is (K, D), codes are (N,) int64. Everything is computed in float32 or wider, under autocast too.
"""

from __future__ import annotations

import torch
from torch import Tensor


def nearest_codes(z: Tensor, codebook: Tensor) -> Tensor:
    """The row of `codebook` (K, D) nearest to each row of `z` (N, D), as (N,) int64; a tie goes to the lowest row. Eq. 1."""
    with torch.autocast(z.device.type, enabled=False):
        z, codebook = _wide(z.detach()), _wide(codebook.detach())
        # an offset common to all would eat the digits that tell near codes apart
        centre = codebook.mean(dim=0)
        z, codebook = z - centre, codebook - centre
        # ||z - e||^2 without ||z||^2, which is the same for every code
        distances = torch.addmm(codebook.square().sum(1), z, codebook.t(), alpha=-2)
        return distances.argmin(dim=1)


def straight_through(z: Tensor, quantized: Tensor) -> Tensor:
    """The value of `quantized` with the gradient of the identity with respect to `z`; shapes are equal. Section 3.2."""
    return z + (quantized - z).detach()


def commitment_loss(z: Tensor, quantized: Tensor) -> Tensor:
    """mean ||z - sg[e]||^2, which moves encoder outputs towards their codes; the third term of eq. 3 without its factor beta."""
    return (_wide(z) - _wide(quantized).detach()).square().mean()


def codebook_loss(z: Tensor, quantized: Tensor) -> Tensor:
    """mean ||sg[z] - e||^2, which moves codes towards their members; the second term of eq. 3, for a codebook of parameters."""
    return (_wide(z).detach() - _wide(quantized)).square().mean()


def code_statistics(z: Tensor, codes: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """How many rows of `z` (N, D) each code has, (K,), and their sum, (K, D); both add up over micro-batches and workers."""
    with torch.autocast(z.device.type, enabled=False):
        z = _wide(z.detach())
        # one product instead of index_add, whose order of additions is not fixed on GPUs
        members = torch.nn.functional.one_hot(codes, num_codes).to(z.dtype)
        return members.sum(0), members.t() @ z


def move_averages(count: Tensor, total: Tensor, new_count: Tensor, new_total: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """N <- g N + (1-g) n and m <- g m + (1-g) sum z: eqs. 6 and 7 of appendix A.1. Shapes (K,) and (K, D)."""
    return torch.lerp(new_count, count, decay), torch.lerp(new_total, total, decay)


def codebook_of(count: Tensor, total: Tensor, eps: float = 1e-8) -> Tensor:
    """e = m / N~ (K, D) with N~ = (N + eps) / (sum N + K eps) * sum N, so that an empty code divides by no zero. Eq. 8, smoothed."""
    mass = count.sum()
    smoothed = (count + eps) / (mass + count.numel() * eps) * mass
    return total / smoothed[:, None]


def is_first_of_kind(points: Tensor, new: Tensor, tolerance: float = 1e-3) -> Tensor:
    """Which of `points` (K, D) lie apart from every point that is not `new` (K,) bool and every new one before them; (K,) bool.

    Two codes that differ by rounding alone would share their members by rounding alone, otherwise on every number of workers.
    """
    gap = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    before = torch.ones_like(gap, dtype=torch.bool).tril(-1)
    others = (before | ~new) & ~torch.eye(len(points), dtype=torch.bool, device=points.device)
    return ~((gap <= tolerance * points.norm(dim=1).mean()) & others).any(dim=1)


def perplexity(count: Tensor) -> Tensor:
    """exp of the entropy of the code frequencies behind `count` (K,): how many codes are in even use, between 1 and K; a scalar."""
    frequency = count / count.sum()
    return torch.special.entr(frequency).sum().exp()


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
