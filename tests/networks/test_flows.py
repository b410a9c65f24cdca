"""Flows and their layers against inverses, Jacobians by autograd, integrals, their definitions and zuko."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from benchmarks.flow_models import zuko_model
from components.networks.actnorm import ActNorm
from components.networks.bijection import BijectionChain, Logit, draw_latents, prior_log_prob
from components.networks.glow import GlowConfig, InvertibleConv
from components.networks.multiscale import level_shapes, merge, split, squeeze, unsqueeze
from components.networks.nice import Centring, LinearBeside, NICEConfig, Scaling
from components.networks.realnvp import RealNVPConfig
from components.training.randomness import Draws
from tests.networks.flows import LAYERS, STACKS, layer, moved, rows, stack

BOTH = [*((layer, name) for name in LAYERS), *((stack, name) for name in STACKS)]
PRECISIONS = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.fixture(params=BOTH, ids=lambda param: param[1])
def flow(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[int, ...]]:
    make, name = request.param
    return make(name)


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_inverses_both_ways(flow: tuple[nn.Module, tuple[int, ...]], dtype: torch.dtype) -> None:
    module, shape = flow[0].to(dtype), flow[1]
    x = rows(16, shape).to(dtype)
    with torch.no_grad():
        z, log_det = module(x)
        latents = z[torch.randperm(16, generator=torch.Generator().manual_seed(2))] * 0.9
        there = module(module.inverse(latents))[0]
    assert (module.inverse(z) - x).abs().max() < PRECISIONS[dtype]
    assert (there - latents).abs().max() < PRECISIONS[dtype] * max(1.0, float(latents.abs().max()))
    assert log_det.shape == (16,)
    assert log_det.dtype == dtype


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_log_determinants_are_those_of_the_jacobian_row_by_row(flow: tuple[nn.Module, tuple[int, ...]], dtype: torch.dtype) -> None:
    module, shape = flow[0].to(dtype), flow[1]
    x = rows(3, shape).to(dtype)
    log_det = module(x)[1].detach()
    for row, found in zip(x, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda one: module(one[None])[0][0], row)
        expected = torch.linalg.slogdet(jacobian.reshape(row.numel(), row.numel()).double()).logabsdet
        assert abs(float(found) - float(expected)) < PRECISIONS[dtype] * max(1.0, abs(float(expected)))


@pytest.mark.parametrize("config", [NICEConfig(width=16, layers=2), RealNVPConfig(width=16), GlowConfig(width=16, steps=3)])
def test_densities_of_the_plane_integrate_to_one(config: NICEConfig | RealNVPConfig | GlowConfig) -> None:
    network = moved(lambda: config.build((2,), BijectionChain())).double()
    side = torch.linspace(-12, 12, 401, dtype=torch.float64)
    with torch.no_grad():
        density = network.log_prob(torch.cartesian_prod(side, side)).exp()
    assert abs(float(density.sum() * (side[1] - side[0]) ** 2) - 1) < 1e-4


def test_the_log_determinant_of_nice_is_the_sum_of_its_scales() -> None:
    network, shape = stack("nice of points")
    couplings, scaling = network.chain[4], network.chain[5]
    x = rows(8, shape)
    assert torch.equal(couplings(x)[1], torch.zeros(8))
    assert not torch.equal(couplings(x)[0], x)
    assert torch.equal(network(x)[1], scaling.log_scale.sum().expand(8))


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_squeeze_and_split_come_back(factor: int) -> None:
    x = torch.arange(2 * 2 * 12 * 24, dtype=torch.float32).view(2, 2, 12, 24)
    squeezed = squeeze(x, factor)
    assert squeezed.shape == (2, 2 * factor**2, 12 // factor, 24 // factor)
    assert torch.equal(squeezed[:, 0], x[:, 0, ::factor, ::factor])
    assert torch.equal(unsqueeze(squeezed, factor), x)
    assert torch.equal(merge(*split(squeezed)), squeezed)


@pytest.mark.parametrize("factor", [2, 4])
def test_the_colours_of_a_checkerboard(factor: int) -> None:
    """What RealNVP's first coupling of a level keeps are the squares of one colour."""
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2
    network = RealNVPConfig(squeezes=(factor,), couplings=2, width=4).build((1, 8, 8), BijectionChain())
    permutation, first, second, back, *by_channel = network.chain[1].levels[0]
    ordered = permutation(squeeze(board[None, None].float(), factor))[0]
    for colour, part in enumerate(ordered.split(first[1].parts, dim=1)):
        assert (part == colour).all()
        assert part.numel() == 32
    assert [step[1].keeps_first for step in (first, second, *by_channel)] == [True, False] * 2
    assert torch.equal(back(ordered)[0], squeeze(board[None, None].float(), factor))


