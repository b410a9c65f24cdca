"""Margin-softmax losses: what the margin makes of the cosine between an embedding and its own class row, and the logits with it.

theta is the angle between an embedding x and a class row W_j. Each loss is a cross-entropy over logits; these are the ones of the target,
those of other classes are the same without the margin:

    softmax  W_j x + b_j       L-Softmax  |W_j| |x| psi(theta)     SphereFace  |x| psi(theta)     NormFace  s cos(theta)
    CosFace  s (cos(theta) - m3)     ArcFace  s cos(theta + m2)     combined  s (cos(m1 theta + m2) - m3)

L-Softmax: Liu et al. 2016, arXiv 1612.02295. SphereFace: Liu et al. 2017, arXiv 1704.08063. NormFace: Wang et al. 2017, arXiv 1704.06369.
CosFace: Wang et al. 2018, arXiv 1801.09414. ArcFace and combined: Deng et al. 2019, arXiv 1801.07698. AdaCos: Zhang et al. 2019, arXiv
1905.00292. Margins work on target cosines alone, shape (B,), so that a head with a part of the classes can use them. Angles are radians.
Everything is computed in float32 or wider, under autocast too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from components.errors import UserError, did_you_mean
from components.functional.quantize import straight_through

# The margins that a loss has, with the values of its paper; combined as in section 3 of ArcFace. AdaCos is NormFace with a computed scale.
DEFAULT_MARGINS: dict[str, dict[str, float]] = {
    "softmax": {},
    "l_softmax": {"m1": 2.0},
    "sphereface": {"m1": 4.0},
    "normface": {},
    "adacos": {},
    "cosface": {"m3": 0.35},
    "arcface": {"m2": 0.5},
    "combined": {"m1": 1.0, "m2": 0.3, "m3": 0.2},
}
SCALED = frozenset({"normface", "adacos", "cosface", "arcface", "combined"})
_BY_PSI = frozenset({"l_softmax", "sphereface"})
_EASY = frozenset({"cosface", "arcface", "combined"})
_BENT = frozenset({"l_softmax", "sphereface", "arcface", "combined"})  # slope other than 1, which straight-through replaces


def combined_margin(cosine: Tensor, m1: float = 1.0, m2: float = 0.0, m3: float = 0.0, easy: bool = False) -> Tensor:
    """cos(m1 theta + m2) - m3 of target cosines (B,), eq. 4 of ArcFace, kept decreasing in theta where m1 theta + m2 passes pi.

    There, with m1 = 1, cos(theta) - m2 sin(m2) takes the place of the cosine, as is customary for ArcFace; otherwise psi's continuation
    (-1)^k cos(m1 theta + m2) - 2k with k = floor((m1 theta + m2) / pi), so that a whole m1 alone is SphereFace's psi.
    With `easy` the margin acts only where cos(theta) > 0; the curve then jumps up at 90 degrees. Gradients are finite at cosines of +-1.
    """
    cosine = _wide(cosine)
    curve = _shifted(cosine, m2) if m1 == 1 else _multiplied(cosine, m1, m2)
    curve = curve - m3
    return torch.where(cosine > 0, curve, cosine) if easy else curve


def _shifted(cosine: Tensor, m2: float) -> Tensor:
    """cos(theta + m2) without an angle."""
    turned = cosine * math.cos(m2) - _sine(cosine) * math.sin(m2)
    return torch.where(cosine >= -math.cos(m2), turned, cosine - m2 * math.sin(m2))


def _multiplied(cosine: Tensor, m1: float, m2: float) -> Tensor:
    # atan2 instead of arccos, whose slope is infinite at +-1 and which has lost half its digits near them
    angle = m1 * torch.atan2(_sine(cosine), cosine) + m2
    k = (angle.detach() / math.pi).floor()
    return (1 - 2 * k.remainder(2)) * angle.cos() - 2 * k


def _sine(cosine: Tensor) -> Tensor:
    """sqrt(1 - cos^2), the root replaced by its chord below 4 machine epsilons, so that no slope is infinite and +-1 give 0."""
    square = ((1 - cosine) * (1 + cosine)).clamp_min(0)  # rounding may put a cosine beyond 1
    return square * square.clamp_min(4 * torch.finfo(cosine.dtype).eps).rsqrt()


def psi(cosine: Tensor, m: int) -> Tensor:
    """(-1)^k cos(m theta) - 2k for theta in [k pi / m, (k + 1) pi / m], decreasing from 1 to 1 - 2m; eq. 6 of L-Softmax.

    cos(m theta) is the Chebyshev polynomial T_m of the cosine: its gradient m^2 at theta = 0 is exact too.
    """
    cosine = _wide(cosine)
    before, chebyshev = torch.ones_like(cosine), cosine
    k = torch.zeros_like(cosine)
    for j in range(1, m):
        before, chebyshev = chebyshev, 2 * cosine * chebyshev - before
        k = k + (cosine <= math.cos(j * math.pi / m))
    return (1 - 2 * k.remainder(2)) * chebyshev - 2 * k


def annealed(cosine: Tensor, psi_value: Tensor, weight: float) -> Tensor:
    """(lambda cos(theta) + psi(theta)) / (1 + lambda) with lambda = `weight`: L-Softmax and SphereFace may diverge without it."""
    return (weight * cosine + psi_value) / (1 + weight)


def annealing_weight(step: int, start: float = 1000.0, floor: float = 5.0, gamma: float = 0.12) -> float:
    """lambda of `annealed` after `step` steps: max(floor, start / (1 + gamma step)), the schedule of SphereFace's published solver."""
    return max(floor, start / (1 + gamma * step))


