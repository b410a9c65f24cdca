"""All benchmarks, one after another: `python -m benchmarks`."""

from __future__ import annotations

from benchmarks import (
    continuous,
    diffusers_peer,
    duality,
    flow_peers,
    invertible,
    loader,
    pixelcnn,
    recompute,
    ring,
    sampler_sweep,
    sampling,
    solvers,
    stage_start,
    sweep,
    throughput,
)

for benchmark in (
    loader,
    throughput,
    stage_start,
    sweep,
    sampler_sweep,
    sampling,
    solvers,
    duality,
    recompute,
    invertible,
    ring,
    diffusers_peer,
    flow_peers,
    pixelcnn,
    continuous,
):
    print(benchmark.main(), flush=True)
    print(flush=True)
