"""The settings of a sampler sweep on Ray: a few actors, each with its own copy of the model, and trials dealt to whoever is free.

These are plain actors and not Ray Tune's: a trial is one call without results on the way, so there is nothing for a scheduler to stop,
nothing to restore, and a trial that takes a second would pay for Tune's bookkeeping many times over. An actor that dies starts again, loads
again, and does its setting again.
"""

from __future__ import annotations

from typing import Any

import ray
import torch
from ray.exceptions import RayActorError

from clusters.session import log_folder
from clusters.tune import capacity
from components.errors import UserError
from components.evaluation.generation import Reference
from components.sweep.sampling import Bench, SamplerGuide, SamplingJob, SamplingOutcome

MAX_DEATHS = 3  # of one actor


def run_settings(job: SamplingJob, reference: Reference, guide: SamplerGuide, cpus: float, gpus: float | None, at_most: int) -> None:
    """Tries what `guide` has on the cluster that this process is connected to, `at_most` settings at once.

    `cpus` and `gpus` are those of one actor; None: one GPU where the cluster has any. Raises UserError when no node holds them, and for
    what the user can mend in an actor; RuntimeError when one died more than `MAX_DEATHS` times.
    """
    if gpus is None:
        gpus = min(1.0, ray.cluster_resources().get("GPU", 0.0))
    held = capacity({"CPU": cpus} | ({"GPU": gpus} if gpus else {}))
    shared = ray.put(reference.to_bytes())
    actor: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=MAX_DEATHS, max_task_retries=MAX_DEATHS)(_Sampler)
    free: list[Any] = []
    running: dict[Any, tuple[Any, int]] = {}
    try:
        while True:
            while (free or len(running) < min(held, at_most)) and (trial := guide.next()) is not None:
                chosen = free.pop() if free else actor.remote(job.to_json(), gpus > 0)
                running[chosen.run.remote(dict(trial.sampler), shared)] = chosen, trial.number
            if not running:
                return
            (ended, *_), _ = ray.wait(list(running), num_returns=1)
            chosen, number = running.pop(ended)
            guide.ends(number, _outcome(ended, number))
            free.append(chosen)
    finally:
        for each in [*free, *(chosen for chosen, _ in running.values())]:
            ray.kill(each)


def _outcome(ended: Any, number: int) -> SamplingOutcome:
    try:
        answer = ray.get(ended)
    except RayActorError as error:
        raise RuntimeError(f"the process of trial {number} died {MAX_DEATHS + 1} times; its logs are in {log_folder()}") from error
    if "user_error" in answer:
        raise UserError(answer["user_error"])
    return SamplingOutcome.parse(answer["outcome"], "outcome")


class _Sampler:
    """One process. A user's mistake travels as text, since an exception would come back wrapped in Ray's own and its traceback."""

    def __init__(self, job: dict[str, Any], gpu: bool) -> None:
        self._job, self._gpu = job, gpu
        self._bench: Bench | None = None

    def run(self, sampler: dict[str, Any], reference: bytes) -> dict[str, Any]:
        try:
            if self._bench is None:
                device = torch.device("cuda" if self._gpu else "cpu")
                self._bench = Bench.load(SamplingJob.parse(self._job, "job"), Reference.from_bytes(reference), device)
            return {"outcome": self._bench.run(sampler).to_json()}
        except UserError as error:
            return {"user_error": str(error)}
