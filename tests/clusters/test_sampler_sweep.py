"""Sampler sweeps on Ray: what this process finds too, and a worker that dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from benchmarks.chaos.processes import descendants
from clusters import sampler_sweep
from clusters.session import ray_cluster
from components.evaluation.generation import Reference
from components.sweep.sampling import Bench, SamplingJob, SamplingOutcome
from pipelines.cli import main
from tests.pipelines.world import add_generators, build

pytestmark = pytest.mark.ray

VARY = ("--vary", "temperature=uniform: [0.5, 1.5]", "--vary", "guidance=choice: [1, 2]", "--trials", "6")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with ray_cluster(None, cpus=2):
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with contextlib.redirect_stdout(None):
        return add_generators(build(tmp_path_factory.mktemp("world")))


def sweep(world: Path, *words: str) -> list[str]:
    places = (str(world / "data"), "--judge", "classifier", "--store", str(world / "store"))
    return ["sweep", "prior", *places, "samples=40", *VARY, *words, "--json"]


def run(argv: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    capfd.readouterr()
    code = main(argv)
    out, err = capfd.readouterr()
    assert code == 0, err + out
    found = json.loads(out)
    for each in found["settings"]:
        each.pop("seconds")
    return found, err


def workers() -> list[int]:
    return [child for child, line in descendants(os.getpid()).items() if line.startswith("ray::_Sampler")]


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_two_workers_find_what_this_process_finds(search: str, cluster: None, world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flags = ("--search", search, f"seed={len(search)}")
    there, err = run(sweep(world, *flags, "--workers", "2"), capfd)
    assert there["made"]
    assert err == ""
    os.rename(there["url"], world / f"there-{search}")
    here, _ = run(sweep(world, *flags, "--workers", "0"), capfd)
    assert here["made"]
    assert here["settings"] == there["settings"]
    assert here["best"]["number"] == there["best"]["number"]
    pictures = [(Path(place) / "samples.png").read_bytes() for place in (world / f"there-{search}", here["url"])]
    assert pictures[0] == pictures[1]


def test_a_worker_loads_model_and_judge_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counted(Bench):
        loads = 0

        @classmethod
        def load(cls, job: SamplingJob, reference: Reference, device: torch.device) -> Bench:
            Counted.loads += 1
            return cls(job, cast(Any, None), cast(Any, None), reference)

        def run(self, sampler: Mapping[str, Any]) -> SamplingOutcome:
            return SamplingOutcome(state="finished", seconds=float(sampler["steps"]))

    monkeypatch.setattr(sampler_sweep, "Bench", Counted)
    monkeypatch.setattr(sampler_sweep.Reference, "from_bytes", lambda data: None)
    worker = sampler_sweep._Sampler({"model": "model", "judge": "judge", "samples": 2, "seed": 0}, gpu=False)
    assert [worker.run({"steps": steps}, b"")["outcome"]["seconds"] for steps in (1, 2, 3)] == [1, 2, 3]
    assert Counted.loads == 1


def test_a_worker_that_dies_is_replaced(cluster: None, world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    killed: list[int] = []

    def kill_one() -> None:
        deadline = time.monotonic() + 120
        while not killed and time.monotonic() < deadline:
            for pid in workers()[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            time.sleep(0.02)

    killer = threading.Thread(target=kill_one)
    killer.start()
    found, _ = run(sweep(world, "seed=9", "--workers", "2"), capfd)
    killer.join()
    assert killed
    assert [each["state"] for each in found["settings"]] == ["finished"] * 6
    deadline = time.monotonic() + 60
    while workers() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not workers()


def test_more_cpus_than_a_node_has_are_told(cluster: None, world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    argv = sweep(world, "resources.cpus=64", "--workers", "2")
    assert main(argv) == 2
    assert "a trial asks for 64 CPU" in json.loads(capfd.readouterr().out)["error"]
