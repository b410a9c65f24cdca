"""Masks, exact probabilities by enumeration, and drawing from caches, of both PixelCNNs."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

from components.networks.pixelcnn import GatedBlock, GatedPixelCNN, GatedPixelCNNConfig, PixelCNN, PixelCNNConfig, RasterConfig
from components.networks.raster import RowsAbove, RowSoFar, colours_of

KINDS: tuple[type[RasterConfig], ...] = (PixelCNNConfig, GatedPixelCNNConfig)
SMALL = {"width": 12, "blocks": 2, "hidden": 16, "first_kernel": 3}


@pytest.fixture(params=KINDS, ids=["plain", "gated"])
def config(request: pytest.FixtureRequest) -> RasterConfig:
    return request.param(**SMALL)


def built(
    config: RasterConfig, shape: tuple[int, int, int], num_classes: int = 0, parameters: int = 1, seed: int = 0
) -> PixelCNN | GatedPixelCNN:
    """A network with weights large enough that pixels matter to one another."""
    torch.manual_seed(seed)
    network = config.build(shape, num_classes, parameters)
    for name, parameter in network.named_parameters():
        if name.endswith(("bias", "bias.weight", "places")):
            nn.init.normal_(parameter)
        elif name.startswith("head.outward"):
            parameter.data *= 4
    return network


def ink(parameters: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    return (uniform < parameters[:, 0].sigmoid()).to(uniform.dtype)


def all_pictures() -> torch.Tensor:
    """All 512 binary pictures of 3 x 3."""
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=9))).view(-1, 1, 3, 3)


def log_prob(network: nn.Module, x: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
    return -F.binary_cross_entropy_with_logits(network(x, labels)[:, 0], x, reduction="none").flatten(1).sum(1)


@pytest.mark.parametrize("own", [False, True])
def test_two_kernels_without_zeros_equal_one_masked_kernel(own: bool) -> None:
    above, so_far = RowsAbove(4, 6, 2, 5, own=False).double(), RowSoFar(colours_of(4, 1), colours_of(6, 1), 3, own=own).double()
    kernel = torch.zeros(6, 4, 5, 5).double()
    kernel[:, :, :2], kernel[:, :, 2, :3] = above.weight.detach(), so_far.weight.detach()[:, :, 0]
    if not own:
        kernel[:, :, 2, 2] = 0
    x = torch.randn(2, 4, 7, 8).double()
    expected = F.conv2d(x, kernel, padding=2)
    assert torch.allclose(above(x) + so_far(x), expected, atol=1e-12)


@pytest.mark.parametrize("first", [False, True])
def test_a_gated_block_equals_the_papers_masked_convolutions(first: bool) -> None:
    config = GatedPixelCNNConfig(width=4, kernel=3, first_kernel=3)
    block = GatedBlock(config, (1, 6, 5), num_classes=0, first=first).double()
    before = 1 if first else 4
    vertical, horizontal = torch.randn(2, 2, before, 6, 5).double().unbind()
    full, line = torch.zeros(8, before, 3, 3).double(), torch.zeros(8, before, 1, 3).double()
    full[:, :, : 1 if first else 2] = block.above.weight.detach()
    line[:, :, :, :2] = block.so_far.weight.detach()
    if first:
        line[:, :, :, 1] = 0
    of_vertical, of_horizontal = nn.init.normal_(block.bias).chunk(2)
    rows = F.conv2d(vertical, full, of_vertical, padding=1)
    if block.places is not None:
        rows = rows + nn.init.normal_(block.places)
    rows = rows[:, :4].tanh() * rows[:, 4:].sigmoid()
    y = F.conv2d(horizontal, line, of_horizontal, padding=(0, 1)) + F.conv2d(rows, block.link.weight)
    out = F.conv2d(y[:, :4].tanh() * y[:, 4:].sigmoid(), block.outward.weight, block.outward.bias)
    seen, told = block((vertical, horizontal), None)
    assert torch.allclose(seen, rows, atol=1e-12)
    assert torch.allclose(told, out if first else out + horizontal, atol=1e-12)


def test_probabilities_of_all_pictures_sum_to_one(config: RasterConfig) -> None:
    for seed in range(3):
        network = built(config, (1, 3, 3), seed=seed)
        with torch.no_grad():
            assert abs(log_prob(network, all_pictures()).exp().sum().item() - 1) < 1e-5
            assert abs(log_prob(network.double(), all_pictures().double()).exp().sum().item() - 1) < 1e-12


def influence(network: nn.Module, shape: tuple[int, int, int]) -> torch.Tensor:
    """(D, D) bool in raster order, colours innermost: whether the row's number says something other when the column's changes."""
    x = torch.randn(16, *shape, requires_grad=True)  # several pictures, in one of which the rectifiers in between let it through
    parameters = network(x).permute(3, 4, 2, 0, 1).flatten(0, 2)  # (D, B, P)
    gradients = [torch.autograd.grad(each.square().sum(), x, retain_graph=True)[0] for each in parameters]
    return (torch.stack(gradients) != 0).any(1).permute(0, 2, 3, 1).flatten(1)


@pytest.mark.parametrize(("shape", "parameters"), [((1, 5, 6), 1), ((3, 4, 3), 5), ((2, 3, 4), 1)])
def test_a_number_sees_no_later_one_and_an_earlier_one(config: RasterConfig, shape: tuple[int, int, int], parameters: int) -> None:
    seen = influence(built(config, shape, parameters=parameters), shape)
    assert not seen.triu().any()
    assert seen.any(1)[1:].all()


def test_colours_see_one_another_in_their_order(config: RasterConfig) -> None:
    seen = torch.stack([influence(built(config, (3, 1, 1), seed=seed), (3, 1, 1)) for seed in range(5)]).any(0)
    assert torch.equal(seen, torch.ones(3, 3, dtype=torch.bool).tril(-1))


def test_only_the_plain_network_has_a_blind_spot() -> None:
    """Enough blocks to reach over the whole picture."""
    shape = (1, 4, 7)
    earlier = torch.ones(28, 28, dtype=torch.bool).tril(-1)
    large = SMALL | {"blocks": 6, "width": 16}
    gated, plain = (influence(built(kind(**large), shape), shape) for kind in (GatedPixelCNNConfig, PixelCNNConfig))
    assert torch.equal(gated, earlier)
    centre, upper_right = 2 * 7 + 2, 0 * 7 + 6
    assert not plain[centre, upper_right]
    assert plain[centre, 7 + 3]


def test_masks_outlast_any_change_of_weights(config: RasterConfig) -> None:
    """As an optimizer's momentum or an average makes. Masks hold in bfloat16, too."""
    network = built(config, (3, 4, 4))
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    assert not influence(network, (3, 4, 4)).triu().any()
    x = torch.randn(1, 3, 4, 4)
    other = x.clone()
    other[:, 1, 2, 1:], other[:, :, 3], other[:, 2, 2, 1] = 5.0, -5.0, 5.0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (network(each)[0, 0].permute(1, 2, 0).flatten() for each in (x, other))
    unchanged = 2 * 12 + 1 * 3 + 2  # row 2, column 1, colour 1 is the first that changes, and the next sees it
    assert torch.equal(ours[: unchanged - 1], theirs[: unchanged - 1])
    assert not torch.equal(ours[unchanged:], theirs[unchanged:])


