"""Margin losses beside pytorch-metric-learning, closed forms and finite differences; the two ends of the cosine; slices of the classes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as peer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from components.errors import UserError
from components.functional.margins import (
    DEFAULT_MARGINS,
    SCALED,
    Margin,
    annealing_weight,
    combined_margin,
    fixed_adacos_scale,
    least_scale,
    margin_logits,
    psi,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # the peer's with numpy 2
ROWS, CLASSES, DIM = 32, 10, 8
NAMES = sorted(DEFAULT_MARGINS)
THETA = torch.linspace(0, math.pi, 100_001, dtype=torch.float64)


def margin(name: str, **options: Any) -> Margin:
    scale = {"scale": 16.0} if name in SCALED else {}
    return Margin(name, **{**scale, **DEFAULT_MARGINS[name], **options})


def problem(dtype: torch.dtype = torch.float64, rows: int = ROWS) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, class rows and targets; the cosines of the targets cover -1 to 1."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, DIM, generator=generator, dtype=torch.float64)
    w = torch.randn(CLASSES, DIM, generator=generator, dtype=torch.float64)
    targets = torch.randint(CLASSES, (rows,), generator=generator)
    x += torch.linspace(-15, 15, rows, dtype=torch.float64)[:, None] * F.normalize(w)[targets]
    return x.to(dtype).requires_grad_(), w.to(dtype).requires_grad_(), targets


def loss_and_gradients(x: Tensor, w: Tensor, targets: Tensor, chosen: Margin) -> tuple[Tensor, ...]:
    loss = F.cross_entropy(margin_logits(x, w, targets, chosen), targets)
    return (loss.detach(), *torch.autograd.grad(loss, (x, w)))


def assert_equal_to(oracle: torch.nn.Module, chosen: Margin) -> None:
    x, w, targets = problem()
    oracle.W.data = w.detach().t().contiguous()  # theirs is (D, C)
    theirs = oracle(x, targets)
    dx, dw = torch.autograd.grad(theirs, (x, oracle.W))
    for ours, expected in zip(loss_and_gradients(x, w, targets, chosen), (theirs.detach(), dx, dw.t()), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("m", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("scale", [16.0, 64.0])
def test_arcface_equals_the_peer(m: float, scale: float) -> None:
    x, w, targets = problem()
    past = F.cosine_similarity(x, w[targets]) < -math.cos(m)
    assert past.any()  # some rows are beyond pi, some are not
    assert not past.all()
    assert_equal_to(peer.ArcFaceLoss(CLASSES, DIM, margin=math.degrees(m), scale=scale), margin("arcface", m2=m, scale=scale))


@pytest.mark.parametrize("m", [0.1, 0.35])
def test_cosface_equals_the_peer(m: float) -> None:
    assert_equal_to(peer.CosFaceLoss(CLASSES, DIM, margin=m, scale=64), margin("cosface", m3=m, scale=64.0))


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_sphereface_and_l_softmax_equal_the_peer(m: int) -> None:
    assert_equal_to(peer.SphereFaceLoss(CLASSES, DIM, margin=m, scale=1), margin("sphereface", m1=m))
    assert_equal_to(peer.LargeMarginSoftmaxLoss(CLASSES, DIM, margin=m, scale=1), margin("l_softmax", m1=m))


def test_normface_and_adacos_equal_the_peer() -> None:
    assert_equal_to(peer.NormalizedSoftmaxLoss(CLASSES, DIM, temperature=1 / 16), margin("normface"))
    scale = fixed_adacos_scale(CLASSES)
    assert_equal_to(peer.NormalizedSoftmaxLoss(CLASSES, DIM, temperature=1 / scale), margin("adacos", scale=scale))


def test_the_peer_has_no_gradient_where_an_embedding_is_its_class_row() -> None:
    """The one place where we differ: theirs takes arccos of the cosine, whose slope is infinite at 1 and whose clamp lets it through."""
    oracle = peer.ArcFaceLoss(CLASSES, DIM, margin=30, scale=16)
    oracle.W.data = torch.eye(DIM, CLASSES)
    x = torch.eye(DIM).requires_grad_()
    (dx,) = torch.autograd.grad(oracle(x, torch.arange(DIM)), x)
    assert not dx.isfinite().all()


def test_softmax_is_a_linear_layer() -> None:
    x, w, targets = problem()
    bias = torch.linspace(-1, 1, CLASSES)
    torch.testing.assert_close(margin_logits(x, w, targets, Margin("softmax"), bias), x @ w.t() + bias, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["cosface", "arcface", "combined", "adacos"])
def test_zero_margins_are_normface(name: str) -> None:
    x, w, targets = problem(torch.float32)
    expected = margin_logits(x, w, targets, margin("normface"))
    assert torch.equal(margin_logits(x, w, targets, Margin(name, scale=16.0)), expected)
    assert torch.equal(margin_logits(x, w, targets, margin(name, strength=0.0)), expected)


@pytest.mark.parametrize(("name", "plain"), [("l_softmax", lambda x, w: x @ w.t()), ("sphereface", lambda x, w: x @ F.normalize(w).t())])
def test_psi_without_margin_is_plain(name: str, plain: Any) -> None:
    x, w, targets = problem()
    for chosen in (Margin(name), margin(name, strength=0.0), margin(name, annealing=1e15)):
        torch.testing.assert_close(margin_logits(x, w, targets, chosen), plain(x, w), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("name", "options"), [("cosface", {"m3": 0.35}), ("arcface", {"m2": 0.5}), ("normface", {})])
def test_combined_reduces_to_every_scaled_loss(name: str, options: dict[str, float]) -> None:
    x, w, targets = problem()
    for ours, expected in zip(
        loss_and_gradients(x, w, targets, Margin("combined", scale=16.0, **options)),
        loss_and_gradients(x, w, targets, margin(name)),
        strict=True,
    ):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("m", [1, 2, 3, 4, 7])
def test_combined_with_a_whole_m1_alone_is_psi(m: int) -> None:
    torch.testing.assert_close(combined_margin(THETA.cos(), m1=m), psi(THETA.cos(), m), atol=1e-10, rtol=0)
    almost = combined_margin(THETA[1:-1].cos(), m1=m + 1e-9)  # m = 1 has a code path of its own
    torch.testing.assert_close(almost, psi(THETA[1:-1].cos(), m), atol=1e-7, rtol=0)


@pytest.mark.parametrize(("m1", "m2", "m3"), [(1.0, 0.3, 0.2), (1.0, 0.5, 0.0), (0.9 + 0.2, 0.3, 0.1), (1.35, 0.0, 0.0), (2.5, 0.4, 0.2)])
def test_combined_equals_its_formula(m1: float, m2: float, m3: float) -> None:
    theta = THETA[(m1 * THETA + m2 <= math.pi)]
    torch.testing.assert_close(combined_margin(theta.cos(), m1, m2, m3), (m1 * theta + m2).cos() - m3, atol=1e-10, rtol=0)


@pytest.mark.parametrize("m", [1, 2, 3, 4, 6])
def test_psi_equals_its_piecewise_formula(m: int) -> None:
    k = np.minimum(np.floor(THETA.numpy() * m / np.pi), m - 1)
    expected = (-1) ** k * np.cos(m * THETA.numpy()) - 2 * k
    np.testing.assert_allclose(psi(THETA.cos(), m).numpy(), expected, atol=1e-10)
    ends = torch.tensor([1.0, -1.0], dtype=torch.float64, requires_grad=True)
    values = psi(ends, m)
    assert values.tolist() == [1.0, 1.0 - 2 * m]
    assert torch.autograd.grad(values.sum(), ends)[0].tolist() == [m**2, m**2]  # d cos(m theta) / d cos(theta) at 0 is m^2


CURVES = [(1.0, 0.5, 0.0), (1.0, 1.0, 0.0), (1.0, 0.3, 0.2), (1.0, math.pi / 2, 0.0), (1.1, 0.3, 0.2), (1.5, 0.5, 0.0), (4.0, 0.2, 0.0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("margins", CURVES)
def test_the_default_curve_decreases_and_the_easy_one_does_not(margins: tuple[float, float, float], dtype: torch.dtype) -> None:
    rounding = 16 * torch.finfo(dtype).eps
    cosine = THETA.cos().to(dtype)
    steps = combined_margin(cosine, *margins).diff()
    assert (steps <= rounding).all()
    assert (combined_margin(cosine, *margins).double()[::100].diff() < 0).all()
    easy = combined_margin(cosine, *margins, easy=True)
    assert (easy.diff() > 0.01).sum() == 1
    positive = cosine > 0
    assert torch.equal(easy[~positive], cosine[~positive])
    assert torch.equal(easy[positive], combined_margin(cosine, *margins)[positive])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{"m2": 0.5}, {"m1": 1.35}, {"m1": 2.5, "m2": 0.3, "m3": 0.2}, {"m2": 0.5, "easy": True}])
def test_values_are_exact_and_slopes_finite_at_both_ends(options: dict[str, Any], dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    near = [1 - 2.0**-k for k in range(1, 60)]
    cosine = torch.tensor([1.0, -1.0, 1 + eps, -1 - 2 * eps, *near, *(-c for c in near)], dtype=dtype, requires_grad=True)
    values = combined_margin(cosine, **options)
    (slope,) = torch.autograd.grad(values.sum(), cosine, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), cosine)
    assert slope.isfinite().all()
    assert curvature.isfinite().all()
    assert values[0].item() == pytest.approx(math.cos(options.get("m2", 0)) - options.get("m3", 0), abs=4 * eps)
    exact = combined_margin(cosine.detach().double().clamp(-1, 1), **options)
    assert (values - exact).abs().max() <= 4 * math.sqrt(eps)  # the angle itself knows no more of a rounded cosine


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("name", NAMES)
def test_an_embedding_on_or_opposite_to_its_row_has_finite_gradients(name: str, sign: float, dtype: torch.dtype) -> None:
    _, rows, _ = problem(dtype)
    w = torch.cat([rows.detach(), torch.eye(DIM, dtype=dtype)]).requires_grad_()  # cosines of exactly +-1, and rounded ones
    targets = torch.arange(len(w))
    x = (sign * w.detach()).requires_grad_()
    loss, dx, dw = loss_and_gradients(x, w, targets, margin(name))
    assert loss.isfinite()
    assert dx.isfinite().all()
    assert dw.isfinite().all()
    bound = 16 * 4**2 * w.detach().norm(dim=1).max().item()  # what moves the angle is bounded though the slope in the cosine is not
    assert max(dx.abs().max().item(), dw.abs().max().item()) < bound


@pytest.mark.parametrize("name", NAMES)
def test_zero_vectors_have_finite_losses_and_gradients(name: str) -> None:
    x = torch.zeros(CLASSES, DIM, requires_grad=True)
    w = torch.eye(CLASSES, DIM).requires_grad_()  # the last two rows are zero
    assert all(value.isfinite().all() for value in loss_and_gradients(x, w, torch.arange(CLASSES), margin(name)))


def test_longer_embeddings_change_sphereface_and_no_scaled_loss() -> None:
    x, w, targets = problem()
    for name in SCALED:
        chosen = margin(name)
        torch.testing.assert_close(margin_logits(3 * x, w, targets, chosen), margin_logits(x, w, targets, chosen), atol=1e-12, rtol=0)
        torch.testing.assert_close(margin_logits(x, 5 * w, targets, chosen), margin_logits(x, w, targets, chosen), atol=1e-12, rtol=0)
    for name in ("sphereface", "l_softmax"):
        chosen = margin(name)
        torch.testing.assert_close(margin_logits(3 * x, w, targets, chosen), 3 * margin_logits(x, w, targets, chosen), atol=1e-12, rtol=0)
    torch.testing.assert_close(
        margin_logits(x, 5 * w, targets, margin("sphereface")), margin_logits(x, w, targets, margin("sphereface")), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_classes_leaves_the_loss(name: str) -> None:
    x, w, targets = problem()
    order = torch.randperm(CLASSES, generator=torch.Generator().manual_seed(1))
    shuffled = margin_logits(x, w[order], order.argsort()[targets], margin(name))
    torch.testing.assert_close(shuffled, margin_logits(x, w, targets, margin(name))[:, order], atol=1e-12, rtol=0)


EXTRA: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in NAMES),
    ("arcface", {"easy_margin": True}),
    ("combined", {"m1": 1.35, "m2": 0.3, "m3": 0.2}),
    ("sphereface", {"annealing": 5.0, "m1": 3}),
    ("l_softmax", {"strength": 0.4, "m1": 4}),
    ("combined", {"m1": 1.5, "strength": 0.5}),
]


@pytest.mark.parametrize(("name", "options"), EXTRA)
def test_gradients_equal_finite_differences(name: str, options: dict[str, Any]) -> None:
    x, w, targets = problem(rows=6)
    targets[2] = -1
    chosen = margin(name, **options)
    assert torch.autograd.gradcheck(lambda x, w: margin_logits(x, w, targets, chosen), (x, w))


@pytest.mark.parametrize("name", ["arcface", "combined", "sphereface", "l_softmax"])
def test_straight_through_has_the_margins_value_and_the_plain_slope(name: str) -> None:
    cosine = THETA[::1000].cos().requires_grad_()
    value = margin(name, straight_through=True).of(cosine)
    torch.testing.assert_close(value, margin(name).of(cosine), atol=1e-14, rtol=0)
    assert torch.autograd.grad(value.sum(), cosine)[0].eq(1).all()


def test_straight_through_logits_have_normfaces_gradient() -> None:
    x, w, targets = problem()
    weights = torch.linspace(-1, 1, ROWS * CLASSES, dtype=torch.float64).view(ROWS, CLASSES)
    through = margin_logits(x, w, targets, margin("arcface", straight_through=True))
    torch.testing.assert_close(through, margin_logits(x, w, targets, margin("arcface")), atol=1e-12, rtol=0)
    ours = torch.autograd.grad((weights * through).sum(), (x, w))
    expected = torch.autograd.grad((weights * margin_logits(x, w, targets, margin("normface"))).sum(), (x, w))
    for gradient, plain in zip(ours, expected, strict=True):
        torch.testing.assert_close(gradient, plain, atol=1e-12, rtol=0)


@pytest.mark.parametrize("bounds", [(0, 4, 10), (0, 0, 1, 9, 10, 10)])
@pytest.mark.parametrize(("name", "options"), EXTRA)
def test_slices_of_the_classes_make_the_columns_of_all(name: str, options: dict[str, Any], bounds: tuple[int, ...]) -> None:
    x, w, targets = problem()
    chosen = margin(name, **options)
    parts = []
    for first, last in itertools.pairwise(bounds):
        local = torch.where((targets >= first) & (targets < last), targets - first, -1)
        parts.append(margin_logits(x, w[first:last], local, chosen))
    whole, together = margin_logits(x, w, targets, chosen), torch.cat(parts, 1)
    torch.testing.assert_close(together, whole, atol=1e-12, rtol=0)
    gradients = zip(*(torch.autograd.grad(F.cross_entropy(logits, targets), (x, w)) for logits in (together, whole)), strict=True)
    for ours, expected in gradients:
        torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_rows_without_a_target_here_are_plain(name: str) -> None:
    x, w, targets = problem()
    nowhere = torch.full_like(targets, -1)
    torch.testing.assert_close(margin_logits(x, w, nowhere, margin(name)), margin_logits(x, w, targets, margin(name, strength=0.0)))


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_left_outside(name: str) -> None:
    x, w, targets = (t.detach() for t in problem(torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        logits = margin_logits(x, w, targets, margin(name))
    assert torch.equal(logits, margin_logits(x.float(), w.float(), targets, margin(name)))
    assert logits.dtype == combined_margin(x[:, 0]).dtype == psi(x[:, 0], 2).dtype == torch.float32
    assert margin_logits(x, w.double(), targets, margin(name)).dtype == torch.float64


@pytest.mark.parametrize(("name", "options"), EXTRA)
def test_float32_agrees_with_float64(name: str, options: dict[str, Any]) -> None:
    x, w, targets = problem(torch.float32)
    wide = loss_and_gradients(x.double(), w.double(), targets, margin(name, **options))
    for ours, expected in zip(loss_and_gradients(x, w, targets, margin(name, **options)), wide, strict=True):
        torch.testing.assert_close(ours.double(), expected, atol=2e-6, rtol=2e-5)


class Sizes(TorchDispatchMode):
    """The distinct tensors of at least `numel` elements that operations returned meanwhile."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.numel = numel
        self.seen: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor) and tensor.numel() >= self.numel:
                self.seen[tensor.data_ptr()] = tensor  # kept, so that no other can take its place in memory
        return out


