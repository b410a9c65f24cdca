"""Rectified flow: its loss by hand, pairs that stay together, transport over all workers, the distilled step, diffusers, bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DModel
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from components.data.dataset import Dataset
from components.data.loader import Loader
from components.data.write import write_dataset
from components.errors import UserError
from components.evaluation.scoring import evaluate
from components.families.contract import Column, DataShape
from components.families.denoising_sampler import DenoisingSampler
from components.families.rectified_flow import RectifiedFlow, RectifiedFlowConfig
from components.training.communication import Communication, rows_of
from components.training.context import Context
from components.training.randomness import LANE, Draws
from tests.families.denoising import CLASSES, CPU, NETWORK, SIZE, GaussianNetwork, batch_of, context, make
from tests.gang import Gang

SHAPE = (1, SIZE, SIZE)
PICTURES = {"image": Column(dtype="uint8", shape=SHAPE), "label": Column(dtype="int64")}
PAIRS = {name: Column(dtype="float32", shape=SHAPE) for name in ("noise", "image_float")}
NAMES = ("a", "b", "c")
BATCH = 48


def make_flow(**values: object) -> RectifiedFlow:
    family = make(RectifiedFlow, **values)
    assert isinstance(family, RectifiedFlow)
    return family


def sampler(**values: object) -> DenoisingSampler:
    return DenoisingSampler.parse(values, "test")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pairs_of(rows: int) -> dict[str, Tensor]:
    return {"noise": normal(rows, *SHAPE), "image_float": normal(rows, *SHAPE, seed=1), "label": torch.arange(rows) % CLASSES}


def shape_of(columns: dict[str, Column]) -> DataShape:
    return DataShape(columns=columns, class_names=NAMES)


@torch.no_grad()
def test_the_loss_is_that_of_the_straight_line() -> None:
    family, batch = make_flow(), pairs_of(16)
    x0, eps, labels = batch["image_float"], batch["noise"], batch["label"]
    t = torch.rand(16, generator=torch.Generator().manual_seed(3))
    share = t.view(-1, 1, 1, 1)
    velocity = family.network((1 - share) * x0 + share * eps, 1000 * t, labels)
    expected = (velocity - (eps - x0)).square().flatten(1).mean(1)
    torch.testing.assert_close(family.losses(x0, eps, t.double(), labels), expected, rtol=1e-5, atol=1e-6)


def test_pictures_get_noise_of_their_own_anew_each_step() -> None:
    family, batch = make_flow().train(), batch_of(16)
    data, noise = family.ends(batch, context(16))
    torch.testing.assert_close(data, batch["image"].float() / 127.5 - 1)
    again = Context(1, "denoiser", Draws(0, 1, "denoiser", 0, CPU), 16, 16, Communication())
    assert not torch.equal(noise, family.ends(batch, again)[1])
    last = {name: column[8:] for name, column in batch.items()}
    assert torch.equal(noise[8:], family.ends(last, context(8, first_row=8, global_rows=16))[1])


def test_times_are_uniform_logit_normal_or_the_end_alone() -> None:
    uniform = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    assert torch.equal(make_flow().time_of(uniform), uniform)
    middle = make_flow(times="logit_normal").time_of(uniform)
    assert middle.median().item() == pytest.approx(0.5)
    assert ((middle - 0.5).abs() < 0.25).double().mean().item() == pytest.approx(0.728, abs=0.002)  # |logit| < log 3 in N(0, 1)
    assert make_flow(pairs=True, distill=True).time_of(uniform).unique().tolist() == [1.0]


@pytest.fixture
def recognisable(tmp_path: Path) -> str:
    """Pairs whose data are their noise: every pair that is torn apart shows."""
    noise = normal(200, *SHAPE).numpy()
    block = {"noise": noise, "image_float": noise.copy(), "label": np.arange(200) % CLASSES}
    columns = PAIRS | {"label": Column(dtype="int64")}
    write_dataset(str(tmp_path / "pairs"), {"train": [block], "test": [block]}, columns, NAMES, rows_per_shard=64)
    return str(tmp_path / "pairs")


def fitted(data: Dataset, **values: object) -> RectifiedFlow:
    given = RectifiedFlowConfig.parse({"network": NETWORK} | values, "test")
    config = RectifiedFlow.fit(given, data.shape)
    assert isinstance(config, RectifiedFlowConfig)
    return RectifiedFlow(config)  # its last layer is zero, and so is the velocity it predicts


def test_pairs_stay_together_when_rows_are_shuffled_and_shared_out(recognisable: str) -> None:
    data = Dataset.open(recognisable, "train")
    family = fitted(data).train()
    assert family.config.pairs
    for rank in range(2):
        first = rows_of(rank, 2, BATCH, LANE).start
        for batch in Loader(data, BATCH, 0, rank, 2).batches(0, 10):
            rows = len(batch["noise"])
            assert family.loss("denoiser", batch, context(rows, first, BATCH)).loss.item() == 0.0
            torn = batch | {"noise": batch["noise"].roll(1, 0)}
            assert family.loss("denoiser", torn, context(rows, first, BATCH)).loss.item() > 1


def test_scores_of_pairs(recognisable: str) -> None:
    data = Dataset.open(recognisable, "test")
    scores = evaluate(fitted(data), data)
    assert {name: scores[name] for name in ("loss", "transport_cost", "one_step_mse", "straightness")} == {
        "loss": 0.0,
        "transport_cost": 0.0,
        "one_step_mse": 0.0,
        "straightness": pytest.approx(0.0, abs=1e-9),
    }
    assert "loss_by_time" not in evaluate(fitted(data, distill=True), data)


@torch.no_grad()
def test_scores_of_pairs_by_hand_and_in_halves() -> None:
    family, batch = make_flow(pairs=True), pairs_of(32)
    x0, eps, labels = batch["image_float"], batch["noise"], batch["label"]
    whole = family.evaluate(batch, context(32))
    step = eps - family.network(eps, torch.full((32,), 1000.0), labels)
    assert whole["transport_cost"][0].item() == pytest.approx((eps - x0).square().sum().item(), rel=1e-5)
    assert whole["one_step_mse"][0].item() == pytest.approx((step - x0).square().flatten(1).mean(1).sum().item(), rel=1e-5)
    walked = family.straightness(eps[::8], labels[::8], 8)
    assert whole["straightness"][0].item() == pytest.approx(walked.sum().item(), rel=1e-5)
    halves = [family.evaluate({n: c[cut] for n, c in batch.items()}, context(16, cut.start, 32)) for cut in (slice(0, 16), slice(16, 32))]
    for name, (total, count) in whole.items():
        torch.testing.assert_close(halves[0][name][0] + halves[1][name][0], total, rtol=1e-5, atol=1e-6)
        assert torch.equal(halves[0][name][1] + halves[1][name][1], count)


def test_what_the_data_holds_decides_whether_pairs_are_learnt() -> None:
    config = RectifiedFlowConfig.parse({"network": NETWORK}, "test")
    label = {"label": PICTURES["label"]}
    for columns, pairs in ((PICTURES, False), (PICTURES | PAIRS, True), (PAIRS | label, True)):
        found = RectifiedFlow.fit(config, shape_of(columns))
        assert (found.pairs, found.image_size, found.num_classes) == (pairs, (SIZE, SIZE), CLASSES)
    assert RectifiedFlow.fit(config, shape_of(PAIRS)).num_classes == 0


def test_pairs_and_pictures_can_both_be_scored_but_not_another_size() -> None:
    smaller = {name: Column(dtype=column.dtype, shape=(1, 4, 4)) for name, column in PAIRS.items()}
    for family in (make_flow(), make_flow(pairs=True), make_flow(pairs=True, distill=True)):
        for columns in (PICTURES, PICTURES | PAIRS, PAIRS | {"label": PICTURES["label"]}):
            family.require_fitting(shape_of(columns), "data")
        with pytest.raises(UserError, match=r"image_size=\[8, 8\]"):
            family.require_fitting(shape_of(smaller | {"label": PICTURES["label"]}), "data")


@pytest.mark.parametrize(
    ("values", "columns", "message"),
    [
        ({}, PICTURES | {"noise": PAIRS["noise"]}, "a column 'noise' but no 'image_float'"),
        ({}, PICTURES | {"image_float": PAIRS["noise"]}, "a column 'image_float' but no 'noise'"),
        ({}, PAIRS | {"noise": Column(dtype="float32", shape=(1, 4, 4))}, "expected both float32 of one shape"),
        ({}, PAIRS | {"image_float": PICTURES["image"]}, "expected both float32 of one shape"),
        ({}, {"label": PICTURES["label"]}, "expected 'image'"),
        ({"distill": True}, PICTURES, "distill=true needs pairs"),
        ({"pairs": True}, PICTURES, "pairs=true needs pairs"),
        ({"transport": True}, PAIRS, "transport=true would pair anew"),
    ],
)
def test_data_that_do_not_fit_are_refused(values: dict[str, object], columns: dict[str, Column], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RectifiedFlow.fit(RectifiedFlowConfig.parse({"network": NETWORK} | values, "test"), shape_of(columns))


def test_an_option_without_effect_is_refused() -> None:
    with pytest.raises(UserError, match="times=logit_normal has no effect with distill=true"):
        RectifiedFlowConfig.parse({"distill": True, "times": "logit_normal"}, "test")


def ends_on_worker(**values: object) -> tuple[Tensor, Tensor]:
    """Data and noise of this worker's rows of one batch."""
    world = Communication.current()
    workers = [rows_of(rank, world.size, BATCH, LANE) for rank in range(world.size)]
    rows = workers[world.rank]
    counts = tuple(each.stop - each.start for each in workers)
    ctx = Context(0, "denoiser", Draws(0, 0, "denoiser", rows.start, CPU), counts[world.rank], BATCH, world, counts)
    batch = {name: column[rows] for name, column in batch_of(BATCH).items()}
    return make_flow(transport=True, **values).train().ends(batch, ctx)


