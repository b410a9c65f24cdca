"""DDPM and the base of denoising families: the loss by hand, likelihoods, averages, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from components.errors import UserError
from components.families.contract import Column, DataShape
from components.families.diffusion import Diffusion, DiffusionConfig
from components.functional.noise_schedules import Discrete
from components.functional.oracles import GaussianOracle
from components.functional.variational import variational_bound
from components.training.communication import Communication
from components.training.config import TrainConfig
from components.training.loop import Trainer
from components.training.measures import Measures
from components.training.optimization import WeightAverage
from components.training.outlet import Outlet
from tests.families.small_diffusion import CLASSES, CPU, LEVELS, NETWORK, SIZE, context, make, make_batch, named, sampler
from tests.gang import Gang


def alpha_bars(kind: str) -> np.ndarray:
    """The products of 1 - beta, from the papers, without Raymill's schedules."""
    if kind == "linear":
        return np.cumprod(1 - np.linspace(1e-4, 0.02, LEVELS) * 1000 / LEVELS)
    places = np.arange(LEVELS + 1) / LEVELS
    curve = np.cos((places + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.cumprod(1 - np.minimum(1 - curve[1:] / curve[:-1], 0.999))


def row_errors(family: Diffusion, batch: dict[str, Tensor], level: np.ndarray, noise: Tensor, labels: Tensor) -> np.ndarray:
    """The mean squared error of each row, from the formulas of the papers."""
    c = family.config
    kept = torch.tensor(alpha_bars(c.noise_schedule)[level]).view(-1, 1, 1, 1)
    data = batch["image"].double() / 127.5 - 1
    x = kept.sqrt() * data + (1 - kept).sqrt() * noise
    truth = {"eps": noise.double(), "x0": data, "v": kept.sqrt() * noise - (1 - kept).sqrt() * data}[c.prediction]
    with torch.no_grad():
        guess = family.network(x.float(), torch.tensor(level).float(), labels)
    return (guess.double() - truth).square().mean((1, 2, 3)).numpy()


@pytest.mark.parametrize("noise_schedule", ["linear", "cosine"])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("loss_weight", ["simple", "min_snr"])
def test_loss_is_the_formula_of_the_papers(noise_schedule: str, prediction: str, loss_weight: str) -> None:
    family = make(noise_schedule=noise_schedule, prediction=prediction, loss_weight=loss_weight)
    batch, ctx = make_batch(), context(16, step=3)
    level = np.floor(ctx.random.uniform("time", (16,)).double().numpy() * LEVELS).astype(int)
    errors = row_errors(family, batch, level, ctx.random.normal("noise", (16, 1, *SIZE)), batch["label"])
    if loss_weight == "min_snr":  # Hang et al. 2023, section 3.4: of x0, of eps, of v
        kept = alpha_bars(noise_schedule)[level]
        snr = kept / (1 - kept)
        capped = np.minimum(snr, 5)
        errors = errors * {"x0": capped, "eps": capped / snr, "v": capped / (snr + 1)}[prediction]
    assert family.loss("denoiser", batch, ctx).loss.item() == pytest.approx(errors.mean(), rel=1e-4)


def test_every_prediction_weighted_by_min_snr_is_one_loss_on_data() -> None:
    families = {kind: make(prediction=kind, loss_weight="min_snr", snr_cap=2.0) for kind in ("eps", "x0", "v")}
    t = families["x0"].time_of(torch.linspace(0, 0.999, 9, dtype=torch.float64))
    alpha, sigma = families["x0"].schedule.alpha(t), families["x0"].schedule.sigma(t)
    error_of_x0 = torch.tensor(0.3)  # for one x_t, predictions and data that differ by so much in x0 differ in eps and v by
    errors = {"x0": error_of_x0.expand(9), "eps": error_of_x0 * alpha / sigma, "v": error_of_x0 / sigma}
    losses = [families[kind].loss_weights(t) * errors[kind].square() for kind in families]
    assert torch.allclose(losses[0], losses[1])
    assert torch.allclose(losses[0], losses[2])
    assert torch.allclose(losses[0], 0.09 * (alpha / sigma).square().clamp(max=2).float().double())


def test_condition_dropout_hides_its_share_of_classes_in_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    family, seen = make(condition_dropout=0.25), []
    monkeypatch.setattr(family, "predict", lambda x, t, labels, random=None: (seen.append(labels), torch.zeros_like(x))[1])
    batch = make_batch(4000)
    family.loss("denoiser", batch, context(4000))
    family.train().loss("denoiser", batch, context(4000))
    assert torch.equal(seen[0], batch["label"])
    hidden = seen[1] == CLASSES
    assert hidden.double().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(seen[1][~hidden], batch["label"][~hidden])


def test_training_loss_is_a_function_of_the_rows_and_not_of_the_split() -> None:
    family, batch = make(network=NETWORK | {"dropout": 0.3}, condition_dropout=0.3).train(), make_batch()
    whole = family.loss("denoiser", batch, context(16)).loss.item()
    halves = [
        family.loss("denoiser", {k: v[cut] for k, v in batch.items()}, context(8, first_row=cut.start)).loss.item()
        for cut in (slice(0, 8), slice(8, 16))
    ]
    assert whole == pytest.approx(sum(halves) / 2, abs=1e-6)
    assert whole != family.loss("denoiser", batch, context(16, step=1)).loss.item()


@torch.no_grad()
def test_evaluation_sums_each_row_in_its_turn_of_time() -> None:
    family, batch, ctx = make(), make_batch(), context(16)
    scores = family.evaluate(batch, ctx)
    level = np.floor((ctx.random.uniform("time", (16,)).double().numpy() + np.arange(16) % 4) / 4 * LEVELS).astype(int)
    errors = row_errors(family, batch, level, ctx.random.normal("noise", (16, 1, *SIZE)), batch["label"])
    assert scores["loss"][0].item() == pytest.approx(errors.sum(), rel=1e-5)
    assert scores["loss"][1] == 16
    assert scores["loss_by_time"][1].tolist() == [4, 4, 4, 4]
    assert scores["loss_by_time"][0].tolist() == pytest.approx([errors[quarter::4].sum() for quarter in range(4)], rel=1e-5)


@torch.no_grad()
def test_a_few_rows_give_no_loss_by_time() -> None:
    family = make()
    scores = {rows: family.finish(family.evaluate(make_batch(rows), context(rows)), {}) for rows in (3, 4)}
    assert scores[3].keys() == {"loss"}
    assert len(scores[4]["loss_by_time"]) == 4  # type: ignore[arg-type]
    assert not family.charts(scores[3])
    assert family.charts(scores[4])[0].series[0].y == tuple(scores[4]["loss_by_time"])  # type: ignore[arg-type]


def test_bits_of_gaussian_pictures_are_those_of_the_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    family = make(prediction="eps", num_classes=0, condition_dropout=0.0, levels=300)
    std = 0.4
    oracle = GaussianOracle(torch.zeros(1, *SIZE), torch.tensor(std), family.schedule).denoiser("eps")
    monkeypatch.setattr(family, "predict", lambda x, t, labels, random=None: oracle.model(x, t).float())
    values = ((torch.randn(8, 1, *SIZE, generator=torch.Generator().manual_seed(0)) * std + 1) * 127.5).round().clamp(0, 255)
    data = values.double() / 127.5 - 1
    nats = (data.square() / (2 * std**2) + math.log(std * math.sqrt(2 * math.pi))).mean((1, 2, 3))
    exact = nats / math.log(2) + math.log2(127.5)
    assert torch.allclose(family.bits_per_dim(values.to(torch.uint8), context(8)), exact, atol=0.05)
    bound = family.bound_in_bits_per_dim(values.to(torch.uint8), context(8))
    assert (bound > exact - 0.05).all()
    assert (bound < exact + 2).all()


def test_the_bound_is_that_of_the_functional_in_bits() -> None:
    family, batch, ctx = make(), make_batch(4), context(4)
    calls = iter(range(LEVELS))
    with torch.no_grad():
        nats = variational_bound(
            family.denoiser(batch["label"]),
            batch["image"].float() / 127.5 - 1,
            lambda like: ctx.random.normal(f"bound {next(calls)}", tuple(like.shape)),
        )
    assert torch.allclose(family.bound_in_bits_per_dim(batch["image"], ctx, batch["label"]), nats / math.log(2) / math.prod(SIZE))


def averaged_after(steps: int) -> dict[str, Tensor]:
    """The averaged weights after some steps, on any rank of a group."""
    world = Communication.current()
    config = TrainConfig.parse({"steps": 9, "batch_size": 32, "ema_decay": 0.9}, "test")
    trainer = Trainer(make().train(), config, Outlet(CPU, world))
    batch, share = make_batch(32), 32 // world.size
    mine = {name: column[share * world.rank : share * (world.rank + 1)] for name, column in batch.items()}
    for _ in range(steps):
        trainer.train_step(mine, Measures(CPU, world, 32))
    assert trainer.average is not None
    return {name: value.clone() for name, value in trainer.average.average.items()}


def test_averages_are_equal_on_all_ranks(gang: Gang) -> None:
    one, two = gang.run(averaged_after, 2, 3)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert one.keys() == {f"network.{name}" for name, _ in make().network.named_parameters()}


def test_the_average_is_the_closed_form_and_sampling_changes_no_weight() -> None:
    family = make()
    average, values = WeightAverage(family, 0.7), [[p.detach().clone() for p in family.parameters()]]
    for step in range(5):
        with torch.no_grad():
            for parameter in family.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        average.update(step)
        values.append([p.detach().clone() for p in family.parameters()])
    decays = [min(0.7, (1 + step) / (10 + step)) for step in range(5)]
    weights = [math.prod(decays)] + [(1 - decays[k]) * math.prod(decays[k + 1 :]) for k in range(5)]
    for number, kept in enumerate(average.average.values()):
        expected = sum(weight * each[number].double() for weight, each in zip(weights, values, strict=True))
        assert torch.allclose(kept.double(), expected, atol=1e-6)
    before = {name: value.clone() for name, value in family.state_dict().items()}
    with average.in_place():
        slow = family.sample(2, 0, named("ddim"))
    assert all(torch.equal(before[name], value) for name, value in family.state_dict().items())
    assert not torch.allclose(slow, family.sample(2, 0, named("ddim")), atol=1e-4)


def test_fit_takes_shape_and_classes_from_the_data() -> None:
    columns = {"image": Column(dtype="uint8", shape=(3, 16, 8)), "label": Column(dtype="int64")}
    data = DataShape(columns=columns, class_names=("a", "b"))
    found = Diffusion.fit(DiffusionConfig(), data)
    assert isinstance(found, DiffusionConfig)
    assert (found.image_channels, found.image_size, found.num_classes, found.condition_dropout) == (3, (16, 8), 2, 0.1)
    for plain in (
        Diffusion.fit(DiffusionConfig(conditional=False), data),
        Diffusion.fit(DiffusionConfig(), DataShape(columns={"image": columns["image"]})),
    ):
        assert isinstance(plain, DiffusionConfig)
        assert (plain.num_classes, plain.condition_dropout) == (0, 0.0)
        family = Diffusion(plain)
        batch = {"image": torch.zeros(2, 3, 16, 8, dtype=torch.uint8), "label": torch.tensor([0, 9])}
        assert family.loss("denoiser", batch, context(2)).loss.isfinite()
        assert family.sample(2, 0, sampler(steps=2)).shape == (2, 3, 16, 8)
        assert family.sample_labels(2, sampler()) is None


@pytest.mark.parametrize(
    ("values", "culprit"),
    [
        ({"snr_cap": 3.0}, "snr_cap=3.0 has no effect"),
        ({"levels": 20, "noise_schedule": "linear"}, "levels=20"),
        ({"levels": 3}, "levels=3"),
        ({"image_size": (28, 30)}, "30 is no multiple of 4"),
        ({"num_classes": 0}, "condition_dropout has no effect"),
        ({"prediction": "velocity"}, "prediction='velocity'"),
    ],
)
def test_impossible_configs_are_refused(values: dict[str, Any], culprit: str) -> None:
    with pytest.raises(UserError, match=culprit):
        DiffusionConfig.parse(values, "test")


@pytest.mark.parametrize("label", [CLASSES, -1])
def test_classes_that_the_model_does_not_know_are_refused(label: int) -> None:
    batch = make_batch()
    batch["label"][3] = label
    for use in (lambda f: f.loss("denoiser", batch, context(16)), lambda f: f.evaluate(batch, context(16))):
        with pytest.raises(UserError, match=f"'label' holds {label}, expected 0 to 2"):
            use(make())


def test_the_schedule_is_the_papers() -> None:
    for kind in ("linear", "cosine"):
        schedule = make(noise_schedule=kind).schedule
        assert isinstance(schedule, Discrete)
        t = schedule.time_of(torch.arange(LEVELS))
        assert np.allclose(schedule.alpha(t).square(), alpha_bars(kind), atol=1e-12)
        assert torch.equal(make().network_steps(t), torch.arange(LEVELS).double())
