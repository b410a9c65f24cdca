"""All benchmarks, one after another: `python -m benchmarks`."""

from __future__ import annotations

from benchmarks import diffusers_peer, loader, recompute, ring, sampler_sweep, sampling, solvers, stage_start, sweep, throughput

for benchmark in (loader, throughput, stage_start, sweep, sampler_sweep, sampling, solvers, recompute, ring, diffusers_peer):
    print(benchmark.main(), flush=True)
    print(flush=True)
