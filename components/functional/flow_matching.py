"""Flow matching on straight lines: times, pairs of noise and data by minibatch optimal transport, and how straight a flow is.

Rectified flow (Liu et al. 2022, arXiv 2209.03003), flow matching (Lipman et al. 2022, arXiv 2210.02747), pairing by optimal transport
(Tong et al. 2023, arXiv 2302.00482). The line itself, x_t = (1 - t) x_0 + t eps with velocity eps - x_0, is `StraightLine` in
`noise_schedules.py` with `noised` and `target` of `predictions.py`. Time runs from data at 0 to noise at 1; in these papers the other way,
so that their velocity is minus this one.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from components.functional.predictions import Denoiser
from components.functional.timesteps import checked


def logit_normal_times(uniform: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Times in [0, 1), mostly in the middle, that grow with uniform numbers (B,) in [0, 1): (B,) float64.

    Their logits are normal (Esser et al. 2024, arXiv 2403.03206, section 3.1).
    """
    return torch.sigmoid(mean + std * torch.special.ndtri(uniform.double()))


def transport_pairing(data: Tensor, noise: Tensor, groups: Tensor | None = None) -> Tensor:
    """For each row of `data` (N, ...) the row of `noise` (N, ...) it is paired with: the permutation of least total squared distance. (N,)

    With `groups` (N,), classes say, rows are exchanged within a group only. A conditional model needs that: pairs that disregard the class
    teach it that the noise depends on the class, which it does not when sampling (Cheng and Schwing 2025, arXiv 2503.10636).
    """
    likeness = (_rows(data) @ _rows(noise).T).cpu().numpy()  # the squared distance is -2 of it, plus what no permutation changes
    pairing = torch.empty(len(data), dtype=torch.int64)
    groups = torch.zeros(len(data)) if groups is None else groups.cpu()
    for group in groups.unique():
        members = (groups == group).nonzero()[:, 0]
        rows, columns = linear_sum_assignment(likeness[members.numpy()[:, None], members.numpy()], maximize=True)
        pairing[members[torch.as_tensor(rows)]] = members[torch.as_tensor(columns)]
    return pairing.to(data.device)


def transport_cost(data: Tensor, noise: Tensor) -> Tensor:
    """||Z_1 - Z_0||^2 of every pair, a sum over pixels: (B,) float64."""
    return (_rows(data) - _rows(noise)).square().sum(1)


def straightness(denoiser: Denoiser, noise: Tensor, times: Tensor) -> Tensor:
    """S = int ||(Z_1 - Z_0) - v(Z_t, t)||^2 dt of the paths that begin at `noise` (B, ...): (B,) float64, 0 for straight paths.

    By Euler steps over `times` (n + 1,), falling from 1 to 0: what the integral comes to is how much the n velocities of a path vary.
    Raises UserError for times that do not fall strictly within [0, 1].
    """
    times = checked(times)
    x, steps = noise, (times[:-1] - times[1:]).tolist()
    velocities = []
    for t, step in zip(times[:-1], steps, strict=True):
        velocities.append(denoiser.predict("velocity", x, t))
        x = x - step * velocities[-1]
    whole = noise - x
    return torch.stack([step * transport_cost(whole, velocity) for step, velocity in zip(steps, velocities, strict=True)]).sum(0)


def _rows(x: Tensor) -> Tensor:
    return x.flatten(1).double()
