"""Sweeps on Ray Tune: warm processes, the bits of plain training, processes and drivers that die, on one shared cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.chaos.processes import descendants
from clusters.session import ray_cluster
from components.errors import UserError
from components.sweep.trial import Outcome, Trial
from components.training.job import execute
from components.training.outlet import Outlet, Row
from pipelines.cli import main
from tests.sweep.test_trial import job, same

pytestmark = pytest.mark.ray

TINY = ("model.widths=[4,8]", "model.feature_dim=8", "train.batch_size=32", "train.log_every=1", "train.checkpoint_every=2")
RATE = ("--vary", "train.optimizer.lr=log: [1e-4, 1e-1]")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with ray_cluster(None, cpus=2):
        yield


def sweep(data: Path, store: Path, *words: str) -> list[str]:
    return ["sweep", "classifier", str(data), *TINY, *RATE, *words, "--store", str(store), "--json"]


def run(argv: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    capfd.readouterr()
    code = main(argv)
    out, err = capfd.readouterr()
    assert code == 0, err
    return json.loads(out), err


def processes(pid: int) -> list[int]:
    """Trial processes that `pid` has started, through Ray's own."""
    titles = ("ray::TrialProcess", "ray::ResourceTrainable")  # between calls, and in one
    return [child for child, line in descendants(pid).items() if line.startswith(titles)]


class Listed:
    """A guide with a list of jobs, which stops none."""

    def __init__(self, *jobs: Any) -> None:
        self._jobs, self._next = jobs, 0
        self.rows: list[Row] = []
        self.ended: dict[int, Outcome] = {}
        self.first = threading.Event()

    def next(self) -> Trial | None:
        self._next += 1
        return Trial(self._next - 1, self._jobs[self._next - 1])

    def exhausted(self) -> bool:
        return self._next == len(self._jobs)

    def reports(self, number: int, row: Row) -> bool:
        self.rows.append(row)
        self.first.set()
        return True

    def ends(self, number: int, outcome: Outcome) -> None:
        self.ended[number] = outcome


