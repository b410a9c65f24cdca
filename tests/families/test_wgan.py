"""WGAN: the critic's loss by hand, check W4 in a run, what keeps the critic Lipschitz, and options without effect."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from components.data.dataset import Dataset
from components.errors import UserError
from components.families.wgan import WGAN, WGANConfig
from components.training.communication import Communication
from components.training.config import TrainConfig
from components.training.context import Context
from components.training.loop import Trainer
from components.training.measures import Measures
from components.training.outlet import Outlet
from components.training.randomness import Draws
from tests.families.test_vqgan import images
from tests.small_data import ring_points

CPU = torch.device("cpu")
ROWS = 16
POINTS = {"shape": (2,), "num_classes": 0, "conditional": False, "width": 16, "latent": 3}
PICTURES = {"width": 4, "latent": 8}


def model(**settings: Any) -> WGAN:
    torch.manual_seed(0)
    return WGAN(WGANConfig.parse(settings, "test"))


def context(phase: str = "critic", step: int = 0) -> Context:
    return Context(step, phase, Draws(0, step, phase, 0, CPU), ROWS, ROWS, Communication())


def points() -> dict[str, Tensor]:
    return {"point": torch.from_numpy(ring_points(ROWS, 0)[0])}


def pictures() -> dict[str, Tensor]:
    return {"image": images(ROWS), "label": torch.arange(ROWS) % 10}


def slopes_by_row(family: WGAN, batch: dict[str, Tensor]) -> Tensor:
    """The norm of the critic's gradient at a place between each row and its fake, one row after the other."""
    ctx, labels = context(), family.labels(batch)
    real, fake = family.reals(batch), family.fakes(batch, ctx).detach()
    shares = ctx.random.uniform("share", (ROWS,))
    found = []
    for row in range(ROWS):
        x = (shares[row] * real[row] + (1 - shares[row]) * fake[row])[None].requires_grad_()
        family.score(x, None if labels is None else labels[row : row + 1]).sum().backward(inputs=[x])
        found.append(x.grad.norm())
    return torch.stack(found)


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize(("settings", "batch"), [(POINTS, points()), (PICTURES, pictures())], ids=["points", "pictures"])
def test_the_critics_loss_by_hand(settings: dict[str, Any], batch: dict[str, Tensor], one_sided: bool) -> None:
    family = model(**settings, penalty_weight=3.0, one_sided=one_sided)
    output = family.loss("critic", batch, context())
    labels, fake = family.labels(batch), family.fakes(batch, context()).detach()
    gap = (family.score(family.reals(batch), labels).mean() - family.score(fake, labels).mean()).item()
    slopes = slopes_by_row(family, batch)
    excess = (slopes - 1).clamp(min=0) if one_sided else slopes - 1
    penalty = excess.square().mean().item()
    assert output.loss.item() == pytest.approx(3.0 * penalty - gap, abs=1e-5)
    unit = 0.5 if "image" in batch else 1.0  # pictures are [0, 1] outside and [-1, 1] within
    assert output.metrics["critic_w1"].item() == pytest.approx(gap * unit, abs=1e-5)
    assert output.metrics["penalty"].item() == pytest.approx(penalty, abs=1e-5)
    assert output.metrics["critic_slope"].item() == pytest.approx(slopes.mean().item(), abs=1e-5)
    total, count = family.evaluate(batch, context())["critic_w1"]
    assert (total / count).item() == pytest.approx(gap * unit, abs=1e-5)


def test_the_generators_loss_by_hand() -> None:
    family, batch = model(**PICTURES), pictures()
    output = family.loss("generator", batch, context("generator"))
    fake = family.fakes(batch, context("generator"))
    torch.testing.assert_close(output.loss, -family.critic(fake, batch["label"]).mean())


def test_five_critic_steps_go_before_each_of_the_generator() -> None:
    critic, generator = model(**POINTS).phases
    assert [step for step in range(12) if generator.active(step)] == [4, 9]
    assert all(critic.active(step) for step in range(12))


