"""Samplers that run the SDE of a schedule backwards: Euler-Maruyama, reverse diffusion, and a predictor with a Langevin corrector.

Song et al. 2021, arXiv 2011.13456, sections 3.3, 4 and appendices E to G. The SDE dx = f x dt + g dw with the schedule's marginals, read
backwards, is dx = (f x - g^2 score) dt + g dw. All work for every schedule with data left at the first time (alpha > 0): VP, sub-VP,
VE, and discrete levels, where a step of reverse diffusion is the paper's. The last step, to clean data, is the predicted data itself.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from components.errors import UserError
from components.functional.noise_schedules import Schedule
from components.functional.predictions import Denoiser, Noise
from components.functional.timesteps import checked


def euler_maruyama(denoiser: Denoiser, x: Tensor, times: Tensor, noise: Noise, *, final: bool = False) -> Tensor:
    """x (B, ...) at times[0] carried to times[-1]; one evaluation for each interval.

    Where `times` end at 0 the last interval is one denoising step without noise; `final` adds such a step at an end above 0.
    """
    schedule = denoiser.schedule
    for t, s in _intervals(schedule, times):
        if s == 0:
            return denoiser.predict("x0", x, t)
        spread = schedule.diffusion_squared(t)
        drift = schedule.drift(t) * x - spread * denoiser.predict("score", x, t)
        x = x + (s - t) * drift + (spread * (t - s)).sqrt() * noise(x)
    return denoiser.predict("x0", x, s) if final else x


def reverse_diffusion(denoiser: Denoiser, x: Tensor, times: Tensor, noise: Noise, *, final: bool = False) -> Tensor:
    """As `euler_maruyama`, but each interval is the forward kernel x_t = a x_s + b z, turned round: x_s = (2 - a) x_t + b^2 score + b z.

    Appendix E, eq. 46. The kernel is the schedule's own, whatever the interval; for discrete levels one apart a^2 = 1 - beta, b^2 = beta.
    """
    for t, s in _intervals(denoiser.schedule, times):
        if s == 0:
            return denoiser.predict("x0", x, t)
        x = _reversed(denoiser, x, t, s, noise)
    return denoiser.predict("x0", x, s) if final else x


def predictor_corrector(
    denoiser: Denoiser, x: Tensor, times: Tensor, noise: Noise, *, snr: float = 0.16, corrections: int = 1, final: bool = False
) -> Tensor:
    """Reverse diffusion with `corrections` Langevin steps at the time before each interval: 1 + `corrections` evaluations for each.

    Algorithms 4 and 5 of the paper, in the order of its code: the corrector first. Its step 2 a^2 (r |z| / |score|)^2, with r = `snr` and a
    that of the interval to come, is taken with the ratio of norms to be expected, sigma. Measured in each row it would depend on where
    the row is, which spoils the law in few dimensions; averaged over a batch, as the paper's code does, a row would depend on the others.
    """
    if not snr > 0:
        raise UserError(f"snr: {snr:g}; the corrector's steps need a ratio of signal to noise above 0, such as 0.16")
    if corrections < 0:
        raise UserError(f"corrections: {corrections}; a number of corrector steps, 0 or more, is expected")
    schedule = denoiser.schedule
    for t, s in _intervals(schedule, times):
        for _ in range(corrections):
            x = _corrected(denoiser, x, t, _kept(schedule, t, s), noise, snr)
        if s == 0:
            return denoiser.predict("x0", x, t)
        x = _reversed(denoiser, x, t, s, noise)
    return denoiser.predict("x0", x, s) if final else x


def _reversed(denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
    schedule = denoiser.schedule
    kept = _kept(schedule, t, s)
    variance = schedule.sigma(t).square() - kept.square() * schedule.sigma(s).square()
    return (2 - kept) * x + variance * denoiser.predict("score", x, t) + variance.sqrt() * noise(x)


def _corrected(denoiser: Denoiser, x: Tensor, t: Tensor, kept: Tensor, noise: Noise, snr: float) -> Tensor:
    """One step of Langevin dynamics at time t."""
    step = 2 * (kept * snr * denoiser.schedule.sigma(t)).square()
    return x + step * denoiser.predict("score", x, t) + (2 * step).sqrt() * noise(x)


def _kept(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """How much of x_s is in x_t: sqrt(1 - beta) of this one step."""
    return schedule.alpha(t) / schedule.alpha(s)


def _intervals(schedule: Schedule, times: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Of checked times, each with the next."""
    times = checked(times)
    if schedule.alpha(times[0]) == 0:
        raise UserError(
            f"times: a list that starts at {times[0]:g}, where alpha is 0 and the drift of the SDE infinite, fits no SDE sampler; "
            "start below, or choose an ODE sampler"
        )
    return list(pairwise(times))
