"""Flows as a family: what data they learn from, what their likelihood counts, how they begin, and what they draw."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from components.config import merge, override
from components.data.dataset import Dataset
from components.errors import UserError
from components.evaluation.likelihood import evaluate_likelihood
from components.families.contract import Column, DataShape
from components.families.flow import ALPHA, Flow, FlowConfig, FlowSampler
from components.networks.bijection import FlowNetwork
from components.training.communication import Communication
from components.training.context import Context
from components.training.randomness import Draws

CPU = torch.device("cpu")
GLOW = {"kind": "glow", "squeezes": (2, 1), "steps": 2, "width": 8}


def make(shape: tuple[int, ...] = (1, 8, 8), **network: Any) -> Flow:
    """A small flow in evaluation mode, whose layers are not the identity."""
    torch.manual_seed(0)
    options = GLOW if len(shape) == 3 else {"kind": "realnvp", "width": 16}
    alpha = 0.001 if len(shape) == 3 else None
    family = Flow(FlowConfig.parse({"shape": shape, "alpha": alpha, "network": network or options}, "test"))
    for parameter in family.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return family.eval().requires_grad_(False)


def images(rows: int, shape: tuple[int, ...] = (1, 8, 8)) -> Tensor:
    return torch.randint(256, (rows, *shape), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def context(rows: int, first_row: int = 0, seed: int = 0) -> Context:
    return Context(0, "flow", Draws(seed, 0, "flow", first_row, CPU), rows, rows, Communication())


def data_of(**columns: Column) -> DataShape:
    return DataShape(columns=columns)


def test_the_data_decides_the_shape() -> None:
    picture, point = Column(dtype="uint8", shape=(3, 8, 12)), Column(dtype="float32", shape=(3,))
    assert Flow.fit(FlowConfig(), data_of(image=picture)).shape == (3, 8, 12)
    assert Flow.fit(FlowConfig(), data_of(image=picture)).alpha == ALPHA, "a model folder says all"
    assert Flow.fit(FlowConfig(alpha=0.05), data_of(image=picture)).alpha == 0.05
    assert Flow.fit(FlowConfig(), data_of(point=point)).shape == (3,)
    with pytest.raises(UserError, match="expected 'image' or 'point'"):
        Flow.fit(FlowConfig(), data_of(label=Column(dtype="int64")))


@pytest.mark.parametrize(
    ("shape", "values", "message"),
    [
        ((1, 28, 30), {}, r"rows of 1 x 28 x 30: squeezes=\[4\] cannot divide 28 x 30 pixels by 4"),
        ((1, 27, 28), {"network": {"kind": "realnvp", "squeezes": [2]}}, "choose factors that divide both sides, or kind=nice"),
        ((2,), {"alpha": 0.1}, "alpha=0.1 has no effect on points"),
        ((1,), {"network": {"kind": "nice"}}, "no two parts"),
    ],
)
def test_data_that_do_not_fit(shape: tuple[int, ...], values: dict[str, Any], message: str) -> None:
    column = Column(dtype="uint8" if len(shape) == 3 else "float32", shape=shape)
    with pytest.raises(UserError, match=message):
        Flow.fit(merge(FlowConfig(), values, "test"), data_of(**{"image" if len(shape) == 3 else "point": column}))


def test_another_kind_of_network_begins_anew() -> None:
    config = override(FlowConfig(), ["network.layers=7", "network.kind=nice"])  # in any order
    assert config == merge(FlowConfig(), {"network": {"kind": "nice", "layers": 7}}, "test")
    assert config.network.kind == "nice"
    assert override(config, ["network.kind=nice"]) == config
    with pytest.raises(UserError, match=r"command line: network.kind=nicee is not known; did you mean 'nice'\?"):
        override(FlowConfig(), ["network.kind=nicee"])
    for options in (["network.kind=nice", "network.steps=3"], ["network.steps=3", "network.kind=nice"]):
        with pytest.raises(UserError, match=r"unknown key 'network.steps'"):
            override(FlowConfig(), options)
    with pytest.raises(UserError, match=r"file: unknown key 'network.layer'; did you mean 'layers'\?"):
        merge(FlowConfig(), {"network": {"kind": "nice", "layer": 7}}, "file")
    with pytest.raises(UserError, match=r"network.width=0 is not valid"):
        override(FlowConfig(), ["network.width=0"])


class Uniform(FlowNetwork):
    """Of numbers in [0, 1]."""

    def log_prob(self, x: Tensor, random: Draws | None = None) -> Tensor:
        assert ((x >= 0) & (x < 1)).all()
        return x.new_zeros(len(x))


def test_a_uniform_density_needs_eight_bits() -> None:
    family = make()
    family.network = Uniform()
    batch = images(16)
    assert family.bits_per_dim(batch, context(16)).tolist() == pytest.approx([8.0] * 16, rel=1e-15)
    scores = {name: float(total / count) for name, (total, count) in family.evaluate({"image": batch}, context(16)).items()}
    assert scores == pytest.approx({"nats": 64 * math.log(256), "bits_per_dim": 8.0}, rel=1e-15)


def test_bits_are_nats_of_dequantized_pictures() -> None:
    """-log2 of the density of (x + u) / 256, whose cells are 1 / 256 wide: the noise is divided once, and each row counts alone."""
    family, batch = make(), images(16)
    uniform = Draws(0, 0, "flow", 0, CPU).uniform("dequantization", tuple(batch.shape))
    nats = -family.network.log_prob((batch + uniform) / 256).double()
    bits = family.bits_per_dim(batch, context(16))
    assert (bits - (nats / 64 + math.log(256)) / math.log(2)).abs().max() < 1e-5
    output = family.train().loss("flow", {"image": batch}, context(16))
    assert abs(output.loss.item() * 64 - float(nats.mean())) < 1e-3
    assert abs(output.metrics["bits_per_dim"].item() - float(bits.mean())) < 1e-5


def test_likelihood_of_a_data_set(small_data_folders: dict[str, Path]) -> None:
    data = Dataset.open(str(small_data_folders["images"]), "test")
    family = make((1, 28, 28), **GLOW)
    found = evaluate_likelihood(family, data, 32, 64, seed=1)
    pictures = torch.from_numpy(data.take(torch.arange(64).numpy())["image"])
    expected = family.bits_per_dim(pictures, Context(0, "likelihood", Draws(1, 0, "likelihood", 0, CPU), 64, 64, Communication()))
    assert found["rows"] == 64
    assert abs(found["bits_per_dim"] - float(expected.mean())) < 1e-5


@pytest.mark.parametrize("shape", [(1, 8, 8), (3,)])
def test_samples_are_temperate_latents_decoded(shape: tuple[int, ...]) -> None:
    family = make(shape)
    latents = Draws(3, 0, "sample", 0, CPU).normal("latent", (20, *shape))
    for temperature in (1.0, 0.5):
        found = family.sample(20, 3, FlowSampler(temperature=temperature, batch_size=20))
        assert torch.equal(found, family.decode_latents(temperature * latents))
        again = family.sample(20, 3, FlowSampler(temperature=temperature, batch_size=3))
        assert (found - again).abs().max() < 1e-5
        assert (family.sample(4, 3, FlowSampler(temperature=temperature), first=16) - found[16:]).abs().max() < 1e-5
    assert not torch.equal(family.sample(20, 3, FlowSampler()), found)


def test_samples_follow_the_density() -> None:
    """Of a flow of points: the mean of -log p over its own samples is the entropy that another half of them gives."""
    family = make((2,))
    nats = -family.network.log_prob(family.sample(20_000, 0, FlowSampler()))
    latents = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(7))
    expected = -family.network.log_prob(family.network.inverse(latents))
    assert abs(float(nats.mean() - expected.mean())) < 4 * float(nats.std()) / math.sqrt(10_000)


def test_latents_come_back_and_are_joined() -> None:
    family = make()
    a, b = images(6).float() / 255, images(12)[6:].float() / 255
    assert (family.decode_latents(family.encode(a)) - a).abs().max() < 1e-4
    between = family.interpolate(a, b, (0.0, 0.4, 1.0))
    assert between.shape == (3, 6, 1, 8, 8)
    assert (between[0] - a).abs().max() < 1e-4
    assert (between[2] - b).abs().max() < 1e-4
    assert ((between[1] - a).abs().max() > 0.01) & ((between[1] - b).abs().max() > 0.01)


@pytest.mark.parametrize("kind", ["glow", "realnvp", "nice"])
def test_a_start_keeps_what_it_began_with(kind: str) -> None:
    """A flow that starts from a trained one has its statistics, and does not begin anew from its own first rows."""
    (trained, fresh), batch = (make((4,), kind=kind, width=8) for _ in range(2)), torch.randn(64, 4)
    trained.begin({"point": batch})
    fresh.adopt("start", trained)
    fresh.begin({"point": 5 * batch + 3})
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in trained.state_dict().items())