def test_the_penalty_is_in_full_precision_under_bfloat16() -> None:
    family, seen = model(**PICTURES), []
    family.critic.blocks[0].conv.register_forward_hook(lambda layer, given, made: seen.append(made.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        output = family.loss("critic", pictures(), context())
    assert seen == [torch.bfloat16, torch.float32]  # the scores; the penalty
    assert output.loss.dtype == torch.float32
    output.loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in family.critic.parameters())


def trained(family: WGAN, batch: dict[str, Tensor], steps: int, lr: float = 5e-2) -> Trainer:
    settings = {"batch_size": ROWS, "optimizer": {"name": "sgd", "lr": lr}}
    trainer = Trainer(family.train(), TrainConfig.parse(settings, "test"), Outlet(CPU))
    measures = Measures(CPU, Communication(), ROWS)
    for _ in range(steps):
        trainer.train_step(batch, measures)
    return trainer


@pytest.mark.parametrize(("settings", "batch"), [(POINTS, points()), (PICTURES, pictures())], ids=["points", "pictures"])
def test_w4_after_each_step_all_weights_are_in_the_box(settings: dict[str, Any], batch: dict[str, Tensor]) -> None:
    family = model(**settings, constraint="clip", clip=0.02)
    assert family.phases[0].optimizer.name == "rmsprop"
    largest = []
    for _ in range(3):
        trained(family, batch, 1)
        largest.append(max(parameter.abs().max().item() for parameter in family.critic.parameters()))
    assert largest == [pytest.approx(0.02)] * 3  # reached, not passed
    assert max(largest) <= torch.tensor(0.02).item()
    assert max(parameter.abs().max().item() for parameter in family.generator.parameters()) > 0.02


@pytest.mark.parametrize("constraint", ["gradient_penalty", "clip", "spectral"])
def test_w4_scores_tell_the_lipschitz_bound(constraint: str, small_data_folders: dict[str, Any]) -> None:
    family = model(**POINTS, constraint=constraint)
    held_out = Dataset.open(str(small_data_folders["points"]), "test")
    scores = trained(family, points(), 20).evaluate(held_out, 64)
    bound = scores["lipschitz_bound"]
    weights = [layer.linear.weight for layer in family.critic.blocks] + [family.critic.out.weight]
    norms = [torch.linalg.svdvals(weight.detach())[0].item() for weight in weights]
    assert bound == pytest.approx(torch.tensor(norms).prod().item(), rel=1e-5)
    assert 0 < bound < 1.05 if constraint == "spectral" else 0 < bound < 1e4
    assert {"critic_w1", "sliced_w1"} < set(scores)


def test_a_spectral_critics_vectors_follow_its_weights() -> None:
    family = model(**PICTURES, constraint="spectral")
    trained(family, pictures(), 10, lr=0.5)
    x, y = torch.rand(2, 64, 1, 28, 28)
    labels = torch.arange(64) % 10
    change = (family.score(x, labels) - family.score(y, labels)).abs()
    assert (change <= 1.05 * (x - y).flatten(1).norm(dim=1)).all()
    assert change.max() > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"constraint": "clip", "one_sided": True}, "one_sided=True has no effect with constraint=clip; set constraint=gradient_penalty"),
        ({"constraint": "spectral", "penalty_weight": 1.0}, "penalty_weight=1.0 has no effect with constraint=spectral"),
        ({"clip": 0.1}, "clip=0.1 has no effect with constraint=gradient_penalty; set constraint=clip, or leave clip out"),
        ({"penalty_weight": 0.0}, "penalty_weight"),
        ({"clip": -0.01, "constraint": "clip"}, "clip"),
        ({"constraint": "weight_clipping"}, "constraint"),
        ({"critic_steps": 0}, "critic_steps"),
    ],
)
def test_options_without_effect_or_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        WGANConfig.parse(settings, "test")