@pytest.mark.parametrize("name", NAMES)
def test_the_forward_pass_makes_one_tensor_of_the_size_of_the_logits(name: str) -> None:
    x, w, targets = torch.randn(512, DIM, requires_grad=True), torch.randn(1000, DIM, requires_grad=True), torch.arange(512)
    with Sizes(512 * 1000) as sizes:
        margin_logits(x, w, targets, margin(name))
    assert len(sizes.seen) == 1


def test_strength_scales_the_margin() -> None:
    cosine = THETA[::1000].cos()
    assert torch.equal(margin("cosface", strength=0.5).of(cosine), margin("cosface", m3=0.175).of(cosine))
    assert torch.equal(margin("arcface", strength=0.5).of(cosine), margin("arcface", m2=0.25).of(cosine))
    third = margin("combined", m1=1.5, m2=0.3, m3=0.6, strength=1 / 3).of(cosine)
    torch.testing.assert_close(third, combined_margin(cosine, 1 + 0.5 / 3, 0.1, 0.2))
    half = margin("sphereface", strength=0.5).of(cosine)
    torch.testing.assert_close(half, margin("sphereface", annealing=1.0).of(cosine))  # (1 cos + psi) / 2


def test_annealing_falls_from_start_to_floor() -> None:
    weights = [annealing_weight(step) for step in range(3000)]
    assert weights[0] == 1000
    assert weights[100] == pytest.approx(1000 / 13)
    assert weights[-1] == 5
    assert weights == sorted(weights, reverse=True)