def test_a_sweep_on_ray_is_the_sweep_of_one_process_and_then_does_nothing(
    cluster: None, tmp_path: Path, small_data_folders: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    words = ("--trials", "4", "--scheduler", "asha", "train.steps=18")
    there, err = run(sweep(small_data_folders["images"], tmp_path / "ray", *words), capfd)
    assert "Trial" not in err  # no tables, no logs of the framework
    here, _ = run(sweep(small_data_folders["images"], tmp_path / "plain", *words, "--workers", "0"), capfd)
    assert there["trials"] == here["trials"]
    assert {trial["state"] for trial in there["trials"]} == {"finished", "stopped"}
    for trial in there["trials"]:
        if trial["artifact"]:
            assert same(*(tmp_path / store / "artifacts" / trial["artifact"] for store in ("ray", "plain")))
    again, _ = run(sweep(small_data_folders["images"], tmp_path / "ray", *words), capfd)
    assert not again["made"]
    assert again["trials"] == there["trials"]


def test_a_population_on_ray_is_the_population_of_one_process(
    cluster: None, tmp_path: Path, small_data_folders: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    words = ("--trials", "4", "--scheduler", "pbt", "train.steps=12", "pbt.interval_steps=4")
    there, _ = run(sweep(small_data_folders["images"], tmp_path / "ray", *words), capfd)
    here, _ = run(sweep(small_data_folders["images"], tmp_path / "plain", *words, "--workers", "0"), capfd)
    assert there["trials"] == here["trials"]
    assert any(course["copied"] is not None for trial in there["trials"] for course in trial["generations"])
    assert same(*(tmp_path / store / "artifacts" / there["name"] for store in ("ray", "plain")))


def test_a_killed_process_costs_nothing_but_time(cluster: None, tmp_path: Path, small_data_folders: dict[str, Path]) -> None:
    from clusters.tune import run_trials

    data, long = small_data_folders["images"], {"steps": 400, "checkpoint_every": 20, "evaluate_every": 20}
    guide = Listed(job(tmp_path / "killed", data, **long))

    def kill() -> None:
        guide.first.wait(60)
        os.kill(processes(os.getpid())[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    run_trials(guide, cpus=1)
    killer.join()
    execute(job(tmp_path / "calm", data, **long), Outlet(torch.device("cpu")))
    assert json.loads((tmp_path / "killed" / "run.json").read_text())["starts"] == 2
    assert same(tmp_path / "killed", tmp_path / "calm")
    assert guide.ended[0].state == "finished"
    assert sorted({row["step"] for row in guide.rows}) == list(range(20, 401, 20))


def test_one_warm_process_takes_trial_after_trial(cluster: None, tmp_path: Path, small_data_folders: dict[str, Path]) -> None:
    from clusters.tune import run_trials

    seen: set[int] = set()

    class Watching(Listed):
        def reports(self, number: int, row: Row) -> bool:
            seen.update(processes(os.getpid()))
            return number != 1 and super().reports(number, row)

    guide = Watching(*(job(tmp_path / str(number), small_data_folders["images"]) for number in range(4)))
    run_trials(guide, cpus=1, at_most=1)
    assert len(seen) == 1
    assert sorted(guide.ended) == [0, 2, 3]  # trial 1 was stopped at its first scores
    assert not (tmp_path / "1" / "model").exists()


def test_a_process_without_a_job_rests_until_there_is_one_again(tmp_path: Path) -> None:
    from clusters.tune import _Desk

    class Waiting(Listed):
        """Gives the second half of its jobs only when it is told to."""

        held = True

        def next(self) -> Trial | None:
            return None if self.held and self._next == 2 else super().next()

    guide = Waiting(*(job(tmp_path / str(number), tmp_path) for number in range(4)))
    desk = _Desk(guide, gpu=False)
    first, second = desk.next("a"), desk.next("b")
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert first["job"]["run"] == str(tmp_path / "0")
    assert desk.next("c") is None  # two processes are all that was ever needed
    desk.leaves("a")
    assert desk.next("c") == {"job": None, "gpu": False}
    assert desk.rests("c")
    assert desk.rests_on()
    assert desk.next("d") is None
    guide.held = False
    assert not desk.rests_on()
    desk.leaves("c")
    given = [desk.next(name) for name in ("e", "f")]
    assert [each["job"]["run"] for each in given if isinstance(each, dict)] == [str(tmp_path / "2"), str(tmp_path / "3")]
    assert desk.next("g") == "FINISHED"


def test_a_users_mistake_arrives_as_itself(cluster: None, tmp_path: Path) -> None:
    from clusters.tune import run_trials

    with pytest.raises(UserError, match="no data set"):
        run_trials(Listed(job(tmp_path / "run", tmp_path)), cpus=1)


def test_a_mistake_of_ours_in_the_guide_ends_the_sweep(cluster: None, tmp_path: Path, small_data_folders: dict[str, Path]) -> None:
    from clusters.tune import run_trials

    class Broken(Listed):
        def reports(self, number: int, row: Row) -> bool:
            raise ZeroDivisionError("ours")

    with pytest.raises(ZeroDivisionError, match="ours"):
        run_trials(Broken(job(tmp_path / "run", small_data_folders["images"])), cpus=1)


@pytest.mark.parametrize(("cpus", "gpus", "message"), [(512, 0, "asks for 512 CPU"), (1, 3, "1 CPU and 3 GPU.*0 GPU")])
def test_what_no_node_holds_is_told_before_anything_starts(cluster: None, cpus: float, gpus: float, message: str) -> None:
    from clusters.tune import run_trials

    with pytest.raises(UserError, match=message):
        run_trials(Listed(), cpus, gpus)


@pytest.mark.slow
def test_a_killed_driver_goes_on_where_it_stopped(
    tmp_path: Path, small_data_folders: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """One trial's process is killed, then the driver, by SIGKILL; the same command ends with what an undisturbed sweep ends with."""
    data = small_data_folders["images"]
    words = ("--trials", "6", "--scheduler", "asha", "train.steps=600", "train.checkpoint_every=10")
    command = [sys.executable, "-m", "pipelines.cli", *sweep(data, tmp_path / "killed", *words, "--workers", "2")]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    records = tmp_path / "killed" / "runs"
    _until(lambda: len(list(records.glob("sweep-*/checkpoints/*.json"))) == 2, driver)
    os.kill(processes(driver.pid)[0], signal.SIGKILL)
    _until(lambda: any((tmp_path / "killed" / "artifacts").glob("classifier-*/artifact.json")), driver)
    driver.kill()
    driver.wait()
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "killed" / "artifacts").glob("classifier-*/artifact.json")}
    assert before
    assert not list((tmp_path / "killed" / "artifacts").glob("sweep-*"))
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    calm, _ = run(sweep(data, tmp_path / "calm", *words, "--workers", "0"), capfd)
    assert json.loads(ended.stdout)["trials"] == calm["trials"]
    assert {file: file.stat().st_mtime_ns for file in before} == before
    for trial in calm["trials"]:
        if trial["artifact"]:
            assert same(*(tmp_path / store / "artifacts" / trial["artifact"] for store in ("killed", "calm")))


def _until(happened: Any, driver: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert driver.poll() is None, driver.stdout.read().decode() if driver.stdout else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)