@pytest.mark.parametrize("classes", [CLASSES, 0])
def test_transport_is_scipys_and_equal_for_any_number_of_workers(classes: int, gang: Gang) -> None:
    values = {"num_classes": classes} | ({} if classes else {"condition_dropout": 0.0})
    data, paired = ends_on_worker(**values)
    for workers in (2, 3):
        parts = gang.run(ends_on_worker_of, workers, values)
        assert torch.equal(torch.cat([part[0] for part in parts]), data)
        assert torch.equal(torch.cat([part[1] for part in parts]), paired)
    noise = context(BATCH).random.normal("noise", tuple(data.shape))
    cost = (data[:, None] - noise[None]).flatten(2).double().square().sum(2).numpy()
    if classes:
        labels = batch_of(BATCH)["label"].numpy()
        cost[labels[:, None] != labels[None]] = 1e9
    assert torch.equal(paired, noise[linear_sum_assignment(cost)[1]])
    assert (data - paired).square().sum() < (data - noise).square().sum()


def ends_on_worker_of(values: dict[str, object]) -> tuple[Tensor, Tensor]:
    return ends_on_worker(**values)


def test_transport_needs_the_whole_batch_at_once() -> None:
    with pytest.raises(UserError, match=r"set train.accumulate=1"):
        make_flow(transport=True).train().ends(batch_of(8), context(8, global_rows=16))


