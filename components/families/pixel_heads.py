"""What an autoregressive family says of a pixel: the numbers that networks see, P parameters of their distribution, its nats and draws.

Parameters have P as their second dimension, (B, P, ...), where pixels have (B, ...).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from components.errors import UserError
from components.functional import discretized_logistic
from components.functional.token_sampling import draw

HeadName = Literal["binary", "categorical", "logistic"]

LEVELS = 256  # of 8 bits
MIXED = 10  # logistic distributions of a number


class Head:
    """How 8-bit pictures are seen, told and drawn."""

    parameters: int  # P
    eight_bit = True  # whether its likelihood is one of the 8-bit numbers

    def values(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) as networks see it, float32; raises UserError for numbers that the head does not know."""
        return images.float() / 127.5 - 1

    def pictures(self, values: Tensor) -> Tensor:
        """The inverse of `values`, in [0, 1]."""
        return ((values + 1) / 2).clamp(0, 1)

    def nats(self, parameters: Tensor, values: Tensor) -> Tensor:
        """-log p (B, ...) of each pixel."""
        raise NotImplementedError

    def pick(self, parameters: Tensor, uniform: Tensor) -> Tensor:
        """Values (B, ...) drawn by inverse transform at `uniform` (B, ...), numbers in [0, 1)."""
        raise NotImplementedError

    def independent(self, values: Tensor) -> Tensor:
        """Parameters (P, ...) of each pixel for itself, from values (B, ...) of some pictures."""
        raise NotImplementedError


class Binary(Head):
    """Ink, 1, or none, 0: ink is above `threshold`; None: a batch holds only 0 and 1, or only 0 and 255. The parameter is a logit."""

    parameters = 1
    eight_bit = False

    def __init__(self, threshold: int | None) -> None:
        self.threshold = threshold

    def values(self, images: Tensor) -> Tensor:
        if self.threshold is not None:
            return (images > self.threshold).float()
        ink = images > 0
        if images.device.type != "cpu":  # the look would wait for the device; the first rows have been looked at before
            return ink.float()
        most = images.max()
        strange = ink & ((images != most) | ((images != 1) & (images != 255)))
        if strange.any():
            found = sorted(set(images.unique().tolist()) - {0})
            raise UserError(
                f"threshold=null takes pictures of 0 and 255, or of 0 and 1, alone; these hold {', '.join(map(str, found[:4]))}"
                f"{', ...' if len(found) > 4 else ''}; set model.threshold=127, or head=categorical for grey values"
            )
        return ink.float()

    def pictures(self, values: Tensor) -> Tensor:
        return values

    def nats(self, parameters: Tensor, values: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(parameters[:, 0].to(values.dtype), values, reduction="none")

    def pick(self, parameters: Tensor, uniform: Tensor) -> Tensor:
        return (uniform < parameters[:, 0].sigmoid()).float()

    def independent(self, values: Tensor) -> Tensor:
        """Log-odds, as if one more pixel with ink and one without had been seen."""
        ink = values.sum(0)
        return ((ink + 1).log() - (len(values) - ink + 1).log())[None]


class Categorical(Head):
    """One of 256 grey values, each with a logit of its own; networks see them in [-1, 1]."""

    parameters = LEVELS

    def nats(self, parameters: Tensor, values: Tensor) -> Tensor:
        return F.cross_entropy(parameters.to(values.dtype), _levels(values), reduction="none")

    def pick(self, parameters: Tensor, uniform: Tensor) -> Tensor:
        logits = parameters.movedim(1, -1).flatten(0, -2)
        return (draw(logits, uniform.flatten()).view_as(uniform).float() / 127.5) - 1

    def independent(self, values: Tensor) -> Tensor:
        """Logarithms of frequencies, as if each level had been seen once more at each pixel."""
        levels = _levels(values).flatten(1)
        pixels = levels.shape[1]
        counts = torch.bincount((levels * pixels + torch.arange(pixels, device=levels.device)).flatten(), minlength=LEVELS * pixels)
        return ((counts + 1).float().log() - math.log(len(values) + LEVELS)).view(LEVELS, *values.shape[1:])


class Logistic(Head):
    """A mixture of logistic distributions over the 256 grey values; networks see them in [-1, 1]."""

    parameters = 3 * MIXED

    def nats(self, parameters: Tensor, values: Tensor) -> Tensor:
        return -discretized_logistic.log_prob(_levels(values), parameters.movedim(1, -1))

    def pick(self, parameters: Tensor, uniform: Tensor) -> Tensor:
        return (discretized_logistic.draw(parameters.movedim(1, -1), uniform).float() / 127.5) - 1

    def independent(self, values: Tensor) -> Tensor:
        """Equal shares at quantiles of what has been seen, each as wide as what it stands for, and at least a few grey values."""
        means = values.sort(0).values[((torch.arange(MIXED) + 0.5) / MIXED * len(values)).long()]
        log_scales = (values.std(0) / MIXED).clamp(min=4 / LEVELS).log().expand_as(means)
        return torch.cat([torch.zeros_like(means), means, log_scales])


def _levels(values: Tensor) -> Tensor:
    """Values in [-1, 1] to 0 ... 255, int64."""
    return ((values + 1) * 127.5).round().long()


def head_of(name: HeadName, threshold: int | None) -> Head:
    """The head by name; `threshold` is the binary one's."""
    if name == "binary":
        return Binary(threshold)
    return Categorical() if name == "categorical" else Logistic()
