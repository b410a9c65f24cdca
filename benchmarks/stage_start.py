"""Seconds from calling a training stage to its first optimizer step on a warm cluster, beside a bare `TorchTrainer.fit` of an empty loop.

    python -m benchmarks.stage_start

Both use two workers on one local cluster that is up already. Our stages are timed twice over: the first one of a session, which starts
the worker group, and the later ones, which find it warm.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.table import Table
from benchmarks.work import tokenizer_job

ROUNDS = 3


def _bare_fit(scratch: str) -> float:
    from ray.train import LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def entered(config: dict[str, Any]) -> None:
        import time as clock
        from pathlib import Path as Place

        Place(config["stamp"]).write_text(str(clock.time()))

    stamp = Path(scratch) / "entered"
    started = time.time()
    run = RunConfig(name=f"bare-{started}", storage_path=scratch, logging_config=LoggingConfig(log_level="ERROR"))
    TorchTrainer(entered, train_loop_config={"stamp": str(stamp)}, scaling_config=ScalingConfig(num_workers=2), run_config=run).fit()
    return float(stamp.read_text()) - started


def _first_step(group: Any, scratch: str, number: int) -> float:
    started = time.time()
    first: list[float] = []
    group.train(tokenizer_job(scratch, f"run-{number}", steps=1), lambda row: first.append(time.time()))
    return first[0] - started


def main() -> Table:
    from clusters.session import ray_cluster

    bare, cold, warm = [], [], []
    with tempfile.TemporaryDirectory() as scratch, ray_cluster(None, cpus=4):
        from clusters.train import worker_group

        for number in range(ROUNDS):
            bare.append(_bare_fit(scratch))
            started = time.time()
            with worker_group(2) as group:
                created = time.time() - started
                cold.append(created + _first_step(group, scratch, 10 * number))
                warm += [_first_step(group, scratch, 10 * number + k) for k in (1, 2, 3)]
    base = statistics.median(bare)
    table = Table("seconds to the first optimizer step, 2 workers", ["who", "median s", "ratio to bare fit"])
    table.add("bare TorchTrainer.fit, empty loop entered", base, 1.0)
    table.add("raymill, first stage of a session", statistics.median(cold), statistics.median(cold) / base)
    table.add("raymill, every later stage", statistics.median(warm), statistics.median(warm) / base)
    return table


if __name__ == "__main__":
    print(main())