def test_transport_is_for_training_alone() -> None:
    batch = batch_of(16)
    plain, paired = (family.eval().evaluate(batch, context(16)) for family in (make_flow(), make_flow(transport=True)))
    assert torch.equal(plain["loss"][0], paired["loss"][0])


@torch.no_grad()
def test_a_distilled_model_learns_and_takes_the_one_step_alone() -> None:
    family, batch = make_flow(pairs=True, distill=True, condition_dropout=0.0), pairs_of(16)
    told = []
    family.network.register_forward_pre_hook(lambda module, inputs: told.append((inputs[0], inputs[1])))
    loss = family.loss("denoiser", batch, context(16)).loss
    assert torch.equal(told[0][0], batch["noise"])
    assert told[0][1].unique().tolist() == [1000.0]
    one_step = batch["noise"] - family.network(batch["noise"], torch.full((16,), 1000.0), batch["label"])
    assert loss.item() == pytest.approx((one_step - batch["image_float"]).square().mean().item(), rel=1e-5)

    told.clear()
    noise, data = family.sample_pairs(5, 0, sampler())
    assert len(told) == family.evaluations(sampler()) == 1
    torch.testing.assert_close(data, noise - family.network(noise, torch.full((5,), 1000.0), torch.arange(5) % CLASSES))


