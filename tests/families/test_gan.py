"""GAN: whose turn it is, its losses by other means, what a ring of Gaussians becomes (check G6), samples, scores, and bad input.

That two workers do what one does (check G3) is among the promises.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from components.data.columns import Column, DataShape
from components.errors import UserError
from components.families.gan import GAN, GANConfig
from components.functional.sliced import directions
from components.training.communication import Communication
from components.training.config import TrainConfig
from components.training.context import Context
from components.training.loop import Trainer
from components.training.measures import Measures
from components.training.outlet import Outlet
from components.training.randomness import Draws
from tests.small_data import RING, ring_points

CPU = torch.device("cpu")
ROWS, CLASSES = 16, 3
PICTURES = {"shape": (1, 8, 12), "num_classes": CLASSES, "latent": 5, "width": 4}
POINTS = {"shape": (2,), "num_classes": CLASSES, "latent": 5, "width": 8}


def make(values: dict[str, Any] = PICTURES, **changes: Any) -> GAN:
    """With weights such that every part moves the output."""
    torch.manual_seed(0)
    family = GAN(GANConfig.parse(values | changes, "test"))
    with torch.no_grad():
        for parameter in family.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return family


def batch_of(family: GAN, rows: int = ROWS) -> dict[str, Tensor]:
    drawn, labels = torch.Generator().manual_seed(1), torch.arange(rows) % CLASSES
    if family.config.is_picture:
        return {"image": torch.randint(256, (rows, *family.sample_shape), generator=drawn, dtype=torch.uint8), "label": labels}
    return {"point": torch.randn(rows, *family.sample_shape, generator=drawn), "label": labels}


def context(phase: str, step: int = 0, rows: int = ROWS, first: int = 0) -> Context:
    return Context(step, phase, Draws(0, step, phase, first, CPU), rows, rows, Communication())


def test_turns() -> None:
    rival, generator = make(critic_steps=3, critic_optimizer={"lr": 1e-4}).phases
    assert (rival.trains, generator.trains) == (("discriminator",), ("generator",))
    assert [step for step in range(9) if generator.active(step)] == [2, 5, 8]
    assert all(rival.active(step) for step in range(9))
    assert rival.optimizer is not None
    assert rival.optimizer.lr == 1e-4
    assert generator.optimizer is None


def scores_of(family: GAN, phase: str, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Of data and of the phase's own fakes, each by a pass of its own."""
    z = context(phase).random.normal("latent", (ROWS, 5))
    real = 2 * (batch["image"] / 255) - 1 if "image" in batch else batch["point"]
    fake = family.generator(z, batch["label"])
    return family.discriminator(real, batch["label"]), family.discriminator(fake, batch["label"])


