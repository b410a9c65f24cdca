"""The training loop inside a Ray `TorchTrainer`, with a worker group that stays warm from one stage to the next.

Starting a group costs many seconds, nearly all of it imports in new processes, and none of it depends on the job. So one
`TorchTrainer.fit` serves all the jobs of a session: its workers wait at a mailbox, run a job with the loop that every back-end runs, and
wait again. Ray restarts a group whose worker died; the new workers find the open job at the mailbox and go on from its last checkpoint.
"""

from __future__ import annotations

import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray
import torch
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from clusters.mailbox import Mailbox
from clusters.session import log_folder, require_resources
from components.errors import UserError, brief
from components.training.communication import Communication
from components.training.job import TrainingJob, execute
from components.training.outlet import Outlet, Row

Show = Callable[[Row], None]
MAX_ATTEMPTS = 4
POLL_SECONDS = 1.0


class WorkerGroup:
    """`workers` data-parallel processes that train one job after another."""

    def __init__(self, workers: int, cpus_per_worker: float = 1.0, max_attempts: int = MAX_ATTEMPTS) -> None:
        self.workers = workers
        gpu = ray.cluster_resources().get("GPU", 0) >= workers
        per_worker = {"CPU": cpus_per_worker} | ({"GPU": 1.0} if gpu else {})
        require_resources(workers, per_worker)
        self._mailbox: Any = ray.remote(Mailbox).options(num_cpus=0, max_concurrency=workers + 8).remote(max_attempts)
        scratch = tempfile.mkdtemp(prefix="raymill-ray-")  # Ray's own record is a cache: ours is in the run folder
        trainer = TorchTrainer(
            serve,
            train_loop_config={"mailbox": self._mailbox},
            torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu, resources_per_worker=per_worker),
            run_config=RunConfig(  # type: ignore[call-arg]  # mypy sees the classes of Train's first version
                name=f"raymill-{uuid.uuid4().hex}",
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=-1, controller_failure_limit=3),  # type: ignore[call-arg]
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._fit, args=(trainer,), name="worker-group", daemon=True)
        self._thread.start()

    def _fit(self, trainer: TorchTrainer) -> None:
        try:
            trainer.fit()
        except Exception as error:  # told to whoever waits for a job
            self._failure = error

    def train(self, job: TrainingJob, show: Show) -> None:
        """Runs one job to its end. Raises UserError for the user's mistakes, RuntimeError with the place of the logs for ours."""
        number = ray.get(self._mailbox.post.remote(job.to_json()))
        seen = 0
        while True:
            rows, done, user_error, crash = ray.get(self._mailbox.news.remote(number, seen, POLL_SECONDS))
            seen += len(rows)
            for row in rows:
                show(row)
            if done:
                return
            if user_error is not None:
                raise UserError(user_error)
            if crash is not None:
                raise RuntimeError(f"training {job.run} failed: {crash}; the workers' logs are in {log_folder()}")
            if not self._thread.is_alive():
                raise RuntimeError(f"the worker group ended: {self._failure}; its logs are in {log_folder()}") from self._failure

    def close(self) -> None:
        """Lets the workers leave and waits for them."""
        ray.get(self._mailbox.close.remote())
        self._thread.join(timeout=30)


def serve(config: dict[str, Any]) -> None:
    """What each worker runs: jobs from the mailbox, until told to leave."""
    mailbox, number = config["mailbox"], -1
    world = Communication.current()
    device = get_device()
    while True:
        following = ray.get(mailbox.next_job.remote(number, world.rank))
        if following is None:
            return
        number, values = following
        outlet = Outlet(device, world, show=partial(mailbox.show.remote, number))
        try:
            execute(TrainingJob.parse(values, "training job"), outlet)
        except UserError as error:
            ray.get(mailbox.end.remote(number, user_error=str(error)))
            raise  # the other workers may wait in a collective: Ray takes the group down and starts a new one
        except Exception as error:
            ray.get(mailbox.end.remote(number, crash=brief(error)))
            raise
        if world.rank == 0:
            ray.get(mailbox.end.remote(number))
        if device.type == "cuda":
            torch.cuda.empty_cache()


@contextmanager
def worker_group(workers: int, cpus_per_worker: float = 1.0) -> Iterator[WorkerGroup]:
    """A warm worker group on the cluster that this process is connected to."""
    group = WorkerGroup(workers, cpus_per_worker)
    try:
        yield group
    finally:
        group.close()