def test_a_distilled_model_has_no_other_sampler_and_no_way_back() -> None:
    family, images = make_flow(pairs=True, distill=True), torch.rand(2, *SHAPE)
    with pytest.raises(UserError, match="sampler=heun does not fit this model; choose one of euler"):
        family.sample(2, 0, sampler(sampler="heun"))
    with pytest.raises(UserError, match=r"steps=2: the model was distilled to one Euler step"):
        family.sample(2, 0, sampler(steps=2))
    with pytest.raises(UserError, match="no way from data to noise"):
        family.encode(images, sampler())
    with pytest.raises(UserError, match="no likelihood"):
        family.bits_per_dim(batch_of(2)["image"], context(2))


@pytest.mark.parametrize("name", ["ddim", "ancestral", "euler_maruyama"])
def test_samplers_that_do_not_fit_the_straight_line_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"sampler={name} does not fit"):
        make_flow().sample(2, 0, sampler(sampler=name))


def test_guidance_without_classes_is_refused() -> None:
    with pytest.raises(UserError, match="the model was trained without classes"):
        make_flow(num_classes=0, condition_dropout=0.0).sample(2, 0, sampler(guidance=2.0))


@pytest.mark.parametrize(
    ("name", "steps", "cost"), [("euler", 100, 100), ("heun", 40, 80), ("rk4", 20, 80), ("dpm_solver", 40, 40), ("dopri5", None, None)]
)
def test_samples_of_an_exact_network_are_the_data(name: str, steps: int | None, cost: int | None) -> None:
    family = make_flow()
    family.network = GaussianNetwork(family, 0.2, 0.1)
    options = sampler(sampler=name, **({"steps": steps} if steps else {}))
    assert family.evaluations(options) == cost
    pictures = family.sample(64, 0, options)
    assert pictures.mean().item() == pytest.approx((0.2 + 1) / 2, abs=0.01)
    assert pictures.std().item() == pytest.approx(0.1 / 2, rel=0.05)


@torch.no_grad()
def test_r6_data_to_noise_and_back() -> None:
    family, options = make_flow(), sampler(sampler="dopri5")
    family.network = GaussianNetwork(family, 0.2, 0.1)
    images = (1.2 + 0.1 * normal(4, *SHAPE)) / 2
    noise = family.encode(images, options)
    torch.testing.assert_close(noise, ((2 * images - 1) - 0.2) / 0.1, rtol=0, atol=1e-3)
    back = family.from_noise(noise, options)
    assert (back - (2 * images - 1)).square().mean().sqrt() < 1e-3


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 7])
def test_r6_an_exported_model_gives_equal_samples_in_diffusers(steps: int, tmp_path: Path) -> None:
    family = make_flow()
    family.export(tmp_path)
    network = UNet2DModel.from_pretrained(tmp_path, subfolder="unet")
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    noise, data = family.sample_pairs(6, 0, sampler(steps=steps))
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    x = noise
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t, class_labels=torch.arange(6) % CLASSES).sample, t, x).prev_sample
    torch.testing.assert_close(x, data, rtol=0, atol=1e-5)


def test_reflow_begins_with_trained_weights() -> None:
    trained = make_flow()
    torch.manual_seed(1)
    second = RectifiedFlow(RectifiedFlowConfig.parse(trained.config.to_json() | {"pairs": True, "distill": True}, "test"))
    second.adopt("start", trained)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in trained.state_dict().items())
