"""The rivals' losses of VQGAN and the weight between reconstruction and rivalry (Esser, Rombach and Ommer 2021, arXiv 2012.09841)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """mean relu(1 - s_real) / 2 + mean relu(1 + s_fake) / 2 over logits of any shape: no gradient beyond the margins."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def generator_loss(fake: Tensor) -> Tensor:
    """-mean s_fake over logits of any shape."""
    return -fake.mean()


def adaptive_weight(reconstruction_gradient: Tensor, generator_gradient: Tensor, largest: float = 1e4, eps: float = 1e-4) -> Tensor:
    """||grad L_rec|| / (||grad L_gan|| + eps), a detached scalar in [0, largest]; eq. 7, from gradients at the decoder's last layer."""
    weight = reconstruction_gradient.norm() / (generator_gradient.norm() + eps)
    return weight.clamp(0, largest).detach()
