"""Check V5 of the moving-average codebook against vector-quantize-pytorch, and the revival of codes that died."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize

from components.networks.quantizer import AveragingQuantizer

K, D = 16, 4


def vectors(seed: int = 0, batch: int = 3) -> Tensor:
    return torch.randn(batch, D, 5, 6, generator=torch.Generator().manual_seed(seed))


def quantizer(revive_below: float = 0.0, decay: float = 0.8) -> AveragingQuantizer:
    """Its codes at known places, each with an even use behind it."""
    layer = AveragingQuantizer(K, D, decay, revive_below)
    layer.codebook.copy_(torch.randn(K, D, generator=torch.Generator().manual_seed(9)))
    layer.count.fill_(1 / K)
    layer.total.copy_(layer.codebook / K)
    return layer


def step(layer: AveragingQuantizer, z: Tensor, candidates: Tensor | None = None) -> None:
    stats = layer.statistics(z, layer.codes(z))
    layer.update(stats["code_count"], stats["code_total"], torch.zeros(K, D) if candidates is None else candidates)


def test_v5_one_update_equals_vector_quantize_pytorch() -> None:
    ours, z = quantizer(), vectors()
    peer = VectorQuantize(dim=D, codebook_size=K, decay=0.8, eps=1e-8, threshold_ema_dead_code=0).train()
    book = peer._codebook
    # its counts are of vectors and ours are per vector: its state N = 1, m = e is ours at K vectors
    book.embed.copy_(ours.codebook[None])
    book.embed_avg.copy_(ours.codebook[None])
    book.cluster_size.fill_(1.0)
    rows = rearrange(z, "b d h w -> b (h w) d")
    _, codes, _ = peer(rows)
    mine = ours.codes(z)
    assert torch.equal(mine.flatten(1), codes)
    stats = ours.statistics(z, mine)
    ours.count.fill_(1 / rows[..., 0].numel())
    ours.total.copy_(ours.codebook / rows[..., 0].numel())
    ours.update(stats["code_count"], stats["code_total"], torch.zeros(K, D))
    torch.testing.assert_close(ours.codebook, book.embed[0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours.count * rows[..., 0].numel(), book.cluster_size[0], atol=1e-5, rtol=0)


def test_statistics_of_parts_add_up() -> None:
    layer, z = quantizer(), vectors(batch=4)
    whole = layer.statistics(z, layer.codes(z))
    parts = [layer.statistics(part, layer.codes(part)) for part in z.split([1, 3])]
    for name, value in whole.items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], value, atol=1e-5, rtol=0)


def test_a_dead_code_starts_anew_and_stays_where_it_was_put() -> None:
    layer, z = quantizer(revive_below=0.5), vectors()
    layer.codebook[5] = 100.0  # no vector is near
    layer.count[5], layer.total[5] = 0.01 / K, 1.0 / K
    candidate = 0.5 * torch.ones(K, D)
    candidate[5] = z[0, :, 2, 3]
    step(layer, z, candidate)
    torch.testing.assert_close(layer.codebook[5], candidate[5], atol=1e-5, rtol=0)
    assert layer.count[5].item() == 1 / K  # an old total would drag it back at the next step
    step(layer, z, candidate)
    assert (layer.codebook[5] - candidate[5]).norm() < 1.0
    assert (layer.codes(z) == 5).any()


def test_codes_in_use_are_not_revived() -> None:
    left, right, z = quantizer(revive_below=0.0), quantizer(revive_below=1e-6), vectors()
    for layer in (left, right):
        step(layer, z, torch.ones(K, D))
    assert torch.equal(left.codebook, right.codebook)


def test_the_first_step_initialises_every_code_from_vectors() -> None:
    layer, z = AveragingQuantizer(K, D, 0.99, 0.05), vectors()
    candidates = rearrange(z, "b d h w -> (b h w) d")[:K]
    step(layer, z, candidates)
    torch.testing.assert_close(layer.codebook[1:], candidates[1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(layer.codebook[0], z.mean(dim=(0, 2, 3)), atol=1e-5, rtol=0)


def test_equal_candidates_make_one_code() -> None:
    layer, z = AveragingQuantizer(K, D, 0.99, 0.05), vectors()
    step(layer, z, torch.ones(K, D))
    assert (layer.codebook == 1).all(dim=1).sum() <= 1 + int((layer.codebook[0] == 1).all())
    assert torch.isfinite(layer.codebook).all()


def test_look_up_is_the_inverse_of_codes() -> None:
    layer = quantizer()
    codes = torch.randint(K, (2, 3, 5), generator=torch.Generator().manual_seed(0))
    assert layer.look_up(codes).shape == (2, D, 3, 5)
    assert torch.equal(layer.codes(layer.look_up(codes)), codes)