def test_without_its_classes_it_is_the_unconditional_network_bit_for_bit(config: RasterConfig) -> None:
    conditional, plain = built(config, (1, 5, 5), num_classes=3), built(config, (1, 5, 5))
    x, labels = torch.randn(3, 1, 5, 5), torch.arange(3)
    plain.load_state_dict({name: value for name, value in conditional.state_dict().items() if "class_bias" not in name})
    assert not torch.allclose(conditional(x, labels), plain(x))
    for name, parameter in conditional.named_parameters():
        if "class_bias" in name:
            nn.init.zeros_(parameter)
    assert torch.equal(conditional(x, labels), plain(x))


def test_a_class_changes_its_own_rows_alone(config: RasterConfig) -> None:
    network, x = built(config, (1, 5, 5), num_classes=3), torch.randn(3, 1, 5, 5)
    one, other = network(x, torch.tensor([0, 1, 2])), network(x, torch.tensor([0, 1, 1]))
    assert torch.equal(one[:2], other[:2])
    assert not torch.allclose(one[2], other[2])


@pytest.mark.parametrize("known_part", [0.0, 0.5])
@pytest.mark.parametrize(("shape", "num_classes"), [((1, 6, 5), 0), ((3, 4, 3), 4)])
def test_cached_rows_tell_a_place_what_a_whole_pass_tells_it(
    config: RasterConfig, shape: tuple[int, int, int], num_classes: int, known_part: float
) -> None:
    colours, height, width = shape
    network = built(config, shape, num_classes).double()
    labels = torch.arange(4) if num_classes else None
    uniform = torch.rand(4, colours * height * width).double()
    known, given = torch.rand(shape) < known_part, (torch.rand(4, *shape) < 0.5).double()
    told: list[torch.Tensor] = []

    def pick(parameters: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        told.append(parameters.clone())
        return ink(parameters, numbers)

    drawn = network.draw(uniform, labels, given, known, pick)
    # The naive way: a pass over all that is there for each number.
    x, wanted = torch.where(known, given, 0.0), []
    with torch.no_grad():
        for row, column, colour in itertools.product(range(height), range(width), range(colours)):
            if not known[colour, row, column]:
                wanted.append(network(x, labels)[:, :, colour, row, column])
                x[:, colour, row, column] = ink(wanted[-1], uniform.view(4, *shape)[:, colour, row, column])
    assert len(told) == len(wanted) > 0
    assert max((one - other).abs().max().item() for one, other in zip(told, wanted, strict=True)) < 1e-12
    assert torch.equal(drawn, x)
    assert torch.equal(drawn[:, known], given[:, known])
    with torch.no_grad():
        passed = network(drawn, labels).permute(0, 3, 4, 2, 1)[:, ~known.permute(1, 2, 0)]
    assert torch.allclose(torch.stack(told, 1), passed, atol=1e-12)


def test_draws_follow_the_exact_probabilities(config: RasterConfig) -> None:
    network = built(config, (1, 3, 3), seed=1)
    with torch.no_grad():
        exact = log_prob(network, all_pictures()).exp()
    uniform = torch.rand(10_000, 9, generator=torch.Generator().manual_seed(0))
    drawn = network.draw(uniform, None, None, None, ink).flatten(1)
    counts = (drawn @ 2.0 ** torch.arange(8, -1, -1)).long().bincount(minlength=512)
    assert exact.max() > 4 / 512, "the test wants a network far from uniform"
    assert chi_square(counts, exact) > 1e-3


def test_completions_follow_the_exact_conditional_probabilities(config: RasterConfig) -> None:
    """The first four pixels are given: of the other five, all 32 ways."""
    network = built(config, (1, 3, 3), seed=2)
    beginning = torch.tensor([1.0, 0.0, 1.0, 1.0])
    pictures = all_pictures()
    fitting = (pictures.flatten(1)[:, :4] == beginning).all(1)
    with torch.no_grad():
        exact = log_prob(network, pictures[fitting]).exp()
    known = torch.arange(9).view(1, 3, 3) < 4
    uniform = torch.rand(10_000, 9, generator=torch.Generator().manual_seed(0))
    given = torch.cat([beginning, torch.full((5,), 9.0)]).view(1, 1, 3, 3).expand(10_000, -1, -1, -1)
    drawn = network.draw(uniform, None, given, known, ink).flatten(1)
    assert (drawn[:, :4] == beginning).all()
    counts = (drawn[:, 4:] @ 2.0 ** torch.arange(4, -1, -1)).long().bincount(minlength=32)
    assert chi_square(counts, exact / exact.sum()) > 1e-3


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    """p-value; outcomes that are expected less than five times count as one."""
    expected = probabilities.double() * counts.sum()
    common = expected >= 5
    observed, wanted = (torch.cat([each[common], each[~common].sum().view(1)]).double() for each in (counts, expected))
    filled = wanted > 0
    observed, wanted = observed[filled].numpy(), wanted[filled].numpy()
    return float(stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue)


def test_begins_with_the_mean_of_what_pixels_are_alone(config: RasterConfig) -> None:
    network = config.build((3, 4, 4), 0, 2)
    nn.init.zeros_(network.head.outward.weight)
    alone = torch.randn(2, 3, 4, 4)
    network.begin(alone)
    assert torch.allclose(network(torch.randn(1, 3, 4, 4))[0], alone.mean((2, 3), keepdim=True).expand(-1, -1, 4, 4))


@pytest.mark.parametrize("option", ["kernel", "first_kernel"])
def test_a_kernel_without_a_centre_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match="even"):
        GatedPixelCNNConfig(**{option: 4})
