"""All benchmarks, one after another: `python -m benchmarks`."""

from __future__ import annotations

from benchmarks import loader, recompute, sampling, stage_start, sweep, throughput

for benchmark in (loader, throughput, stage_start, sweep, sampling, recompute):
    print(benchmark.main(), flush=True)
    print(flush=True)
