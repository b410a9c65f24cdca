"""Checks V6 and V7 on the whole model, revival over the whole batch, scores, and mistakes that are told."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from components.errors import UserError
from components.families.contract import Column, DataShape
from components.families.vqvae import TINY, VQVAE, VQVAEConfig, vectors_at_random
from components.training.communication import Communication
from components.training.context import Context
from components.training.randomness import Draws
from tests.small_data import shipped_images

CPU = torch.device("cpu")


def images(rows: int = 16) -> Tensor:
    return torch.from_numpy(shipped_images("train", rows)[0].copy())


def context(rows: int = 16, first: int = 0, global_rows: int = 16, step: int = 0) -> Context:
    return Context(step, "autoencoder", Draws(0, step, "autoencoder", first, CPU), rows, global_rows, Communication())


def model(**changes: object) -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(VQVAEConfig.parse({**TINY, **changes}, "test"))


def trained_a_little(**changes: object) -> VQVAE:
    family, batch = model(**changes), {"image": images()}
    optimizer = torch.optim.Adam(family.parameters(), 1e-3)
    for number in range(3):
        output = family.loss("autoencoder", batch, context(step=number))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        family.after_step("autoencoder", output.stats, context(step=number))
    return family


def test_v6_neither_loss_nor_evaluation_changes_a_buffer() -> None:
    family = trained_a_little()
    before = copy.deepcopy(dict(family.named_buffers()))
    family.loss("autoencoder", {"image": images()}, context())
    family.eval().evaluate({"image": images()}, context())
    family.reconstruct(images().float() / 255)
    assert all(torch.equal(before[name], buffer) for name, buffer in family.named_buffers())
    assert set(before) == {"quantizer.codebook", "quantizer.count", "quantizer.total"}


def test_v7_permuting_the_codebook_permutes_codes_and_keeps_pictures() -> None:
    family, x = trained_a_little().eval(), images().float() / 255
    vectors = family.encoder(x).detach().permute(0, 2, 3, 1).reshape(-1, 8)
    family.quantizer.codebook.copy_(vectors[:: len(vectors) // family.config.num_codes][: family.config.num_codes])  # many are in use
    codes, rebuilt = family.encode(x), family.reconstruct(x)
    order = torch.randperm(family.config.num_codes, generator=torch.Generator().manual_seed(1))
    family.quantizer.codebook.copy_(family.quantizer.codebook[order].clone())
    assert len(codes.unique()) > 2
    assert torch.equal(order[family.encode(x)], codes)
    torch.testing.assert_close(family.reconstruct(x), rebuilt, atol=1e-7, rtol=0)


def test_shapes_and_range() -> None:
    family, x = trained_a_little().eval(), images(3).float() / 255
    codes = family.encode(x)
    assert codes.shape == (3, *family.config.grid) == (3, 7, 7)
    assert codes.dtype == torch.int64
    rebuilt = family.decode(codes)
    assert rebuilt.shape == x.shape
    assert 0 <= rebuilt.min() <= rebuilt.max() <= 1
    assert torch.equal(rebuilt, family.reconstruct(x))


def test_candidates_of_all_workers_add_up_to_a_uniform_draw_from_the_whole_batch() -> None:
    rows, count = 16, 500
    vectors = torch.arange(rows * 6).view(rows, 1, 2, 3).expand(rows, 4, 2, 3).float() + 1  # each names its row and place
    whole = vectors_at_random(vectors, count, context())
    for cuts in ((0, 8, 16), (0, 8, 8, 16)):
        parts = [vectors_at_random(vectors[a:b], count, context(b - a, a)) for a, b in pairwise(cuts) if b > a]
        assert torch.equal(sum(parts[1:], parts[0]), whole)
    seen = torch.bincount(whole[:, 0].long() - 1, minlength=rows * 6).double()
    assert whole.min() >= 1
    assert ((seen - count / 96).square() / (count / 96)).sum() < 150  # chi squared with 95 degrees of freedom: beyond its 99.9th percentile
    assert not torch.equal(vectors_at_random(vectors, count, context(step=1)), whole)


def test_after_the_first_step_codes_are_encoder_outputs() -> None:
    family, batch = model(), {"image": images()}
    vectors = family.encoder(batch["image"].float() / 255).detach().permute(0, 2, 3, 1).reshape(-1, 8)
    family.after_step("autoencoder", family.loss("autoencoder", batch, context()).stats, context())
    nearest = torch.cdist(family.quantizer.codebook, vectors, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1).values
    made = family.quantizer.codebook.norm(dim=1) > 0  # the rest drew a vector that another code has already
    assert made.sum() > family.config.num_codes // 2
    assert (nearest[made][1:] < 1e-4).all()


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    output = trained_a_little(l1_weight=0.5, l2_weight=2.0, commitment=0.1).loss("autoencoder", {"image": images()}, context())
    metrics = output.metrics
    expected = 2.0 * metrics["mse"] + 0.5 * metrics["l1"] + 0.1 * metrics["commitment"]
    torch.testing.assert_close(output.loss.detach(), expected)
    assert min(float(value) for value in metrics.values()) > 0


def test_a_learned_codebook_is_trained_by_gradients() -> None:
    family = model(codebook="learned")
    output = family.loss("autoencoder", {"image": images()}, context())
    output.loss.backward()
    assert family.phases[0].trains == ("encoder", "decoder", "quantizer")
    assert not output.stats
    codebook = family.quantizer.codebook
    assert codebook.grad is not None
    used = family.encode(images().float() / 255).unique()
    assert codebook.grad.norm(dim=1).nonzero().flatten().tolist() == used.tolist()


def test_scores_are_those_of_the_reconstructions() -> None:
    family, x = trained_a_little().eval(), images().float() / 255
    totals = family.evaluate({"image": images()}, context())
    scores = family.finish(totals, {})
    error, codes = family.reconstruct(x) - x, family.encode(x)
    share = torch.bincount(codes.flatten(), minlength=8) / codes.numel()
    assert scores["mse"] == pytest.approx(error.square().mean().item(), rel=1e-5)
    assert scores["l1"] == pytest.approx(error.abs().mean().item(), rel=1e-5)
    assert scores["code_usage"] == pytest.approx(share.tolist())
    assert scores["codes_used"] == (share > 0).float().mean().item()
    assert scores["code_perplexity"] == pytest.approx(math.exp(-sum(p * math.log(p) for p in share.tolist() if p > 0)), rel=1e-5)


def test_fit_takes_the_shape_of_the_data() -> None:
    data = DataShape(columns={"image": Column(dtype="uint8", shape=(3, 32, 16))})
    config = VQVAE.fit(VQVAEConfig(), data)
    assert (config.image_channels, config.image_size, config.grid) == (3, (32, 16), (8, 4))


@pytest.mark.parametrize(
    ("column", "says"),
    [
        ({"codes": Column(dtype="int64", shape=(7, 7))}, "expected 'image'"),
        ({"image": Column(dtype="float32", shape=(1, 28, 28))}, "float32"),
        ({"image": Column(dtype="uint8", shape=(28, 28))}, "channels, height, width"),
        ({"image": Column(dtype="uint8", shape=(1, 30, 28))}, "multiple of 4"),
    ],
)
def test_fit_names_data_that_cannot_be_learned(column: dict[str, Column], says: str) -> None:
    with pytest.raises(UserError, match=says):
        VQVAE.fit(VQVAEConfig(), DataShape(columns=column))


@pytest.mark.parametrize("changes", [{"encoder_widths": (8,)}, {"l2_weight": 0.0}, {"num_codes": 1}, {"image_size": (2, 28)}])
def test_settings_that_do_not_go_together_are_told(changes: dict[str, object]) -> None:
    with pytest.raises(UserError):
        model(**changes)


def test_a_warm_start_takes_over_every_weight() -> None:
    start, family = trained_a_little(), model(commitment=0.1)
    family.adopt("vqvae", start)
    assert all(torch.equal(value, start.state_dict()[name]) for name, value in family.state_dict().items())
    with pytest.raises(UserError, match=r"encoder .* another shape"):
        model(encoder_widths=(8, 12)).adopt("vqvae", start)
    with pytest.raises(UserError, match="no use for a model named 'tokenizer'"):
        family.adopt("tokenizer", start)


def test_parts_without_blocks_are_not_recomputed() -> None:
    assert VQVAE(VQVAE.Config(encoder_blocks=0)).recomputed == ("decoder.blocks.*",)
