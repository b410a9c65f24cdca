"""A run of 1 to 3 workers on a cluster that changes: two nodes join, one is drained, one is killed, and it ends as if nothing had been.

    python -m benchmarks.elastic

Starts one raylet and a training run on it, then two more raylets; when three workers train, drains the node of one as an operator does,
and kills the raylet of another with kill -9.
Every worker writes down which rows it trained at which step, and when; so what is compared with an undisturbed run of one worker are the
very rows of each global batch, and the final weights.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.table import Table
from clusters.raylets import Raylets
from clusters.session import ENVIRONMENT
from components.families.contract import OptimizerConfig
from components.training.communication import Communication
from components.training.config import TrainConfig
from components.training.job import TrainingJob, execute
from components.training.loop import Trainer
from components.training.outlet import Outlet
from tests.gang import Gang

DIARY = "RAYMILL_ELASTIC_DIARY"
CHECKPOINT_EVERY = 50
LOG_EVERY = 5
PATIENCE_SECONDS = 600.0
ONE, TWO, DRAIN, KILL = "a node joins", "another node joins", "a node is drained", "kill -9 of a raylet"


def keep_diary() -> None:
    """Lets this process write down the rows of each step that it trains. Ray calls it in every worker process."""
    original: Callable[..., None] = Trainer.train_step

    def train_step(self: Trainer, batch: Any, measures: Any) -> None:
        rows = [hashlib.sha256(image.numpy().tobytes()).hexdigest()[:12] for image in batch["image"].cpu()]
        entry = {"step": self.step, "rank": self.world.rank, "size": self.world.size, "rows": rows}
        original(self, batch, measures)
        with (Path(os.environ[DIARY]) / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(entry | {"time": time.time()}) + "\n")

    Trainer.train_step = train_step  # type: ignore[method-assign]


@dataclass(frozen=True)
class Trained:
    """One step, trained by one group of workers: its global batch, and when it was over."""

    step: int
    size: int
    time: float
    rows: tuple[str, ...]


def read_diary(folder: Path) -> list[Trained]:
    """Every step that all workers of a group trained, in order of time."""
    entries = [json.loads(line) for file in folder.iterdir() for line in file.read_text().splitlines() if line.endswith("}")]
    attempts: dict[tuple[int, int, int], list[dict[str, Any]]] = defaultdict(list)
    again: dict[tuple[int, int, int], int] = defaultdict(int)
    for entry in sorted(entries, key=lambda entry: entry["time"]):
        member = (entry["step"], entry["size"], entry["rank"])
        attempts[entry["step"], entry["size"], again[member]].append(entry)
        again[member] += 1
    whole = [sorted(group, key=lambda entry: entry["rank"]) for (_, size, _), group in attempts.items() if len(group) == size]
    found = [
        Trained(group[0]["step"], len(group), max(entry["time"] for entry in group), tuple(row for entry in group for row in entry["rows"]))
        for group in whole
    ]
    return sorted(found, key=lambda each: each.time)


def job(data: str, run: Path, steps: int) -> TrainingJob:
    train = TrainConfig(
        steps=steps,
        batch_size=256,
        log_every=LOG_EVERY,
        checkpoint_every=CHECKPOINT_EVERY,
        optimizer=OptimizerConfig(name="sgd", lr=0.002),
        warmup_steps=20,
    )
    return TrainingJob(family="classifier", model={"widths": [16, 32], "feature_dim": 32}, train=train, data=data, run=str(run))


class Seen:
    """How far the run is, as its rows tell the driver."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._step = self._workers = 0

    def show(self, row: dict[str, Any]) -> None:
        if "line" in row:
            print(f"  {row['line']}", flush=True)
            return
        with self._changed:
            self._step, self._workers = row["step"], row["workers"]
            self._changed.notify_all()

    def wait(self, workers: int, steps: int) -> None:
        """Until so many workers have trained so many steps, and stand between two checkpoints."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._workers == workers, PATIENCE_SECONDS), f"never {workers} workers"
            first = self._step
            between = range(CHECKPOINT_EVERY // 2, CHECKPOINT_EVERY)
            self._changed.wait_for(lambda: self._step >= first + steps and self._step % CHECKPOINT_EVERY in between, PATIENCE_SECONDS)


def drain(raylets: Raylets, number: int) -> None:
    """What an operator or an autoscaler does before it takes a node away."""
    import ray

    node = next(node["NodeID"] for node in ray.nodes() if f"/{number}/" in node["RayletSocketName"])
    why = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=benchmark", "--deadline-remaining-seconds=300"]
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", f"--address={raylets.address}", f"--node-id={node}", *why]
    subprocess.run(command, check=True, capture_output=True)


def run_elastic(raylets: Raylets, one: TrainingJob, diary: Path) -> dict[str, float]:
    """Trains the job while the cluster changes; returns when it did: event -> time."""
    import ray

    from clusters.train import WorkerGroup

    hook = {"worker_process_setup_hook": "benchmarks.elastic.keep_diary", "env_vars": {DIARY: str(diary)}}
    ray.init(address=raylets.address, runtime_env=hook, log_to_driver=False, logging_level="ERROR")
    events, seen = {"start": time.time()}, Seen()

    def disturb() -> None:
        seen.wait(workers=1, steps=10)
        raylets.add_node()
        events[ONE] = time.time()
        raylets.add_node()
        events[TWO] = time.time()
        seen.wait(workers=3, steps=20)
        events[DRAIN] = time.time()
        drain(raylets, 1)
        seen.wait(workers=2, steps=20)
        events[KILL] = time.time()
        raylets.kill_node(2)

    chaos = threading.Thread(target=disturb, daemon=True)
    chaos.start()
    group = WorkerGroup(1, 3)
    try:
        group.train(one, seen.show)
    finally:
        events["end"] = time.time()
        group.close()
        ray.shutdown()
    chaos.join(timeout=60)
    return events


def rest_at(one: TrainingJob, first: int, last: int | None) -> None:
    """One plain process of a group that trains from step `first`, and rests at step `last`."""
    rows = itertools.count(first + LOG_EVERY, LOG_EVERY)
    execute(one, Outlet(torch.device("cpu"), Communication.current(), asked_to_rest=lambda: next(rows) == last))


def replay(one: TrainingJob, sizes: list[dict[str, int]]) -> None:
    """The job in plain processes that change their number at the same steps, with no cluster and no death."""
    gang = Gang(3)
    for size, following in itertools.zip_longest(sizes, sizes[1:]):
        gang.run(rest_at, size["workers"], one, size["step"], following and following["step"])
    gang.close()


def changes(trained: list[Trained]) -> Iterator[tuple[Trained, Trained]]:
    """The last step of each group and the first of the next."""
    for before, after in itertools.pairwise(trained):
        if before.size != after.size or after.step <= before.step:
            yield before, after


def main(steps: int = 3000) -> Table:
    table = Table(
        f"A run of 1 to 3 workers, {steps} steps, a checkpoint every {CHECKPOINT_EVERY}",
        ["event", "workers after", "s trained on after it", "s without training", "steps trained twice"],
    )
    with tempfile.TemporaryDirectory() as scratch:
        diaries = {name: Path(scratch) / f"diary-{name}" for name in ("calm", "elastic")}
        for folder in diaries.values():
            folder.mkdir()
        with Raylets.start("elastic", 1, environment={"PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}) as raylets:
            os.environ |= ENVIRONMENT | raylets.environment  # which Ray reads when it is imported
            from benchmarks.work import prepared

            data = prepared(scratch)
            events = run_elastic(raylets, job(data, Path(scratch) / "elastic", steps), diaries["elastic"])
        keep_diary()
        os.environ[DIARY] = str(diaries["calm"])
        execute(job(data, Path(scratch) / "calm", steps), Outlet())
        trained, calm = read_diary(diaries["elastic"]), read_diary(diaries["calm"])
        table.add("start", trained[0].size, None, trained[0].time - events["start"], 0)
        for before, after in changes(trained):
            event = [name for name, when in events.items() if when < after.time][-1]
            table.add(event, after.size, max(0.0, before.time - events[event]), after.time - before.time, before.step + 1 - after.step)
        batches = {each.step: each.rows for each in calm}
        wrong = [each.step for each in trained if each.rows != batches[each.step]]
        missing = batches.keys() - {each.step for each in trained}
        sizes = json.loads((Path(scratch) / "elastic" / "run.json").read_text())["sizes"]
        replay(job(data, Path(scratch) / "replay", steps), sizes)
        calm_weights, weights, replayed = (
            load_file(Path(scratch) / name / "model" / "model.safetensors") for name in ("calm", "elastic", "replay")
        )
    assert not wrong, f"other global batches at steps {wrong[:5]}"
    assert not missing, f"steps never trained: {sorted(missing)[:5]}"
    counts = [size["workers"] for size in sizes]
    assert (counts[0], max(counts), counts[-1]) == (1, 3, 1), sizes
    assert all(torch.equal(replayed[name], value) for name, value in weights.items()), "other bits than without a cluster"
    apart = max(float((calm_weights[name] - value).abs().max()) for name, value in weights.items())
    assert apart < 1e-3, f"weights {apart} apart"
    print(f"sizes: {sizes}")
    print(f"all {len(batches)} global batches are those of one worker, whose weights are within {apart:.1e}")
    print("weights bit-identical to plain processes that change their number at the same steps", flush=True)
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    print(main(parser.parse_args().steps))
