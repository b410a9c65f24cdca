"""The training loop inside a Ray `TorchTrainer`, with a worker group that stays warm from one stage to the next and may change its size.

Starting a group costs many seconds, nearly all of it imports in new processes, and none of it depends on the job. So one
`TorchTrainer.fit` serves the jobs of a session: its workers wait at a mailbox, run a job with the loop that every back-end runs, and wait
again. A `fit` has one size and does not outlive a death. The driver starts the next, as large as there is room for; its workers find the
open job at the mailbox and go on from its last checkpoint. When there is room for more, or a node is to leave, the driver asks for that
checkpoint first, so that no step is trained twice.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray
import torch
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from clusters.growth import Growth
from clusters.mailbox import Mailbox, News
from clusters.room import Room, draining_nodes
from clusters.session import log_folder, require_resources
from components.errors import UserError, brief
from components.training.communication import Communication
from components.training.job import TrainingJob, execute
from components.training.loop import check_fits
from components.training.outlet import Outlet, Row

Show = Callable[[Row], None]
MAX_DEATHS = 4  # in a row, with no new step between
RESIZE_SECONDS = 60.0
GATHER_SECONDS = 10.0  # nodes that come together are taken together
POLL_SECONDS = 1.0


class Fit:
    """One `TorchTrainer.fit` of `size` workers in a thread: it ends when they leave, or one of them dies."""

    def __init__(self, size: int, per_worker: dict[str, float], avoided: dict[str, str], mailbox: Any, scratch: str) -> None:
        self.size = size
        self.failure: Exception | None = None
        gpu = "GPU" in per_worker
        trainer = TorchTrainer(
            serve,
            train_loop_config={"mailbox": mailbox},
            torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
            scaling_config=ScalingConfig(  # type: ignore[call-arg]  # mypy sees the classes of Train's first version
                num_workers=size, use_gpu=gpu, resources_per_worker=per_worker, label_selector=avoided or None
            ),
            run_config=RunConfig(  # type: ignore[call-arg]
                name=f"raymill-{uuid.uuid4().hex}",
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=0),  # type: ignore[call-arg]
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )
        self._thread = threading.Thread(target=self._run, args=(trainer,), name="worker-group", daemon=True)
        self._thread.start()

    def _run(self, trainer: TorchTrainer) -> None:
        try:
            trainer.fit()
        except Exception as error:  # told to whoever waits for a job
            self.failure = error

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> None:
        self._thread.join(timeout=30)


class WorkerGroup:
    """`least` to `most` data-parallel processes that train one job after another."""

    def __init__(self, least: int, most: int, cpus_per_worker: float = 1.0, resize_seconds: float = RESIZE_SECONDS) -> None:
        self.least, self.most = least, most
        gpu = ray.cluster_resources().get("GPU", 0) >= least
        self._per_worker = {"CPU": cpus_per_worker} | ({"GPU": 1.0} if gpu else {})
        require_resources(least, self._per_worker)
        self._room = Room(self._per_worker)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # it must not die with another node
        self._mailbox: Any = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()
        self._scratch = tempfile.mkdtemp(prefix="raymill-ray-")  # Ray's own record is a cache: ours is in the run folder
        self._resize_seconds = resize_seconds
        self._fit: Fit | None = None
        self._growth = Growth(resize_seconds, time.monotonic())
        self._taken = 0  # how often the job was taken up
        self._asked = False  # the fit's workers are asked to leave
        self._looked = 0.0  # for room and draining nodes
        self._room_since: float | None = None

    def train(self, job: TrainingJob, show: Show) -> None:
        """Runs one job to its end. Raises UserError for the user's mistakes, RuntimeError with the place of the logs for ours."""
        check_fits(job.train, self.most)  # and so any smaller number
        number = ray.get(self._mailbox.post.remote(job.to_json()))
        self._growth.forget()
        self._taken = 0
        seen = lost = deaths = furthest = 0  # groups lost in all, and since the last new step
        fit = self._fit if self._fit is not None and self._fit.running else self._start(show)
        while True:
            running = fit.running  # before the news: what a group says last is heard
            news: News = ray.get(self._mailbox.news.remote(number, seen, POLL_SECONDS if running else 0.0))
            seen += len(news.rows)
            if news.taken > self._taken:
                self._taken, self._growth.ready = news.taken, self._growth.ready or time.monotonic()
            size = {"facts": (_workers(fit.size),)} if self.least < self.most else {}
            for row in news.rows:
                show(row | {"restarts": lost} | size)
                self._growth.see(row["step"], time.monotonic())
                deaths = 0 if row["step"] > furthest else deaths
                furthest = max(furthest, row["step"])
            if news.done:
                self._room.bid(0)
                return
            if news.user_error is not None:
                fit.join()  # the workers that did not make the mistake may wait for the one that did
                raise UserError(news.user_error)
            if not running:
                died = fit.failure is not None
                lost, deaths = lost + died, deaths + died
                if deaths >= MAX_DEATHS:
                    problem = f"its workers died {deaths} times: {news.crash or fit.failure}"
                    raise RuntimeError(f"training {job.run} failed: {problem}; the workers' logs are in {log_folder()}") from fit.failure
                fit = self._start(show)
            elif not self._asked and self._wants_rest(fit.size, job.last_step, news):
                ray.get(self._mailbox.ask_to_rest.remote(number))
                self._asked = True

    def _start(self, show: Show) -> Fit:
        """The next fit, as large as there is room for."""
        before = self._fit
        self._growth, self._asked, self._room_since = Growth(self._resize_seconds, time.monotonic()), False, None
        waiting = f"waiting for room for {_workers(self.least)} of {self._room} on the cluster"
        size = self._room.claim(self.least, self.most, lambda: show({"line": waiting}))
        if before is not None and before.size != size:
            show({"line": f"goes on with {_workers(size)}, had {before.size}"})
        self._fit = Fit(size, self._per_worker, self._room.avoided, self._mailbox, self._scratch)
        return self._fit

    def _wants_rest(self, size: int, steps: int, news: News) -> bool:
        """Whether the workers should leave for a moment: for more of them, or since a node of theirs is to go and others have room."""
        now = time.monotonic()
        if now - self._looked < POLL_SECONDS:
            return False
        self._looked = now
        if draining_nodes() & {news.nodes.get(rank, "") for rank in range(size)} and self._room.in_all() >= self.least:
            return True
        if not self._growth.worthwhile(size, self.most, steps, now):
            self._room.bid(0)
            return False
        self._room.bid(self.most - size)
        more = self._room.ready()
        if more == 0:
            return False
        self._room_since = self._room_since or now
        if size + more < self.most and now - self._room_since < GATHER_SECONDS:
            return False
        return self._growth.worthwhile(size, size + more, steps, now)

    def close(self) -> None:
        """Lets the workers leave and waits for them."""
        self._room.bid(0)
        ray.get(self._mailbox.close.remote())
        if self._fit is not None:
            self._fit.join()
        shutil.rmtree(self._scratch, ignore_errors=True)


