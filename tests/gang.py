"""Waiting processes for distributed tests: started once, joined into a gloo group of one to four for each call."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT_SECONDS = 180


class Gang:
    """`run(function, world_size, *args)` calls `function(*args)` on every rank of a fresh gloo group and returns the results by rank."""

    def __init__(self, size: int = 4) -> None:
        context = mp.get_context("spawn")
        self._tasks = [context.SimpleQueue() for _ in range(size)]
        self._results = [context.Queue() for _ in range(size)]
        self._processes = [
            context.Process(target=_wait_for_tasks, args=(self._tasks[rank], self._results[rank]), daemon=True) for rank in range(size)
        ]
        for process in self._processes:
            process.start()

    def run(self, function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
        with tempfile.TemporaryDirectory() as folder:
            for rank in range(world_size):
                self._tasks[rank].put((function, args, rank, world_size, str(Path(folder) / "store")))
            answers = [self._results[rank].get(timeout=TIMEOUT_SECONDS) for rank in range(world_size)]
        failures = [value for succeeded, value in answers if not succeeded]
        if failures:  # all of them: where one fails, others fail in waiting for it
            raise AssertionError("\n".join(failures))
        return [value for _, value in answers]

    def close(self) -> None:
        for tasks in self._tasks:
            tasks.put(None)
        for process in self._processes:
            process.join(timeout=5)
            process.kill()


def _wait_for_tasks(tasks: Any, results: Any) -> None:
    torch.set_num_threads(1)
    while (task := tasks.get()) is not None:
        function, args, rank, world_size, store = task
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
        try:
            value = function(*args)
            dist.barrier()  # a worker that leaves early aborts the group
            results.put((True, value))
        except BaseException:
            results.put((False, traceback.format_exc()))
        finally:
            dist.destroy_process_group()