def fixed_adacos_scale(num_classes: int) -> float:
    """sqrt(2) ln(C - 1), the fixed scale of AdaCos. Raises UserError below three classes, where it is 0 or does not exist."""
    if num_classes < 3:
        raise UserError(f"AdaCos has no scale for {num_classes} classes, expected 3 or more; choose normface with a scale")
    return math.sqrt(2) * math.log(num_classes - 1)


def least_scale(num_classes: int, confidence: float = 0.9) -> float:
    """(C - 1) / C ln((C - 1) p / (1 - p)), CosFace, section 3.3: below it a mean probability of p = `confidence` is out of reach.

    At it, C rows spread evenly with every embedding on its row reach p. Raises UserError below two classes.
    """
    if num_classes < 2:
        raise UserError(f"a scale needs classes to tell apart and there are {num_classes}, expected 2 or more; give data with more classes")
    others = num_classes - 1
    return others / num_classes * math.log(others * confidence / (1 - confidence))


@dataclass(frozen=True)
class Margin:
    """One loss by name (a key of DEFAULT_MARGINS) with its numbers at one step; raises UserError for what the loss cannot use.

    `scale` is s, for the losses in SCALED; for adacos give `fixed_adacos_scale` of all classes. `m1` (a whole number for l_softmax and
    sphereface), `m2` and `m3` are no margin by default. `straight_through`: the margin's value, the plain cosine's gradient. The last two
    change from step to step, so a loss without a use for them lets them pass: `annealing` is lambda of `annealed`, 0 for none; `strength`
    in [0, 1] is the share of the margin, for a warm-up: it multiplies m1 - 1, m2 and m3, and mixes psi with the plain cosine.
    """

    name: str
    scale: float | None = None
    m1: float = 1.0
    m2: float = 0.0
    m3: float = 0.0
    easy_margin: bool = False
    straight_through: bool = False
    annealing: float = 0.0
    strength: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in DEFAULT_MARGINS:
            raise UserError(f"unknown margin loss {self.name!r}; {did_you_mean(self.name, DEFAULT_MARGINS)}")
        useful = set(DEFAULT_MARGINS[self.name])
        useful |= {
            option for option, losses in (("scale", SCALED), ("easy_margin", _EASY), ("straight_through", _BENT)) if self.name in losses
        }
        for option in ("scale", "m1", "m2", "m3", "easy_margin", "straight_through"):
            if option not in useful and getattr(self, option) != getattr(Margin, option):
                raise UserError(f"{option}={getattr(self, option)} has no effect on {self.name}; leave it out or choose another loss")
        if self.name in SCALED and not (self.scale is not None and self.scale > 0):
            raise UserError(f"{self.name} has scale={self.scale}, expected a number above 0; set one of at least `least_scale`")
        if self.m1 < 1 or (self.name in _BY_PSI and self.m1 % 1):
            raise UserError(f"{self.name} has m1={self.m1}, expected 1 or more, a whole number for l_softmax and sphereface; change m1")
        if not 0 <= self.m2 <= math.pi / 2:
            raise UserError(f"{self.name} has m2={self.m2}, expected an angle in radians from 0 to pi / 2; change m2")
        if self.m3 < 0:
            raise UserError(f"{self.name} has m3={self.m3}, expected 0 or more; change m3")
        assert self.annealing >= 0
        assert 0 <= self.strength <= 1

    def of(self, cosine: Tensor) -> Tensor:
        """The target cosines (B,) with the margin."""
        if self.name in _BY_PSI:
            value = torch.lerp(_wide(cosine), annealed(_wide(cosine), psi(cosine, int(self.m1)), self.annealing), self.strength)
        else:
            m1, m2, m3 = 1 + self.strength * (self.m1 - 1), self.strength * self.m2, self.strength * self.m3
            value = combined_margin(cosine, m1, m2, m3, self.easy_margin)
        return straight_through(_wide(cosine), value) if self.straight_through else value


