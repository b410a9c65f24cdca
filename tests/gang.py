"""Waiting processes for distributed tests: started once, joined into a gloo group of one to four for each call."""

from __future__ import annotations

import faulthandler
import itertools
import os
import signal
import tempfile
import time
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
        self._size = size
        self._runs = itertools.count()
        # Kept to the end: a process that has answered leaves its store a little later, and waits half an hour where the folder has gone.
        self._stores = tempfile.TemporaryDirectory()
        self._start()

    def _start(self) -> None:
        context = mp.get_context("spawn")
        self._tasks = [context.SimpleQueue() for _ in range(self._size)]
        pipes = [context.Pipe(duplex=False) for _ in range(self._size)]  # written to at once: a process that dies afterwards has answered
        self._answers = [reader for reader, _ in pipes]
        self._processes = [
            context.Process(target=_wait_for_tasks, args=(tasks, writer), daemon=True)
            for tasks, (_, writer) in zip(self._tasks, pipes, strict=True)
        ]
        for process in self._processes:
            process.start()
        for _, writer in pipes:
            writer.close()  # so that the end of a process is the end of its pipe

    def run(self, function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
        store = Path(self._stores.name) / str(next(self._runs))
        for rank in range(world_size):
            self._tasks[rank].put((function, args, rank, world_size, str(store)))
        try:
            answers = [self._answer(rank) for rank in range(world_size)]
        except (EOFError, TimeoutError) as lost:
            self._say_where_they_are()
            self._kill()
            self._start()  # for the tests to come
            raise AssertionError(f"{lost}; what the others were doing is in the captured stderr") from None
        failures = [value for succeeded, value in answers if not succeeded]
        if failures:  # all of them: where one fails, others fail in waiting for it
            raise AssertionError("\n".join(failures))
        return [value for _, value in answers]

    def _answer(self, rank: int) -> tuple[bool, Any]:
        if not self._answers[rank].poll(TIMEOUT_SECONDS):
            raise TimeoutError(f"rank {rank} has not answered within {TIMEOUT_SECONDS} s")
        try:
            return self._answers[rank].recv()
        except EOFError:
            self._processes[rank].join()
            raise EOFError(f"rank {rank} died with exit code {self._processes[rank].exitcode}") from None

    def _say_where_they_are(self) -> None:
        for process in self._processes:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signal.SIGUSR1)
                time.sleep(0.5)  # one after the other

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def close(self) -> None:
        for tasks in self._tasks:
            tasks.put(None)
        for process in self._processes:
            process.join(timeout=5)
        self._kill()
        self._stores.cleanup()


def _wait_for_tasks(tasks: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    faulthandler.register(signal.SIGUSR1)
    while (task := tasks.get()) is not None:
        function, args, rank, world_size, store = task
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
        try:
            value = function(*args)
            dist.barrier()  # a worker that leaves early aborts the group
            answers.send((True, value))
        except BaseException:
            answers.send((False, traceback.format_exc()))
        finally:
            dist.destroy_process_group()