def serve(config: dict[str, Any]) -> None:
    """What each worker runs: jobs from the mailbox, until told to leave."""
    mailbox, number = config["mailbox"], -1
    world = Communication.current()
    device, node = get_device(), ray.get_runtime_context().get_node_id()
    while True:
        following = ray.get(mailbox.next_job.remote(number, world.rank, node))
        if following is None:
            return
        number, values = following
        outlet = Outlet(device, world, partial(mailbox.show.remote, number), asked_to_rest=_asked(mailbox, number, world.rank))
        try:
            ended = execute(TrainingJob.parse(values, "training job"), outlet)
        except UserError as error:
            ray.get(mailbox.end.remote(number, user_error=str(error)))
            raise  # the other workers may wait in a collective: Ray takes the group down
        except Exception as error:
            ray.get(mailbox.end.remote(number, crash=brief(error)))
            raise
        if not ended:
            return  # asked to rest: the job stays open for the next group
        if world.rank == 0:
            ray.get(mailbox.end.remote(number))
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _workers(number: int) -> str:
    return f"{number} worker{'' if number == 1 else 's'}"


def _asked(mailbox: Any, number: int, rank: int) -> Callable[[], bool]:
    """Whether the driver asked the job to rest, answered at once; rank 0's answer is the one that counts."""
    if rank:
        return lambda: False
    word = mailbox.asked_to_rest.remote(number)
    return lambda: bool(ray.wait([word], timeout=0)[0])


@contextmanager
def worker_group(least: int, most: int | None = None, cpus_per_worker: float = 1.0) -> Iterator[WorkerGroup]:
    """A warm group of `least` to `most` (default: as many) workers on the cluster that this process is connected to."""
    group = WorkerGroup(least, most or least, cpus_per_worker)
    try:
        yield group
    finally:
        group.close()
