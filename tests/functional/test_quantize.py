"""Checks V1 to V4 of vector quantization against brute force and closed forms, and the rule that keeps revived codes apart."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from components.functional.quantize import (
    code_statistics,
    codebook_loss,
    codebook_of,
    commitment_loss,
    is_first_of_kind,
    move_averages,
    nearest_codes,
    perplexity,
    straight_through,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def brute_force(z: Tensor, codebook: Tensor) -> Tensor:
    return torch.stack([(row - codebook.double()).square().sum(1).argmin() for row in z.double()])


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_v1_indices_equal_brute_force_in_float64(offset: float) -> None:
    z, codebook = normal(20_000, 16) + offset, normal(256, 16, seed=1) + offset
    assert torch.equal(nearest_codes(z, codebook), brute_force(z, codebook))


def test_v1_a_tie_goes_to_the_lowest_index() -> None:
    codebook = normal(256, 16)
    codebook[[40, 200]] = codebook[3].clone()
    assert nearest_codes(codebook, codebook)[[3, 40, 200]].tolist() == [3, 3, 3]
    assert nearest_codes(normal(50, 4), torch.zeros(7, 4)).tolist() == [0] * 50


def test_v1_half_precision_is_left_outside() -> None:
    z, codebook = normal(2000, 16) + 10, normal(256, 16, seed=1) + 10
    with torch.autocast("cpu", torch.bfloat16):
        codes = nearest_codes(z, codebook)
        count, total = code_statistics(z, codes, 256)
    assert torch.equal(codes, brute_force(z, codebook))
    assert torch.equal(total, code_statistics(z, codes, 256)[1])
    assert count.dtype == total.dtype == torch.float32


def test_v2_straight_through_has_the_identitys_gradient_and_the_codes_value() -> None:
    z, quantized, u = normal(64, 8).requires_grad_(), normal(64, 8, seed=1), normal(64, 8, seed=2)
    out = straight_through(z, quantized)
    (gradient,) = torch.autograd.grad((out * u).sum(), z)
    assert torch.equal(gradient, u)
    torch.testing.assert_close(out.detach(), quantized, atol=1e-6, rtol=0)


def test_v3_gradients_of_both_losses() -> None:
    beta, z, codebook = 0.25, normal(200, 8).requires_grad_(), normal(16, 8, seed=1).requires_grad_()
    codes = nearest_codes(z, codebook)
    loss = codebook_loss(z, codebook[codes]) + beta * commitment_loss(z, codebook[codes])
    dz, de = torch.autograd.grad(loss, (z, codebook))
    difference = (z - codebook[codes]).detach()
    expected = torch.stack([(-2 * difference[codes == k]).sum(0) / difference.numel() for k in range(16)])
    torch.testing.assert_close(dz, 2 * beta * difference / difference.numel(), atol=1e-7, rtol=0)
    torch.testing.assert_close(de, expected, atol=1e-7, rtol=0)


def test_v4_averages_of_a_constant_assignment_follow_the_closed_form() -> None:
    decay, steps = 0.9, 25
    first, n = normal(5).abs(), normal(5, seed=1).abs()
    first_total, total = normal(5, 3, seed=2), normal(5, 3, seed=3)
    count, sums = first, first_total
    for _ in range(steps):
        count, sums = move_averages(count, sums, n, total, decay)
    left = decay**steps
    torch.testing.assert_close(count, left * first + (1 - left) * n, atol=1e-6, rtol=0)
    torch.testing.assert_close(sums, left * first_total + (1 - left) * total, atol=1e-6, rtol=0)


def test_statistics_count_and_sum_the_members() -> None:
    z, codes = normal(300, 4), torch.randint(9, (300,), generator=torch.Generator().manual_seed(0))
    count, total = code_statistics(z, codes, 10)
    assert count.tolist() == [int((codes == k).sum()) for k in range(10)]
    torch.testing.assert_close(total, torch.stack([z[codes == k].sum(0) for k in range(10)]), atol=1e-5, rtol=0)


def test_a_code_is_the_mean_of_its_members_and_an_empty_one_is_finite() -> None:
    count, means = torch.tensor([2.0, 5.0, 0.0]), normal(3, 4)
    codebook = codebook_of(count, means * count[:, None])
    torch.testing.assert_close(codebook[:2], means[:2], atol=1e-6, rtol=0)
    assert torch.isfinite(codebook).all()


def test_only_the_first_of_equal_new_codes_is_kept() -> None:
    a, b, c = normal(3, 4)
    points = torch.stack([b, a, a + 1e-7, b, c, a])
    new = torch.tensor([True, True, True, False, True, True])
    assert is_first_of_kind(points, new)[new].tolist() == [False, True, False, True, False]


def test_perplexity_counts_codes_in_even_use() -> None:
    assert perplexity(torch.tensor([3.0, 3.0, 0.0, 3.0])).item() == pytest.approx(3.0)
    skewed = torch.tensor([1.0, 3.0])
    assert perplexity(skewed).item() == pytest.approx(math.exp(-0.25 * math.log(0.25) - 0.75 * math.log(0.75)))
