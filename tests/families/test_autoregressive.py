"""Autoregressive families: what is counted, what decides samples and completions, what they learn of known distributions, bad input."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from components.config import override
from components.data.columns import Column, DataShape
from components.errors import UserError
from components.families.autoregressive import Autoregressive, AutoregressiveConfig, AutoregressiveSampler
from components.families.pixel_heads import Binary, Categorical
from components.training.communication import Communication
from components.training.context import Context
from components.training.randomness import Draws

SHAPE = (1, 2, 4)
PIXELS = 8
NETWORKS: dict[str, dict[str, Any]] = {
    "fvsbn": {"kind": "fvsbn"},
    "nade": {"kind": "nade", "hidden": 12},
    "made": {"kind": "made", "hidden": [16], "order": "random"},
}


def make(network: dict[str, Any], spread: float = 0.6, **values: Any) -> Autoregressive:
    family = Autoregressive(AutoregressiveConfig.parse({"image_size": SHAPE[1:], "network": network} | values, "test"))
    draw = torch.Generator().manual_seed(4)
    for parameter in family.parameters():
        parameter.data += spread * torch.randn(parameter.shape, generator=draw)
    return family.eval()


def context(rows: int, step: int = 0) -> Context:
    return Context(step, "pixels", Draws(0, step, "pixels", 0, torch.device("cpu")), rows, rows, Communication())


def sampler(**values: Any) -> AutoregressiveSampler:
    return AutoregressiveSampler.parse(values, "test")


def pictures(ink: Tensor) -> Tensor:
    """Rows (B, 8) of 0 and 1 as uint8 pictures: ink is just above the threshold, and none just below."""
    return (127 + ink).to(torch.uint8).view(-1, *SHAPE)


def all_pictures() -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=PIXELS)))


def shape_of(channels: int = 1, size: tuple[int, int] = (2, 4), labelled: bool = True) -> DataShape:
    columns = {"image": Column(dtype="uint8", shape=(channels, *size))} | ({"label": Column(dtype="int64")} if labelled else {})
    return DataShape(columns=columns, class_names=("a", "b", "c") if labelled else ())


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> dict[str, Any]:
    return NETWORKS[request.param]


@torch.no_grad()
def test_nats_are_of_whole_pictures(network: dict[str, Any]) -> None:
    """By the probabilities of all pictures, which add up to one; the loss is their mean, not one over pixels."""
    family, ink = make(network), all_pictures()
    nats = family.nats(ink.view(-1, *SHAPE), None)
    assert (-nats).exp().sum().item() == pytest.approx(1, abs=1e-5)
    batch = {"image": pictures(ink)[::7]}
    rows = len(batch["image"])
    assert family.loss("pixels", batch, context(rows)).loss.item() == pytest.approx(nats[::7].mean().item(), rel=1e-6)
    scores = family.evaluate(batch, context(rows))
    assert scores.keys() == {"nats"}
    assert scores["nats"][0].item() == pytest.approx(nats[::7].sum().item(), rel=1e-6)
    assert scores["nats"][1] == rows


@torch.no_grad()
def test_several_masks_are_a_mixture_of_probabilities() -> None:
    """Means of probabilities over masks add up to one over all pictures; means of logits over different orders would not."""
    family = make({"kind": "made", "hidden": [12], "masks": 3, "order_agnostic": True}, spread=1.5)
    each = {"image": pictures(all_pictures())}
    found = [family.evaluate({"image": row[None]}, context(1)) for row in each["image"]]
    for name in ("nats", "nats_of_all_masks"):
        assert sum(math.exp(-scores[name][0].item()) for scores in found) == pytest.approx(1, abs=1e-5)
    assert found[0]["nats"][0] != found[0]["nats_of_all_masks"][0]


def test_biases_begin_at_the_log_odds_of_each_pixel() -> None:
    family = make({"kind": "made", "order": "random"}, spread=0)
    ink = (torch.rand(500, PIXELS, generator=torch.Generator().manual_seed(0)) < torch.linspace(0, 1, PIXELS)).float()
    family.begin({"image": pictures(ink)})
    shares = (ink.sum(0) + 1) / 502  # one more with ink and one without, so that no pixel is certain
    with torch.no_grad():
        found = family.network(torch.zeros(1, *SHAPE)).sigmoid().flatten()
    assert torch.allclose(found, shares, atol=1e-6)


@torch.no_grad()
def test_a_sample_depends_on_its_number_the_seed_and_the_label_alone(network: dict[str, Any]) -> None:
    family = make(network, num_classes=3, conditional=True)
    whole = family.sample(40, 7, sampler())
    assert torch.equal(family.sample(40, 7, sampler(batch_size=3)), whole)
    assert torch.equal(family.sample(24, 7, sampler(), first=16), whole[16:])
    assert not torch.equal(family.sample(40, 8, sampler()), whole)
    assert family.sample_labels(5, sampler(), first=1).tolist() == [1, 2, 0, 1, 2]  # type: ignore[union-attr]
    only = family.sample(40, 7, sampler(label=1))
    assert torch.equal(only[1::3], whole[1::3])
    assert not torch.equal(only, whole)
    assert set(whole.unique().tolist()) <= {0.0, 1.0}


@torch.no_grad()
def test_completions_keep_what_is_known_and_draw_the_rest_given_that() -> None:
    """A quarter of the picture against p(rest | known) from the probabilities of all pictures."""
    family = make({"kind": "nade", "hidden": 5}, spread=1.0)
    known = torch.zeros(2, 4, dtype=torch.bool)
    known[0] = True
    given = torch.tensor([1.0, 0, 1, 1, 0, 0, 0, 0])
    count = 4000
    drawn = family.complete(pictures(given).expand(count, -1, -1, -1), known, 3, sampler()).flatten(1)
    assert torch.equal(drawn[:, :4], given[:4].expand(count, -1))
    x = all_pictures()
    x = x[(x[:, :4] == given[:4]).all(1)]
    weights = (-family.nats(x.view(-1, *SHAPE), None)).exp()
    expected = weights / weights.sum()
    found = torch.bincount((drawn[:, 4:] @ torch.tensor([8.0, 4, 2, 1])).long(), minlength=16) / count
    assert ((found - expected).abs() <= 3 * (expected * (1 - expected) / count).sqrt()).all()
    again = family.complete(pictures(given).expand(16, -1, -1, -1), known[None], 3, sampler(batch_size=5), first=8)
    assert torch.equal(again.flatten(1), drawn[8:24])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"known": torch.ones(4, 2, dtype=torch.bool)}, r"known is torch.bool \(4, 2\), expected torch.bool of shape \(1, 2, 4\)"),
        ({"known": torch.ones(2, 4)}, "known is torch.float32"),
        ({"images": torch.zeros(3, 1, 2, 5, dtype=torch.uint8)}, r"images are torch.uint8 \(3, 1, 2, 5\)"),
        ({"images": torch.zeros(3, *SHAPE)}, "images are torch.float32"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "trained without classes"),
    ],
)
def test_what_cannot_be_completed_is_told(values: dict[str, Tensor], message: str) -> None:
    usual = {"images": torch.zeros(3, *SHAPE, dtype=torch.uint8), "known": torch.ones(2, 4, dtype=torch.bool)}
    with pytest.raises(UserError, match=message):
        make(NETWORKS["fvsbn"]).complete(**(usual | values), seed=0, sampler=sampler())  # type: ignore[arg-type]


@pytest.mark.parametrize(("labels", "message"), [([0, 1, 7], "holds 7, expected 0 to 2 for num_classes=3"), ([1], "1 labels for 3 images")])
def test_classes_of_completions_are_looked_at(labels: list[int], message: str) -> None:
    family = make(NETWORKS["fvsbn"], conditional=True, num_classes=3)
    images, known = torch.zeros(3, *SHAPE, dtype=torch.uint8), torch.ones(2, 4, dtype=torch.bool)
    with pytest.raises(UserError, match=message):
        family.complete(images, known, 0, sampler(), labels=torch.tensor(labels))


def train(family: Autoregressive, ink: Tensor, steps: int, lr: float) -> None:
    """On all rows at each step, with a falling learning rate: what maximum likelihood comes to, without noise of its own."""
    optimizer = torch.optim.Adam(family.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    batch = {"image": pictures(ink)}
    for _ in range(steps):
        optimizer.zero_grad()
        family.loss("pixels", batch, context(len(ink))).loss.backward()
        optimizer.step()
        schedule.step()


def population_nats(family: Autoregressive, probabilities: Tensor) -> float:
    with torch.no_grad():
        return float((probabilities * family.nats(all_pictures().view(-1, *SHAPE), None)).sum())


def drawn_from(probabilities: Tensor, count: int) -> Tensor:
    return all_pictures()[torch.multinomial(probabilities, count, replacement=True, generator=torch.Generator().manual_seed(1))]


@pytest.mark.parametrize("source", ["independent pixels", "a random FVSBN"])
def test_trained_nats_reach_the_entropy_and_never_fall_below_it(network: dict[str, Any], source: str) -> None:
    if source == "independent pixels":
        p = torch.linspace(0.1, 0.9, PIXELS, dtype=torch.float64)
        probabilities = torch.where(all_pictures() > 0, p, 1 - p).prod(1)
    else:
        with torch.no_grad():
            probabilities = (-make(NETWORKS["fvsbn"], spread=1.0).nats(all_pictures().view(-1, *SHAPE), None)).exp()
    entropy = float(-(probabilities * probabilities.log()).sum())
    family = make(network, spread=0.05).train()
    train(family, drawn_from(probabilities, 4_000), 200, 0.1)
    assert entropy <= population_nats(family, probabilities) <= 1.01 * entropy


@torch.no_grad()
def test_grey_values_have_a_head_of_256_logits() -> None:
    """Its likelihood, its draws and its values by their definitions."""
    head = Categorical()
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    values = head.values(images)
    assert values.aminmax() == (-1, 1)
    assert torch.equal((head.pictures(values) * 255).round().to(torch.uint8), images)
    logits = torch.randn(1, 256, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    log_p = logits.double().log_softmax(1)
    expected = torch.stack([-log_p[0, level, 0, level // 16, level % 16] for level in range(256)])
    assert torch.allclose(head.nats(logits, values).flatten().double(), expected, atol=1e-5)
    alike = logits[:, :, :, :1, :1].expand(-1, -1, 1, 100, 100)
    uniform = torch.linspace(0, 1 - 1e-6, 10_000).view(1, 1, 100, 100)
    levels = ((head.pick(alike, uniform) + 1) * 127.5).round().long().flatten()
    assert (torch.bincount(levels, minlength=256) / 10_000 - log_p[0, :, 0, 0, 0].exp()).abs().max() < 3e-4
    begun = head.independent(values.expand(744, -1, -1, -1)).exp()  # each level once more than it was seen, of 1,000
    assert begun[5, 0, 0, 5].item() == pytest.approx(0.745)
    assert begun[6, 0, 0, 5].item() == pytest.approx(0.001)


def test_without_a_threshold_pictures_hold_ink_or_none() -> None:
    head = Binary(None)
    ink = torch.tensor([0, 1, 1, 0])
    for most in (1, 255):
        assert head.values((most * ink).to(torch.uint8)).tolist() == ink.tolist()
    assert head.values(torch.zeros(3, dtype=torch.uint8)).tolist() == [0, 0, 0]
    for strange, told in (([0, 7, 255], "7, 255"), ([0, 1, 255], "1, 255"), ([2, 2], "2")):
        with pytest.raises(UserError, match=f"these hold {told}; set model.threshold=127"):
            head.values(torch.tensor(strange, dtype=torch.uint8))


def test_pictures_without_any_ink_are_told_before_training() -> None:
    family = make(NETWORKS["fvsbn"])
    with pytest.raises(UserError, match=r"no pixel of the first 5 pictures is above threshold=127, the largest is 1; .* set it to null"):
        family.begin({"image": torch.ones(5, *SHAPE, dtype=torch.uint8)})
    make(NETWORKS["fvsbn"], threshold=None).begin({"image": torch.ones(5, *SHAPE, dtype=torch.uint8)})


@pytest.mark.parametrize(
    "network", [NETWORKS["nade"], {"kind": "gated_pixelcnn", "width": 4, "blocks": 1, "hidden": 4}], ids=["nade", "pixelcnn"]
)
def test_a_start_keeps_its_biases(network: dict[str, Any]) -> None:
    """A model that starts from a trained one does not begin anew from its own first rows."""
    trained, fresh = (Autoregressive(AutoregressiveConfig.parse({"image_size": SHAPE[1:], "network": network}, "test")) for _ in range(2))
    rows = {"image": pictures(all_pictures()[100:120])}
    trained.begin(rows)
    for parameter in trained.parameters():
        parameter.data += 0.5
    fresh.adopt("start", trained)
    fresh.begin({"image": pictures(all_pictures()[:5])})
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in trained.state_dict().items())


def test_fit_takes_shape_and_classes_from_the_data() -> None:
    fitted = Autoregressive.fit(AutoregressiveConfig(), shape_of())
    assert (fitted.shape, fitted.num_classes) == (SHAPE, 0)  # type: ignore[attr-defined]
    assert Autoregressive.fit(AutoregressiveConfig(conditional=True), shape_of()).num_classes == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        (["conditional=true"], shape_of().model_copy(update={"class_names": ()}), "conditional=true needs the names of the classes"),
        ([], shape_of(channels=3), "the pictures have 3 channels, and head=binary means one"),
        (["network.order=[1, 0, 2]"], shape_of(), "order has 3 numbers, pictures of 1 x 2 x 4 have 8 pixels"),
        (["conditional=true"], shape_of(labelled=False), "conditional=true needs a column 'label'"),
    ],
)
def test_data_that_a_model_cannot_take_is_told(options: list[str], data: DataShape, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Autoregressive.fit(override(AutoregressiveConfig(), options), data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["network.order=[1, 1, 2]"], "order has 3 numbers, which are not each of 0 to 2 once"),
        (["network.order=spiral"], "network.order='spiral' is not valid: expected raster, random or a list"),
        (["network.order_seed=3"], "order_seed=3 has no effect with order=raster"),
        (["network.kind=made", "network.order_agnostic=true"], "order_agnostic=true has no effect with masks=1"),
        (["network.kind=made", "network.hidden=[4, 0]"], "must have at least one unit in each layer"),
        (["network.kind=nade", "network.masks=2"], "unknown key 'network.masks'"),
        (["network.kind=nade", "head=categorical"], "network.kind=nade is for head=binary, not categorical"),
        (["threshold=255"], "less than 255"),
        (["network.kind=nad"], "did you mean 'nade'"),
    ],
)
def test_options_that_do_not_go_together_are_told(options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        override(AutoregressiveConfig(), options)


def test_what_a_binary_model_does_not_have_is_told() -> None:
    family = make(NETWORKS["nade"], num_classes=3, conditional=True)
    with pytest.raises(UserError, match="knows ink alone, not 8-bit numbers"):
        family.bits_per_dim(torch.zeros(1, *SHAPE, dtype=torch.uint8), context(1))
    with pytest.raises(UserError, match="label=3: the model knows 3 classes"):
        family.sample(1, 0, sampler(label=3))
    with pytest.raises(UserError, match="without classes"):
        make(NETWORKS["nade"]).sample(1, 0, sampler(label=0))
    with pytest.raises(UserError, match="holds 3, expected 0 to 2"):
        family.evaluate({"image": torch.zeros(1, *SHAPE, dtype=torch.uint8), "label": torch.tensor([3])}, context(1))