def test_one_level_after_another() -> None:
    assert level_shapes((1, 28, 28), (2, 2)) == [(4, 14, 14), (8, 7, 7)]
    assert level_shapes((3, 28, 28), (4, 1)) == [(48, 7, 7), (24, 7, 7)]


@pytest.mark.parametrize(
    ("shape", "squeezes", "message"),
    [
        ((1, 28, 27), (2,), r"cannot divide 28 x 27 pixels by 2 \(level 1 of pictures of 28 x 27\)"),
        ((1, 28, 28), (2, 2, 2), r"cannot divide 7 x 7 pixels by 2 \(level 3 of pictures of 28 x 28\)"),
        ((1, 28, 28), (1,), "one channel, which has no two parts"),
        ((2,), (2, 2), r"squeezes=\[2, 2\] has no effect on points"),
        ((1,), (4,), "no two parts"),
    ],
)
def test_shapes_that_do_not_fit(shape: tuple[int, ...], squeezes: tuple[int, ...], message: str) -> None:
    for config in (GlowConfig(squeezes=squeezes), RealNVPConfig(squeezes=squeezes)):
        with pytest.raises(ValueError, match=message):
            config.require_shape(shape)


def test_squares_of_an_odd_side_have_no_checkerboard() -> None:
    with pytest.raises(ValueError, match=r"squeezes=\[2, 7\]: squares of side 7 have no checkerboard; choose even sides, or kind=glow"):
        RealNVPConfig(squeezes=(2, 7)).require_shape((1, 28, 28))
    GlowConfig(squeezes=(2, 7)).require_shape((1, 28, 28))


@pytest.mark.parametrize("name", ["nice of points", "glow, three levels", "realnvp"])
def test_a_whole_flow_begins_where_all_its_layers_give_normal_data(name: str) -> None:
    (network, shape), seen = stack(name), []
    for module in network.modules():
        if isinstance(module, (ActNorm, Centring, Scaling)):
            module.register_forward_hook(
                lambda module, inputs, output: seen.append((module, output[0].detach().transpose(0, 1).flatten(1)))
            )
    x = rows(256, shape)
    with torch.no_grad():
        network.initialize(x)
        seen.clear()
        network(x)
    assert len(seen) >= 2
    for module, values in seen:
        assert values.mean(1).abs().max() < 1e-5 or isinstance(module, Scaling)
        assert (values.std(1, correction=0) - 1).abs().max() < 1e-5 or isinstance(module, Centring)


def test_first_rows_come_out_normal_and_later_ones_change_nothing() -> None:
    layer, x = ActNorm(3), rows(64, (3, 4, 4)) * torch.tensor([1.0, 30.0, 0.3]).view(3, 1, 1) + 2
    first = layer.initialize(x)
    assert first.mean((0, 2, 3)).abs().max() < 1e-5
    assert (first.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    second = layer.initialize(x + 3)
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())
    assert torch.equal(second, layer(x + 3)[0])


@pytest.mark.parametrize("name", STACKS)
def test_a_loaded_flow_does_not_begin_anew(name: str) -> None:
    (network, shape), (loaded, _) = stack(name), stack(name, seed=2)
    network.initialize(rows(64, shape))
    loaded.load_state_dict(network.state_dict())
    shifted = rows(64, shape, seed=5) * 0.5
    loaded.initialize(shifted)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in network.state_dict().items())
    for mine, theirs in zip(network(shifted), loaded(shifted), strict=True):
        assert torch.equal(mine, theirs)
    assert any(name.endswith("initialized") for name in network.state_dict())


