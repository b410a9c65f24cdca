"""How well the hardware is used: floating-point operations of the model, the device's peak, peak memory."""

from __future__ import annotations

import resource
import sys
import time
from typing import Self

import torch
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

# Dense bf16 peaks from the makers' data sheets, in FLOP/s, by a part of the device's name.
_GPU_PEAKS = {"H200": 989e12, "H100": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12, "V100": 125e12}


class _NoModules(ModuleTracker):
    """Follows no module: its hooks fail where a loss takes a gradient with respect to what it gives a module."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing was begun."""


class ForwardFlops(FlopCounterMode):
    """Counts the operations of a forward pass inside a `with` block, silently, those of gradients that the pass itself takes among them."""

    def __init__(self) -> None:
        super().__init__(display=False)
        self.mod_tracker = _NoModules()

    @property
    def training(self) -> int:
        """Operations of forward and backward, by the usual rule of three times the forward's (recomputation not counted)."""
        return 3 * self.get_total_flops()


def peak_flops(device: torch.device) -> float | None:
    """The device's peak in FLOP/s: from data sheets on GPUs (None for an unknown one), measured by matrix products on a CPU."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return next((peak for part, peak in _GPU_PEAKS.items() if part in name), None)
    size = 768
    a, b = torch.ones(size, size), torch.ones(size, size)
    best = float("inf")
    for _ in range(12):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory so far: of the device on a GPU, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return rss if sys.platform == "darwin" else rss * 1024
