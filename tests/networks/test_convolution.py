"""Shapes, the identity that an untrained residual block is, and what the patch discriminator and the autoencoder see."""

from __future__ import annotations

import pytest
import torch

from components.networks.convolution import Decoder, Encoder, FeatureStages, PatchDiscriminator, ResidualBlock


@pytest.mark.parametrize(("channels", "size", "widths"), [(1, (28, 28), (8, 16)), (3, (32, 16), (4, 8, 12)), (1, (6, 6), (4,))])
def test_the_decoder_returns_what_the_encoder_took(channels: int, size: tuple[int, int], widths: tuple[int, ...]) -> None:
    factor = 2 ** len(widths)
    vectors = Encoder(channels, widths, 1, 5)(torch.rand(2, channels, *size))
    assert vectors.shape == (2, 5, size[0] // factor, size[1] // factor)
    assert Decoder(channels, widths, 2, 5)(vectors).shape == (2, channels, *size)


def test_a_residual_block_begins_as_the_identity_up_to_a_constant() -> None:
    block, x = ResidualBlock(6), torch.randn(2, 6, 5, 5)
    change = block(x) - x
    torch.testing.assert_close(change, change[:1, :, :1, :1].expand_as(change), atol=1e-6, rtol=0)
    torch.nn.init.normal_(block.body[-1].weight)
    assert not torch.allclose(block(x) - x, change)


def test_a_patch_logit_sees_its_patch_alone() -> None:
    rival = PatchDiscriminator(1, (4, 8))
    images = torch.rand(1, 1, 28, 28)
    logits = rival(images)
    assert logits.shape == (1, 1, 7, 7)
    changed = images.clone()
    changed[..., :2, :2] += 1
    difference = (rival(changed) - logits)[0, 0] != 0
    assert difference[0, 0]
    assert not difference[3:].any()
    assert not difference[:, 3:].any()


def test_feature_stages_halve_and_are_not_negative() -> None:
    maps = FeatureStages(1, (4, 6, 8))(torch.rand(2, 1, 28, 28))
    assert [tuple(m.shape) for m in maps] == [(2, 4, 14, 14), (2, 6, 7, 7), (2, 8, 3, 3)]
    assert all((m >= 0).all() for m in maps)