def margin_logits(embeddings: Tensor, rows: Tensor, targets: Tensor, margin: Margin, bias: Tensor | None = None) -> Tensor:
    """Logits (B, n) of `embeddings` (B, D) for n class `rows` (n, D), some or all of the classes, with the margin at each target.

    `targets` (B,) int64 are places in `rows`; -1 says that the target is not among them, and all its logits are plain. `bias` (n,) is for
    softmax alone. The result is the one (B, n) tensor that the forward pass makes.
    """
    assert bias is None or margin.name == "softmax"
    dtype = torch.promote_types(torch.promote_types(embeddings.dtype, rows.dtype), torch.float32)
    with torch.autocast(embeddings.device.type, enabled=False):
        x, w = embeddings.to(dtype), rows.to(dtype)
        if margin.name == "softmax":
            return F.linear(x, w, None if bias is None else bias.to(dtype))
        if margin.name != "l_softmax":
            w = F.normalize(w)
        if margin.scale is not None:
            x = F.normalize(x) * margin.scale
        logits = F.linear(x, w)
        changed = len(rows) > 0 and len(DEFAULT_MARGINS[margin.name]) > 0
        return _with_margin(logits, x, w, targets, margin) if changed else logits


def _with_margin(logits: Tensor, x: Tensor, w: Tensor, targets: Tensor, margin: Margin) -> Tensor:
    """Adds |x| |w| (margin's cosine - cosine) to the target entries of `logits` = x w^T in place."""
    columns = targets.clamp_min(0)  # a stand-in for -1: choosing the rows with a target would make a GPU wait
    places = (torch.arange(len(targets), device=targets.device), columns)
    length = _length(x, w, columns, margin)
    cosine = logits[places] / length
    change = length * (margin.of(cosine) - cosine)
    return logits.index_put_(places, change.where(targets >= 0, 0), accumulate=True)


def _length(x: Tensor, w: Tensor, columns: Tensor, margin: Margin) -> Tensor | float:
    if margin.scale is not None:
        return margin.scale
    length = x.norm(dim=1)
    if margin.name == "l_softmax":
        length = length * w.norm(dim=1)[columns]
    return length.clamp_min(torch.finfo(x.dtype).tiny ** 0.5)  # a vector of zeros has no angle


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