def test_a_matrix_of_negative_determinant_has_a_logarithm() -> None:
    signs = set()
    for size in (2, 3, 4, 5):
        layer = InvertibleConv(size)
        matrix = layer(torch.eye(size))[0].T.detach()
        found, expected = layer(torch.zeros(1, size))[1].detach(), torch.linalg.slogdet(matrix)
        signs.add(float(expected.sign))
        assert (matrix @ matrix.T - torch.eye(size)).abs().max() < 1e-5, "it begins as a rotation or a reflection"
        assert abs(float(found) - float(expected.logabsdet)) < 1e-6
    assert signs == {-1.0, 1.0}


@pytest.mark.parametrize("name", ["glow", "realnvp"])
def test_under_autocast_what_is_inverted_is_exact(name: str) -> None:
    network, shape = stack(name)
    x = rows(8, shape)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        z, log_det = network(x)
        assert z.dtype == log_det.dtype == torch.float32
        assert (network.inverse(z) - x).abs().max() < 0.05, "the networks of couplings see other last bits of bfloat16"
    conv = InvertibleConv(6)
    latents = torch.randn(4, 6, 3, 3)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert (conv.inverse(conv(latents)[0]) - latents).abs().max() < 1e-5


@pytest.mark.parametrize("name", STACKS)
def test_gradients_from_outputs_are_those_of_plain_backpropagation(name: str) -> None:
    gradients = []
    for from_outputs in (False, True):
        network, shape = stack(name, from_outputs=from_outputs)
        network.double().log_prob(rows(6, shape).double()).sum().backward()
        gradients.append({key: parameter.grad for key, parameter in network.named_parameters()})
    for key, gradient in gradients[0].items():
        assert gradient is not None
        assert (gradients[1][key] - gradient).abs().max() < 1e-8 * max(1.0, float(gradient.abs().max()))


def test_the_uniform_density() -> None:
    """A logistic prior behind the logit of the numbers themselves is the uniform density."""
    network = NICEConfig(width=4, layers=1).build((1, 2, 2), BijectionChain(Logit(0.0))).double()
    assert network.log_prob(rows(8, (1, 2, 2)).double()).abs().max() < 1e-12


@pytest.mark.parametrize(("prior", "oracle"), [("normal", torch.distributions.Normal(0, 1)), ("logistic", None)])
def test_priors(prior: str, oracle: torch.distributions.Distribution | None) -> None:
    if oracle is None:
        uniform = torch.distributions.Uniform(torch.zeros(()).double(), torch.ones(()).double(), validate_args=False)
        oracle = torch.distributions.TransformedDistribution(uniform, [torch.distributions.SigmoidTransform().inv])
    z = draw_latents(prior, Draws(0, 0, "x", 0, torch.device("cpu")), (20_000, 3))
    assert torch.isfinite(z).all()
    assert abs(float(z.mean())) < 0.03
    assert abs(float(z.std()) - (1.0 if prior == "normal" else math.pi / math.sqrt(3))) < 0.03
    assert (prior_log_prob(prior, z[:99].double()) - oracle.log_prob(z[:99].double()).sum(1)).abs().max() < 1e-9


def test_the_logit_is_torchs() -> None:
    x = rows(4, (1, 2, 3))
    found, log_det = Logit(0.05)(x)
    squeezed = (0.05 + 0.9 * x).double()
    assert (found - squeezed.logit()).abs().max() < 1e-5
    expected = (0.9 / (squeezed * (1 - squeezed))).log().flatten(1).sum(1)
    assert (log_det - expected).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["nice of points", "realnvp of points", "glow of points", "glow, shifts alone"])
def test_zuko_gives_the_same_log_probabilities(name: str) -> None:
    network, shape = stack(name)
    for module in network.modules():
        if isinstance(module, LinearBeside):  # which zuko's networks have not
            nn.init.zeros_(module.linear.weight)
    x = 3 * torch.randn(32, *shape, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        theirs = zuko_model(network, *shape).log_prob(x)
        assert (network.log_prob(x) - theirs).abs().max() < 1e-5 * max(1.0, float(theirs.abs().max()))
