"""The loop inside a Ray TorchTrainer: the same bits as elsewhere, failures survived and told, on one shared warm worker group."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.chaos.processes import descendants
from clusters.session import ray_cluster, require_answer, require_resources
from components.errors import UserError
from components.training.communication import Communication
from components.training.job import TrainingJob, execute
from components.training.outlet import Outlet
from tests.gang import Gang

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def group() -> Iterator[Any]:
    with ray_cluster(None, cpus=4):
        from clusters.train import worker_group

        with worker_group(2) as group:
            yield group


def job(folder: Path, data: Path, **train: Any) -> TrainingJob:
    settings = {"steps": 8, "batch_size": 32, "log_every": 1, "checkpoint_every": 2, "optimizer": {"lr": 0.01}} | train
    model = {"widths": [4, 8], "feature_dim": 8}
    return TrainingJob.parse({"family": "classifier", "model": model, "train": settings, "data": str(data), "run": str(folder)}, "test")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def on_worker(one: TrainingJob) -> None:
    execute(one, Outlet(torch.device("cpu"), Communication.current()))


def rest_at(one: TrainingJob, step: int) -> None:
    """Runs the job until it is asked to rest at a step with a row."""
    rows = iter(range(10, 2000, 10))
    assert not execute(one, Outlet(torch.device("cpu"), Communication.current(), asked_to_rest=lambda: next(rows) == step))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def worker_processes() -> list[int]:
    """Training workers that this process has started, through Ray's own."""
    return [pid for pid, line in descendants(os.getpid()).items() if "RayTrainWorker" in line]


def test_a_job_on_ray_has_the_bits_of_two_plain_processes(
    group: Any, gang: Gang, tmp_path: Path, small_data_folders: dict[str, Path]
) -> None:
    data, rows = small_data_folders["images"], []
    group.train(job(tmp_path / "ray", data), rows.append)
    gang.run(on_worker, 2, job(tmp_path / "plain", data))
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert same(weights(tmp_path / "ray"), weights(tmp_path / "plain"))


def test_a_killed_worker_costs_nothing_but_time(group: Any, gang: Gang, tmp_path: Path, small_data_folders: dict[str, Path]) -> None:
    data, seen = small_data_folders["images"], threading.Event()
    long = {"steps": 400, "checkpoint_every": 20}

    def kill() -> None:
        seen.wait(60)
        os.kill(worker_processes()[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    group.train(job(tmp_path / "killed", data, **long), lambda row: seen.set() if row["step"] >= 60 else None)
    killer.join()
    gang.run(on_worker, 2, job(tmp_path / "calm", data, **long))
    assert json.loads((tmp_path / "killed" / "run.json").read_text())["starts"] == 2
    assert same(weights(tmp_path / "killed"), weights(tmp_path / "calm"))


def test_a_run_grows_when_there_is_room_and_trains_no_step_twice(
    group: Any, gang: Gang, tmp_path: Path, small_data_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    from clusters import growth
    from clusters.train import WorkerGroup

    monkeypatch.setattr(growth, "LEAVING", 0.0)  # a change is always worth its price
    one, lines = job(tmp_path / "grown", small_data_folders["images"], steps=2000, checkpoint_every=2000, log_every=10), []
    occupied = placement_group([{"CPU": ray.available_resources()["CPU"] - 1}])  # leaves room for one worker
    assert occupied.wait(60)

    def show(row: dict[str, Any]) -> None:
        if "line" in row:
            lines.append(row["line"])
        elif row["step"] == 50:
            remove_placement_group(occupied)

    growing = WorkerGroup(1, 2, resize_seconds=0.0)
    try:
        growing.train(one, show)
    finally:
        growing.close()
    assert lines[-1:] == ["goes on with 2 workers, had 1"]
    info = json.loads((tmp_path / "grown" / "run.json").read_text())
    step = info["sizes"][1]["step"]
    assert info["sizes"] == [{"step": 0, "workers": 1}, {"step": step, "workers": 2}]
    assert (info["starts"], info["steps_this_start"]) == (2, 2000 - step)
    assert 0 < step < 2000  # no checkpoint was due: it was asked for

    again = one.model_copy(update={"run": str(tmp_path / "again")})
    gang.run(rest_at, 1, again, step)
    gang.run(on_worker, 2, again)
    assert same(weights(tmp_path / "grown"), weights(tmp_path / "again"))


def test_groups_that_die_without_a_new_step_end_the_job(group: Any, tmp_path: Path, small_data_folders: dict[str, Path]) -> None:
    import ray

    from clusters.train import WorkerGroup

    class Dying(WorkerGroup):
        started = 0

        def _start(self, show: Any) -> Any:
            """A group whose third gets one step further before it dies."""
            self.started += 1
            if self.started in (1, 3):
                ray.get(self._mailbox.show.remote(0, {"step": self.started}))
            ray.get(self._mailbox.end.remote(0, crash=f"OSError: gone {self.started}"))
            return SimpleNamespace(size=1, running=False, failure=OSError("gone"))

    dying = Dying(1, 1)
    with pytest.raises(RuntimeError, match=r"its workers died 4 times: OSError: gone 6; the workers' logs are in /"):
        dying.train(job(tmp_path / "dying", small_data_folders["images"]), lambda row: None)
    dying.close()


def test_a_users_mistake_arrives_as_itself_and_the_group_lives_on(group: Any, tmp_path: Path, small_data_folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="raise batch_size to at least 16"):
        group.train(job(tmp_path / "wrong", small_data_folders["images"], batch_size=8), lambda row: None)
    group.train(job(tmp_path / "right", small_data_folders["images"]), lambda row: None)
    assert (tmp_path / "right" / "model" / "config.json").exists()


def test_what_can_never_be_placed_is_told_with_its_sum(group: Any) -> None:
    with pytest.raises(UserError, match=r"64 workers x 1 CPU = 64 CPU, but the cluster has \d+"):
        require_resources(64, {"CPU": 1.0})


@pytest.mark.parametrize(("address", "message"), [("127.0.0.1:1", "nothing answers"), ("nowhere", "is not host:port")])
def test_an_address_without_a_cluster(address: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        require_answer(address)
