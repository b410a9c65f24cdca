"""Wall time of a sweep over 24 settings of one trained model's sampler, beside `raymill evaluate` once a setting in fresh processes.

    python -m benchmarks.sampler_sweep
    python -m benchmarks.sampler_sweep STORE --model diffusion --data images --judge classifier --samples 1000

All sides find the same scores, of the same samples, and what the judge sees in real pictures lies in the store's cache for all of them.
Every side is a command of its own, its start and Ray's counted, on one thread a process. Without a STORE the pipeline `tokens` makes its
prior first.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.table import Table
from benchmarks.work import source
from components.families.model_folder import read_family
from pipelines.store import Store
from pipelines.training import find_model

WORKERS, SAMPLES = 2, 150
SETTINGS: dict[str, dict[str, tuple[Any, ...]]] = {  # 24 each
    "prior": {"temperature": (0.8, 0.9, 1.0, 1.1), "top_k": (32, 64, 128), "top_p": (0.95, 1.0)},
    "diffusion": {"steps": (2, 4, 6, 8), "guidance": (0.0, 1.0), "eta": (0.0, 0.5, 1.0)},
    "score_sde": {"steps": (2, 3, 4, 6, 8, 10), "sampler": ("euler", "heun"), "spacing": ("uniform", "quadratic")},
    "rectified_flow": {"steps": (2, 3, 4, 6, 8, 10), "sampler": ("euler", "heun"), "guidance": (0.0, 1.0)},
}


def _raymill(*words: str) -> tuple[float, dict[str, Any]]:
    """Seconds that a command took from its start to its end, and what it answered."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "pipelines.cli", *words, "--json"]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True, text=True)
    return time.perf_counter() - started, json.loads(done.stdout)


def main(store: str | None = None, model: str = "prior", data: str = "images", judge: str = "judge", samples: int = SAMPLES) -> Table:
    with tempfile.TemporaryDirectory() as scratch:
        if store is None:
            store = str(Path(scratch) / "store")
            _raymill("run", "tokens", "--preset", "quick", f"data={source()}", "--workers", "0", "--store", store)
        where = (model, data, "--judge", judge, "--store", store)
        options = SETTINGS[read_family(find_model(model, Store(store)))]
        _raymill("evaluate", *where, "--samples", str(samples))  # fills the cache
        one = [_evaluated(where, samples, values) for values in itertools.product(*options.values())]
        alone = sum(seconds for seconds, _ in one)
        table = Table(f"{len(one)} settings of a {model}, {samples} samples each", ["who", "s", "s a setting", "ratio"])
        table.add("raymill evaluate, a process a setting", alone, alone / len(one), 1.0)
        for workers in (0, WORKERS):
            seconds = _swept(where, samples, options, workers, [found for _, found in one])
            table.add(
                f"raymill sweep, {workers or 'without Ray, 1'} worker{'s' * (workers > 1)}", seconds, seconds / len(one), alone / seconds
            )
    return table


def _evaluated(where: tuple[str, ...], samples: int, values: tuple[Any, ...]) -> tuple[float, float]:
    model = find_model(where[0], Store(where[-1]))
    options = [f"{key}={value}" for key, value in zip(SETTINGS[read_family(model)], values, strict=True)]
    seconds, found = _raymill("evaluate", *where, "--samples", str(samples), *options)
    return seconds, found["scores"]["fd"]


def _swept(where: tuple[str, ...], samples: int, options: dict[str, tuple[Any, ...]], workers: int, expected: list[float]) -> float:
    spaces = [word for key, values in options.items() for word in ("--vary", f"{key}=choice: {json.dumps(values)}")]
    seconds, found = _raymill("sweep", *where, f"samples={samples}", "--search", "grid", *spaces, "--workers", str(workers))
    assert found["made"]
    for each, fd in zip(found["settings"], expected, strict=True):
        assert abs(each["scores"]["fd"] - fd) <= 1e-4 * fd, (each, fd)
    shutil.rmtree(found["url"])
    return seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", nargs="?", help="where the artifacts are")
    parser.add_argument("--model", default="prior")
    parser.add_argument("--data", default="images")
    parser.add_argument("--judge", default="judge")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    given = parser.parse_args()
    print(main(given.store, given.model, given.data, given.judge, given.samples))
