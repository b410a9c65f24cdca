"""What a run reports between two rows: loss terms over the global batch, learning rates, speed, waiting, memory, utilisation.

Numbers are summed on the device and read only when a row is due, so that steps do not wait for the host.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from components.errors import Diverged
from components.training.communication import Communication
from components.training.outlet import Row
from components.training.utilization import ForwardFlops, peak_flops, peak_memory_bytes


class Measures:
    """Sums since the last row; `read` gives the row."""

    def __init__(self, device: torch.device, world: Communication, batch_size: int) -> None:
        self._device, self._world, self._batch_size = device, world, batch_size
        self._peak = peak_flops(device)
        self._flops: dict[str, int] = {}  # model operations of one call on this worker's rows, by phase
        self._waited_before = 0.0
        self.restart()

    def restart(self) -> None:
        """Begins the next interval; what ran since the last `read` (scoring, saving) is not counted as training."""
        self._sums: dict[str, Tensor] = {}
        self._calls: dict[str, float] = {}
        self._steps: dict[str, int] = {}
        self._rates: dict[str, float] = {}
        self._norms: dict[str, Tensor] = {}
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

    def add(self, metrics: dict[str, Tensor], share: float) -> None:
        """Takes scalars that are means over `share` of the global batch."""
        for name, value in metrics.items():
            weighted = value.detach().float() * share
            self._sums[name] = self._sums[name] + weighted if name in self._sums else weighted
            self._calls[name] = self._calls.get(name, 0.0) + share

    def see(self, phase: str, norm: Tensor, lr: float) -> None:
        """Takes the gradient norm (before clipping) and the learning rate of one optimizer step."""
        self._norms[phase] = torch.maximum(self._norms[phase], norm) if phase in self._norms else norm
        self._steps[phase] = self._steps.get(phase, 0) + 1
        self._rates[phase] = lr

    def read(self, step: int, seconds_waited: float) -> Row:
        """The row of the interval that ends at `step`, the same on every worker. Raises Diverged when a number is not finite."""
        names = sorted(self._sums)
        # Shares add up to one over the workers of a step, so these quotients of sums are means over global batches.
        local = torch.stack([self._sums[name] for name in names] + [torch.tensor(self._calls[name], device=self._device) for name in names])
        values = self._world.sum(local)
        norms = torch.stack([self._norms[phase] for phase in sorted(self._norms)])  # of averaged gradients: equal on all workers
        numbers = values.tolist()
        seconds = time.perf_counter() - self._started
        row: Row = {"step": step}
        for place, name in enumerate(names):
            row[name] = numbers[place] / numbers[place + len(names)]
        for phase, norm in zip(sorted(self._norms), norms.tolist(), strict=True):
            row[f"gradient_norm.{phase}"], row[f"lr.{phase}"] = norm, self._rates[phase]
        self._require_finite(row)
        return row | self._speed(seconds, seconds_waited)

    def _speed(self, seconds: float, seconds_waited: float) -> Row:
        steps = max(self._steps.values())
        waited, self._waited_before = seconds_waited - self._waited_before, seconds_waited
        flops = sum(self._flops[phase] * count for phase, count in self._steps.items()) * self._world.size / seconds
        peak = self._peak and self._peak * self._world.size
        return {
            "samples_per_second": steps * self._batch_size / seconds,
            "step_seconds": seconds / steps,
            "data_wait_seconds": waited,
            "peak_memory_bytes": peak_memory_bytes(self._device),
            "model_flops_per_second": flops,
            "model_flop_utilisation": flops / peak if peak else None,
        }

    def _require_finite(self, row: Row) -> None:
        bad = [name for name, value in row.items() if value != value or abs(value) == float("inf")]
        if bad:
            raise Diverged(
                f"training stopped at step {row['step']}: {', '.join(bad)} not finite; lower optimizer.lr, clip tighter (clip_norm) or use "
                f"precision=float32; the last checkpoint is intact"
            )
