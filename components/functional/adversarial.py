"""Losses of rivals, on scores that are logits, of any shape.

Goodfellow et al. 2014, arXiv 1406.2661; hinge: Lim and Ye 2017, arXiv 1705.02894; the weight between reconstruction and rivalry of VQGAN:
Esser, Rombach and Ommer 2021, arXiv 2012.09841; R1: Mescheder et al. 2018, arXiv 1801.04406.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def logistic_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """-E log D(x) - E log(1 - D(G(z))) with D = sigmoid(score): mean softplus(-s_real) + mean softplus(s_fake), eq. 1."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def non_saturating_generator_loss(fake: Tensor) -> Tensor:
    """-E log D(G(z)) = mean softplus(-s_fake): pulls hardest where the discriminator is surest that it sees a fake."""
    return F.softplus(-fake).mean()


def saturating_generator_loss(fake: Tensor) -> Tensor:
    """E log(1 - D(G(z))) = -mean softplus(s_fake), the generator's side of eq. 1: no pull from fakes that are found out."""
    return -F.softplus(fake).mean()


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """mean relu(1 - s_real) / 2 + mean relu(1 + s_fake) / 2 over logits of any shape: no gradient beyond the margins."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def generator_loss(fake: Tensor) -> Tensor:
    """-mean s_fake over logits of any shape."""
    return -fake.mean()


def r1_penalty(scores: Tensor, data: Tensor) -> Tensor:
    """E ||grad_x s(x)||^2 over rows of data (B, ...), which requires gradients, from their scores (B,): eq. 9 without gamma / 2.

    The result can be differentiated again, by the weights.
    """
    (gradient,) = torch.autograd.grad(scores.sum(), data, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


def adaptive_weight(reconstruction_gradient: Tensor, generator_gradient: Tensor, largest: float = 1e4, eps: float = 1e-4) -> Tensor:
    """||grad L_rec|| / (||grad L_gan|| + eps), a detached scalar in [0, largest]; eq. 7, from gradients at the decoder's last layer."""
    weight = reconstruction_gradient.norm() / (generator_gradient.norm() + eps)
    return weight.clamp(0, largest).detach()
