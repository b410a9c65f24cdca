"""The two phases of VQGAN, its adaptive weight against hand-made gradients, and the frozen feature net that travels with it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from components.errors import UserError
from components.families.classifier import Classifier, ClassifierConfig
from components.families.vqgan import VQGAN, VQGANConfig
from components.families.vqvae import TINY, VQVAE, VQVAEConfig
from components.functional.adversarial import hinge_discriminator_loss
from components.functional.perceptual import feature_distance
from components.training.communication import Communication
from components.training.context import Context
from components.training.randomness import Draws
from tests.small_data import shipped_images

SMALL = {**TINY, "discriminator_widths": (4, 8)}
FEATURES = {"widths": (4, 6), "feature_dim": 8}


def images(rows: int = 16) -> Tensor:
    return torch.from_numpy(shipped_images("train", rows)[0].copy())


def context(phase: str, step: int = 0, rows: int = 16, global_rows: int = 16, world: Communication | None = None) -> Context:
    return Context(step, phase, Draws(0, step, phase, 0, torch.device("cpu")), rows, global_rows, world or Communication())


def model(**changes: object) -> VQGAN:
    torch.manual_seed(0)
    family = VQGAN(VQGANConfig.parse({**SMALL, **changes}, "test"))
    stats = family.loss("autoencoder", {"image": images()}, context("autoencoder")).stats
    family.after_step("autoencoder", stats, context("autoencoder"))
    return family


def classifier() -> Classifier:
    torch.manual_seed(5)
    return Classifier(ClassifierConfig.parse(FEATURES, "test"))


def test_before_its_start_there_is_no_rival() -> None:
    early = model(gan_start=10).loss("autoencoder", {"image": images()}, context("autoencoder", 9))
    plain = VQVAE.loss(model(), "autoencoder", {"image": images()}, context("autoencoder", 9))
    assert "gan" not in early.metrics
    late = model(gan_start=10).loss("autoencoder", {"image": images()}, context("autoencoder", 10))
    assert {"gan", "gan_weight"} <= set(late.metrics)
    reconstruction = sum(early.metrics[name] * w for name, w in (("mse", 1.0), ("commitment", 0.25)))
    torch.testing.assert_close(early.loss.detach(), reconstruction)
    torch.testing.assert_close(late.loss.detach(), reconstruction + late.metrics["gan_weight"] * late.metrics["gan"])
    assert plain.loss.requires_grad


def test_the_discriminator_can_start_earlier_than_its_term() -> None:
    family = model(discriminator_start=3, discriminator_every=2, gan_start=7)
    autoencoder, rival = family.phases
    assert (autoencoder.trains, rival.trains) == (("encoder", "decoder"), ("discriminator",))
    assert [step for step in range(9) if rival.active(step)] == [3, 5, 7]


def last_layer_gradients(family: VQGAN, x: Tensor) -> tuple[Tensor, Tensor]:
    """By two whole backward passes instead of two short ones."""
    vectors = family.encoder(x)
    quantized = family.quantizer.look_up(family.quantizer.codes(vectors))
    gradients = []
    for term in ("reconstruction", "rival"):
        family.zero_grad()
        rebuilt = family.decoder(quantized.detach())
        loss = (rebuilt - x).square().mean() if term == "reconstruction" else -family.discriminator(rebuilt).mean()
        loss.backward()
        gradients.append(family.decoder.last.weight.grad.clone())
    return gradients[0], gradients[1]


def test_both_terms_pull_equally_on_the_last_layer() -> None:
    family, weight = model(gan_weight=0.3), 0.3
    reconstruction, rival = last_layer_gradients(family, images().float() / 255)
    shown = family.loss("autoencoder", {"image": images()}, context("autoencoder")).metrics["gan_weight"]
    assert shown.item() == pytest.approx(weight * (reconstruction.norm() / (rival.norm() + 1e-4)).item(), rel=1e-4)
    assert not shown.requires_grad


def test_gradients_are_averaged_over_workers_before_their_norms() -> None:
    family = model(gan_weight=1.0)
    parts = images()[:8], images()[8:]
    pulls = [last_layer_gradients(family, part.float() / 255) for part in parts]

    class Beside(Communication):
        """One of two workers: to each sum it adds the other's share, which the test knows."""

        def sum(self, value: Tensor) -> Tensor:
            own, other = pulls
            place = min((0, 1), key=lambda i: float((value - own[i] / 2).norm()))
            return value + other[place] / 2

    output = family.loss("autoencoder", {"image": parts[0]}, context("autoencoder", rows=8, world=Beside(0, 2)))
    mean = [(a + b) / 2 for a, b in zip(*pulls, strict=True)]
    alone = pulls[0][0].norm() / pulls[0][1].norm()
    together = mean[0].norm() / (mean[1].norm() + 1e-4)
    assert output.metrics["gan_weight"].item() == pytest.approx(together.item(), rel=1e-4)
    assert abs(together - alone) > 1e-2 * together  # the two differ, so the test can fail


def test_the_discriminator_judges_real_and_rebuilt_pictures() -> None:
    family, x = model(), images().float() / 255
    output = family.loss("discriminator", {"image": images()}, context("discriminator"))
    with torch.no_grad():
        rebuilt = family.decoder(family.quantizer.look_up(family.encode(x)))  # not clamped: the generator's gradient sees it so
        expected = hinge_discriminator_loss(family.discriminator(x), family.discriminator(rebuilt))
    torch.testing.assert_close(output.loss.detach(), expected)
    output.loss.backward()
    assert all((p.grad is not None) == name.startswith("discriminator") for name, p in family.named_parameters())


def test_the_perceptual_term_looks_through_the_adopted_classifier() -> None:
    family, net, x = model(perceptual_weight=0.5, features=FEATURES, gan_weight=0.0), classifier(), images().float() / 255
    family.adopt("classifier", net)
    output = family.loss("autoencoder", {"image": images()}, context("autoencoder"))
    rebuilt = family.decoder(family.quantizer.look_up(family.encode(x)))
    torch.testing.assert_close(output.metrics["perceptual"], feature_distance(net.maps(x), net.maps(rebuilt)).detach())
    plain = output.metrics["mse"] + 0.25 * output.metrics["commitment"]
    torch.testing.assert_close(output.loss.detach(), plain + 0.5 * output.metrics["perceptual"])
    assert not any("features" in phase.trains for phase in family.phases)


def test_the_feature_net_travels_in_the_weights() -> None:
    family = model(perceptual_weight=0.5, features=FEATURES)
    family.adopt("classifier", classifier())
    again = VQGAN(VQGANConfig.parse(family.config.to_json(), "test"))
    again.load_state_dict(load(save(dict(family.state_dict()))))
    assert torch.equal(again.features.head.weight, classifier().head.weight)


def test_another_classifier_is_refused() -> None:
    family = model(perceptual_weight=0.5, features={**FEATURES, "feature_dim": 9})
    with pytest.raises(UserError, match="not the config of the classifier"):
        family.adopt("classifier", classifier())
    with pytest.raises(UserError, match="set both or neither"):
        model(perceptual_weight=0.5)
    with pytest.raises(UserError, match="gan_start=3 is before"):
        model(discriminator_start=4, gan_start=3)


def test_it_starts_from_a_plain_autoencoder() -> None:
    torch.manual_seed(3)
    start, family = VQVAE(VQVAEConfig.parse(TINY, "test")), model()
    family.adopt("vqvae", start)
    x = images().float() / 255
    assert torch.equal(family.reconstruct(x), start.reconstruct(x))
