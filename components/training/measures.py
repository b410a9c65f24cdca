"""What a run reports between two rows: loss terms over the global batch, learning rates, speed, waiting, memory, utilisation.

Numbers stay on the device and are read only when a row is due, so that steps do not wait for the host. Each step's are kept until then:
where one is not finite, the row tells the step in which it was first.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from components.errors import Diverged
from components.training.communication import Communication
from components.training.outlet import Row
from components.training.utilization import ForwardFlops, peak_flops, peak_memory_bytes

BySteps = dict[int, Tensor]  # a number of each step


class Measures:
    """Numbers since the last row; `read` gives the row. Steps are counted from 1, as rows count them."""

    def __init__(self, device: torch.device, world: Communication, batch_size: int) -> None:
        self._device, self._world, self._batch_size = device, world, batch_size
        self._peak = peak_flops(device)
        self._flops: dict[str, int] = {}  # model operations of one call on this worker's rows, by phase
        self._waited_before = 0.0
        self.restart()

    def restart(self) -> None:
        """Begins the next interval; what ran since the last `read` (scoring, saving) is not counted as training."""
        self._terms: dict[str, BySteps] = {}  # this worker's part
        self._calls: dict[str, float] = {}
        self._rates: dict[str, float] = {}
        self._norms: dict[str, BySteps] = {}  # by phase
        self._started = time.perf_counter()

    @contextmanager
    def count_flops(self, phase: str) -> Iterator[None]:
        """Counts the forward operations of the block, the first time the phase runs."""
        if phase in self._flops:
            yield
            return
        with ForwardFlops() as counter:
            yield
        self._flops[phase] = counter.training

    def add(self, step: int, metrics: dict[str, Tensor], share: float) -> None:
        """Takes scalars of a step that are means over `share` of its global batch."""
        for name, value in metrics.items():
            weighted, term = value.detach().float() * share, self._terms.setdefault(name, {})
            term[step] = term[step] + weighted if step in term else weighted
            self._calls[name] = self._calls.get(name, 0.0) + share

    def see(self, step: int, phase: str, norm: Tensor, lr: float) -> None:
        """Takes the gradient norm (before clipping) and the learning rate of one optimizer step."""
        self._norms.setdefault(phase, {})[step] = norm
        self._rates[phase] = lr

    def read(self, step: int, seconds_waited: float) -> Row:
        """The row of the interval that ends at `step`, the same on every worker. Raises Diverged when a number is not finite."""
        terms, shares = self._summed()
        norms = _split(self._norms, _laid_out(self._norms).tolist())  # of averaged gradients: equal on all workers
        seconds = time.perf_counter() - self._started
        _require_finite(terms | {f"gradient_norm.{phase}": values for phase, values in norms.items()})
        row: Row = {"step": step}
        for name, values in terms.items():
            row[name] = math.fsum(values.values()) / shares[name]
        for phase, values in norms.items():
            row[f"gradient_norm.{phase}"], row[f"lr.{phase}"] = max(values.values()), self._rates[phase]
        return row | self._speed(seconds, seconds_waited)

    def _summed(self) -> tuple[dict[str, dict[int, float]], dict[str, float]]:
        """Every term by its steps and what its shares come to, over all workers."""
        shares = torch.tensor([self._calls[name] for name in sorted(self._terms)], device=self._device)
        # Shares add up to one over the workers of a step, so quotients of sums are means over global batches.
        numbers = self._world.sum(torch.cat([shares, _laid_out(self._terms)])).tolist()
        return _split(self._terms, numbers[len(shares) :]), dict(zip(sorted(self._terms), numbers[: len(shares)], strict=True))

    def _speed(self, seconds: float, seconds_waited: float) -> Row:
        steps = max(map(len, self._norms.values()))
        waited, self._waited_before = seconds_waited - self._waited_before, seconds_waited
        flops = sum(self._flops[phase] * len(norms) for phase, norms in self._norms.items()) * self._world.size / seconds
        peak = self._peak and self._peak * self._world.size
        return {
            "samples_per_second": steps * self._batch_size / seconds,
            "step_seconds": seconds / steps,
            "data_wait_seconds": waited,
            "peak_memory_bytes": peak_memory_bytes(self._device),
            "model_flops_per_second": flops,
            "model_flop_utilisation": flops / peak if peak else None,
        }


def _laid_out(terms: dict[str, BySteps]) -> Tensor:
    return torch.cat([torch.stack([*terms[name].values()]) for name in sorted(terms)])


def _split(terms: dict[str, BySteps], numbers: list[float]) -> dict[str, dict[int, float]]:
    """The inverse of `_laid_out`, as plain numbers."""
    rest = iter(numbers)
    return {name: {step: next(rest) for step in terms[name]} for name in sorted(terms)}


def _require_finite(terms: dict[str, dict[int, float]]) -> None:
    bad = [(step, name) for name, values in terms.items() for step, value in values.items() if not math.isfinite(value)]
    if bad:
        first = min(bad)[0]
        names = [name for step, name in bad if step == first]
        told = f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} not finite"
        raise Diverged(f"training stopped: at step {first} {told}; lower optimizer.lr, clip tighter (clip_norm) or use precision=float32")
