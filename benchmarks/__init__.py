"""Raymill beside its peers on the same work, in one run. `python -m benchmarks` runs all; `python -m benchmarks.loader` one."""