@pytest.mark.parametrize("num_classes", [2, 10, 1000])
@pytest.mark.parametrize("confidence", [0.6, 0.9])
def test_least_scale_reaches_its_confidence_on_a_simplex(num_classes: int, confidence: float) -> None:
    # the most even spread of C directions: all cosines are -1 / (C - 1)
    w = torch.eye(num_classes, dtype=torch.float64) - 1 / num_classes
    logits = margin_logits(w, w, torch.arange(num_classes), Margin("normface", scale=least_scale(num_classes, confidence)))
    torch.testing.assert_close(logits.softmax(1).diagonal(), torch.full((num_classes,), confidence, dtype=torch.float64))


def test_fixed_adacos_scale_keeps_a_quarter_turn_at_one_half() -> None:
    # with the other classes at right angles, an embedding 45 degrees from its row has probability 1 / 2
    scale = fixed_adacos_scale(5000)
    logits = torch.tensor([scale * math.cos(math.pi / 4)] + 4999 * [0.0], dtype=torch.float64)
    assert logits.softmax(0)[0].item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "arcfac", "scale": 16.0}, "arcface"),
        ({"name": "arcface"}, "scale=None"),
        ({"name": "cosface", "scale": 0.0}, "scale=0.0"),
        ({"name": "sphereface", "scale": 16.0, "m1": 4}, "scale=16.0 has no effect on sphereface"),
        ({"name": "normface", "scale": 16.0, "m2": 0.5}, "m2=0.5 has no effect on normface"),
        ({"name": "cosface", "scale": 16.0, "straight_through": True}, "straight_through=True has no effect"),
        ({"name": "softmax", "easy_margin": True}, "easy_margin=True has no effect"),
        ({"name": "sphereface", "m1": 1.5}, "m1=1.5"),
        ({"name": "arcface", "scale": 16.0, "m2": 28.6}, "m2=28.6"),
        ({"name": "cosface", "scale": 16.0, "m3": -0.1}, "m3=-0.1"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Margin(**options)


def test_scales_need_classes() -> None:
    with pytest.raises(UserError, match="2 classes"):
        fixed_adacos_scale(2)
    with pytest.raises(UserError, match="there are 1"):
        least_scale(1)