@pytest.mark.parametrize("values", [PICTURES, POINTS], ids=["pictures", "points"])
@pytest.mark.parametrize("objective", ["non_saturating", "saturating", "hinge"])
def test_losses(values: dict[str, Any], objective: str) -> None:
    family = make(values, objective=objective)
    batch = batch_of(family)
    real, fake = scores_of(family, "discriminator", batch)
    output = family.loss("discriminator", batch, context("discriminator"))
    if objective == "hinge":
        expected = ((1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean()) / 2
    else:
        expected = -(real.sigmoid().log().mean() + (1 - fake.sigmoid()).log().mean())
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=1e-5)
    assert output.metrics["real_accuracy"] == (real > 0).float().mean()
    _, fake = scores_of(family, "generator", batch)
    by_name = {"non_saturating": -F.logsigmoid(fake), "saturating": F.logsigmoid(-fake), "hinge": -fake}
    torch.testing.assert_close(family.loss("generator", batch, context("generator")).loss, by_name[objective].mean(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("values", [PICTURES, POINTS], ids=["pictures", "points"])
def test_r1_is_a_term_on_some_steps_and_heavier_on_them(values: dict[str, Any]) -> None:
    families = make(values), make(values, r1_weight=0.5), make(values, r1_weight=0.5, r1_every=4)
    batch = batch_of(families[0])
    loss = {step: [family.loss("discriminator", batch, context("discriminator", step)) for family in families] for step in (4, 5)}
    penalty = loss[4][1].metrics["r1"]
    assert penalty > 0
    for step, seldom_times in ((4, 4), (5, 0)):
        bare, always, sometimes = (output.loss for output in loss[step])
        torch.testing.assert_close(always, bare + 0.5 * penalty, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sometimes, bare + seldom_times * 0.5 * penalty, rtol=1e-4, atol=1e-5)
    assert not batch.get("point", torch.zeros(())).requires_grad, "the batch is the loader's"


def modes(samples: Tensor) -> Tensor:
    """The share of samples (N, 2) within three deviations of each of the ring's Gaussians."""
    angles = torch.arange(RING) * (2 * math.pi / RING)
    distance, nearest = torch.cdist(samples, torch.stack([angles.cos(), angles.sin()], 1)).min(1)
    return torch.bincount(nearest[distance < 0.3], minlength=RING) / len(samples)


def test_g6_a_ring_of_eight_gaussians_is_found_without_labels() -> None:
    torch.manual_seed(0)
    steps, rows = 1000, 64
    points = torch.from_numpy(ring_points(steps * rows, 0)[0]).split(rows)
    config = TrainConfig(steps=steps, batch_size=rows, optimizer={"lr": 2e-3, "betas": (0.5, 0.999)}, ema_decay=0.99, clip_norm=None)
    trainer = Trainer(GAN(GANConfig(shape=(2,), num_classes=0, latent=8)), config, Outlet(CPU))
    measures = Measures(CPU, trainer.world, rows)
    assert (modes(trainer.family.sample(5000, 0, GAN.Sampler())) >= 0.01).sum() < 7
    for step in range(steps):
        trainer.train_step({"point": points[step]}, measures)
    assert trainer.average is not None
    with trainer.average.in_place():
        shares = modes(trainer.family.sample(5000, 0, GAN.Sampler()))
    assert (shares >= 0.01).sum() >= 7, shares
    assert shares.sum() >= 0.6, "samples lie between the Gaussians"


@pytest.mark.parametrize("values", [PICTURES, POINTS], ids=["pictures", "points"])
def test_a_sample_does_not_depend_on_its_neighbours(values: dict[str, Any]) -> None:
    family = make(values).eval()
    whole = family.sample(20, 4, GAN.Sampler())
    torch.testing.assert_close(family.sample(20, 4, GAN.Sampler(batch_size=3)), whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(family.sample(9, 4, GAN.Sampler(), first=8), whole[8:17], rtol=0, atol=1e-6)
    if family.config.is_picture:
        assert 0 <= whole.min() < whole.max() <= 1


def test_classes_in_turn_or_one_of_them() -> None:
    family = make().eval()
    each = family.sample(5, 1, GAN.Sampler(), first=8)
    labels = family.sample_labels(5, GAN.Sampler(), first=8)
    assert labels is not None
    assert labels.tolist() == [2, 0, 1, 2, 0]
    for label in range(CLASSES):
        alone = family.sample(5, 1, GAN.Sampler(label=label), first=8)
        torch.testing.assert_close(alone[labels == label], each[labels == label], rtol=0, atol=1e-6)
    assert make(num_classes=0).sample_labels(5, GAN.Sampler()) is None
    assert family.evaluations(GAN.Sampler()) == 1


def test_temperature_scales_the_noise() -> None:
    family = make(POINTS).eval()
    z = Draws(6, 0, "sample", 0, CPU).normal("latent", (10, 5))
    with torch.no_grad():
        expected = family.generator(0.5 * z, torch.arange(10) % CLASSES)
    torch.testing.assert_close(family.sample(10, 6, GAN.Sampler(temperature=0.5)), expected)


def test_the_sliced_distance_of_a_whole_data_set() -> None:
    """Of pictures in [0, 1], from parts, beside the mean distance of sorted projections."""
    family = make().eval()
    batch = batch_of(family)
    with torch.no_grad():
        parts = [
            family.describe({name: column[rows] for name, column in batch.items()}, context("evaluate", 0, 8, rows.start))
            for rows in (slice(0, 8), slice(8, 16))
        ]
        z = context("evaluate").random.normal("latent", (ROWS, 5))
        fake = ((family.generator(z, batch["label"]) + 1) / 2).flatten(1)
    rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    axes = directions(fake.shape[1])
    real = (batch["image"] / 255).flatten(1) @ axes
    expected = (real.sort(0).values - (fake @ axes).sort(0).values).abs().mean().item()
    assert family.finish({}, rows)["sliced_w1"] == pytest.approx(expected, rel=1e-4)


def shape_of(classes: Sequence[str] = ("a", "b", "c"), **columns: Column) -> DataShape:
    return DataShape(columns=columns, class_names=tuple(classes))


LABEL = Column(dtype="int64")


def test_what_the_data_decides() -> None:
    pictures, points = Column(dtype="uint8", shape=(3, 16, 24)), Column(dtype="float32", shape=(5,))
    found = GAN.fit(GANConfig(), shape_of(image=pictures, label=LABEL))
    assert (found.shape, found.num_classes) == ((3, 16, 24), 3)
    assert GAN.fit(GANConfig(conditional=False), shape_of(image=pictures, label=LABEL)).num_classes == 0
    found = GAN.fit(GANConfig(), shape_of(point=points, classes=()))
    assert (found.shape, found.num_classes) == ((5,), 0)


def test_pictures_of_an_odd_size_are_refused_with_the_size() -> None:
    with pytest.raises(UserError, match=r"shape=\(1, 27, 27\): pictures are halved in both networks, which needs an even height"):
        GAN.fit(GANConfig(), shape_of(image=Column(dtype="uint8", shape=(1, 27, 27)), label=LABEL))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r1_every": 4}, "r1_every=4 has no effect with r1_weight=0"),
        ({"objective": "wasserstein"}, "objective='wasserstein' is not valid"),
        ({"critic_steps": 0}, "critic_steps=0 is not valid"),
        ({"clip": 0.01}, "unknown key 'clip'"),
    ],
)
def test_bad_settings(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GANConfig.parse(values, "test")


def test_labels_that_the_model_does_not_know() -> None:
    family = make()
    with pytest.raises(UserError, match=r"sampler.label=3: the model knows 3 classes; choose 0 to 2 or none"):
        family.sample(2, 0, GAN.Sampler(label=3))
    with pytest.raises(UserError, match=r"sampler.label=0: the model was trained without classes; leave label out"):
        make(num_classes=0).sample(2, 0, GAN.Sampler(label=0))
    batch = batch_of(family) | {"label": torch.full((ROWS,), 7)}
    with pytest.raises(UserError, match=r"'label' holds 7, expected 0 to 2 for num_classes=3"):
        family.loss("generator", batch, context("generator"))


def test_a_trained_model_is_scored_on_data_like_its_own_alone() -> None:
    with pytest.raises(UserError, match=r"the model has shape=\[1, 8, 12\], the data set there needs \[2\]"):
        make().require_fitting(shape_of(point=Column(dtype="float32", shape=(2,)), label=LABEL), "there")
