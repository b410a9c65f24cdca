"""The detector's networks and their weights, against the layers and the weights that they come from."""

from __future__ import annotations

import io
import zipfile

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from components.faces.weights import load_cascade, read_wheel
from components.networks.mtcnn import Cascade
from tests.faces.samples import wheel


@pytest.mark.parametrize(("name", "count"), [("pnet", 6_632), ("rnet", 100_178), ("onet", 389_040)])
def test_parameter_counts(name: str, count: int) -> None:
    assert sum(p.numel() for p in getattr(Cascade(), name).parameters()) == count


def test_shapes() -> None:
    cascade = load_cascade()
    faces, edges = cascade.pnet(torch.zeros(2, 3, 31, 12))
    assert faces.shape == (2, 11, 1)
    assert edges.shape == (2, 11, 1, 4)
    assert [tuple(x.shape) for x in cascade.rnet(torch.zeros(3, 3, 24, 24))] == [(3,), (3, 4)]
    assert [tuple(x.shape) for x in cascade.onet(torch.zeros(3, 3, 48, 48))] == [(3,), (3, 4), (3, 5, 2)]
    assert [len(x) for x in cascade.onet(torch.zeros(0, 3, 48, 48))] == [0, 0, 0]


def test_a_proposal_is_that_of_its_window_alone() -> None:
    pnet = load_cascade().pnet
    image = torch.rand(1, 3, 40, 33, generator=torch.Generator().manual_seed(0)) * 2 - 1
    faces, edges = pnet(image)
    for row, column in ((0, 0), (3, 5), (7, 2)):
        face, edge = pnet(image[:, :, 2 * row : 2 * row + 12, 2 * column : 2 * column + 12])
        torch.testing.assert_close(face[0, 0, 0], faces[0, row, column])
        torch.testing.assert_close(edge[0, 0, 0], edges[0, row, column])


def test_the_shipped_weights_are_those_of_the_wheel() -> None:
    ours, theirs = load_cascade().state_dict(), read_wheel(wheel("RAYMILL_FACENET_WHEEL"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_networks_compute_what_those_of_the_wheel_do() -> None:
    cascade = load_cascade()
    with zipfile.ZipFile(wheel("RAYMILL_FACENET_WHEEL")) as files:
        weights = {
            name: torch.load(io.BytesIO(files.read(f"facenet_pytorch/data/{name}.pt")), weights_only=True)
            for name, _ in cascade.named_children()
        }
    generator = torch.Generator().manual_seed(0)
    small, large = (torch.rand(5, 3, side, side, generator=generator) * 2 - 1 for side in (24, 48))

    x = convolved(small, weights["pnet"], pools=[2])
    expected = [F.conv2d(x, *layer(weights["pnet"], name)) for name in ("conv4_1", "conv4_2")]
    agree(cascade.pnet(small), (expected[0].softmax(1)[:, 1], expected[1].permute(0, 2, 3, 1)))

    x = flattened(convolved(small, weights["rnet"], pools=[3, 3]), weights["rnet"], 4)
    expected = [F.linear(x, *layer(weights["rnet"], name)) for name in ("dense5_1", "dense5_2")]
    agree(cascade.rnet(small), (expected[0].softmax(1)[:, 1], expected[1]))

    x = flattened(convolved(large, weights["onet"], pools=[3, 3, 2]), weights["onet"], 5)
    expected = [F.linear(x, *layer(weights["onet"], name)) for name in ("dense6_1", "dense6_2", "dense6_3")]
    agree(cascade.onet(large), (expected[0].softmax(1)[:, 1], expected[1], torch.stack([expected[2][:, :5], expected[2][:, 5:]], 2)))


def layer(weights: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def convolved(x: Tensor, weights: dict[str, Tensor], pools: list[int]) -> Tensor:
    for number in range(1, 5):
        if f"prelu{number}.weight" not in weights or f"conv{number}.weight" not in weights:
            break
        x = F.prelu(F.conv2d(x, *layer(weights, f"conv{number}")), weights[f"prelu{number}.weight"])
        if number <= len(pools):
            x = F.max_pool2d(x, pools[number - 1], 2, ceil_mode=True)
    return x


def flattened(x: Tensor, weights: dict[str, Tensor], number: int) -> Tensor:
    """Columns first: the pictures were read so when the weights were trained."""
    x = F.linear(x.permute(0, 3, 2, 1).flatten(1), *layer(weights, f"dense{number}"))
    return F.prelu(x, weights[f"prelu{number}.weight"])


def agree(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
