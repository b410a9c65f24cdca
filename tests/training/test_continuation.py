"""A run that begins with the checkpoint of another: the bits of one run, other values, any number of workers, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from components.errors import UserError
from components.training.communication import Communication
from components.training.job import TrainingJob, execute, finished
from components.training.outlet import Outlet
from components.training.record import RunRecord, read_metrics
from tests.gang import Gang

HERE = Outlet(torch.device("cpu"))
SMALL = {"widths": [4, 8], "feature_dim": 8}


def job(run: Path, data: Path, model: dict[str, Any] | None = None, family: str = "classifier", **more: Any) -> TrainingJob:
    fields = {name: more.pop(name) for name in ("resume_from", "until") if name in more}
    settings = {"steps": 12, "batch_size": 32, "log_every": 2, "checkpoint_every": 5, "evaluate_every": 4, "warmup_steps": 2}
    settings |= {"optimizer": {"lr": 0.01}, "ema_decay": 0.9} | more
    values = {"family": family, "model": SMALL | (model or {}), "train": settings, "data": str(data), "run": str(run)}
    return TrainingJob.parse(values | fields, "test")


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Of the published model, with the class rows of all workers one below the other."""
    parts: dict[str, list[torch.Tensor]] = {}
    for file in sorted((run / "model").glob("*.safetensors")):
        for name, value in load_file(file).items():
            parts.setdefault(name, []).append(value)
    return {name: torch.cat(found) if len(found) > 1 else found[0] for name, found in parts.items()}


def same(a: Path, b: Path) -> bool:
    one, other = weights(a), weights(b)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def checkpoint(run: Path, step: int) -> str:
    return str(run / "checkpoints" / f"step_{step:08d}")


@pytest.fixture
def images(small_data_folders: dict[str, Path]) -> Path:
    return small_data_folders["images"]


def test_a_run_rests_where_it_is_told_and_goes_on_in_the_same_folder(tmp_path: Path, images: Path) -> None:
    resting = job(tmp_path / "run", images, until=7)
    execute(resting, HERE)
    assert finished(resting)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000007"]
    assert not (tmp_path / "run" / "model").exists()
    before = (tmp_path / "run" / "run.json").read_bytes()
    execute(resting, HERE)  # it is there already
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    execute(job(tmp_path / "run", images, until=9), HERE)
    with pytest.raises(UserError, match="at step 9 already, beyond until=8"):
        execute(job(tmp_path / "run", images, until=8), HERE)
    execute(job(tmp_path / "run", images), HERE)
    execute(job(tmp_path / "plain", images), HERE)
    assert same(tmp_path / "run", tmp_path / "plain")
    assert {row["step"] for row in read_metrics(str(tmp_path / "run"))} == {2, 4, 5, 6, 7, 8, 9, 10, 12}


def test_begun_with_a_checkpoint_it_has_the_bits_of_one_run(tmp_path: Path, images: Path) -> None:
    execute(job(tmp_path / "first", images, until=7), HERE)
    execute(job(tmp_path / "second", images, resume_from=checkpoint(tmp_path / "first", 7)), HERE)
    execute(job(tmp_path / "plain", images), HERE)
    assert same(tmp_path / "second", tmp_path / "plain")
    assert not (tmp_path / "first" / "model").exists()
    assert [row["step"] for row in read_metrics(str(tmp_path / "second"))] == [8, 10, 12]
    assert RunRecord(str(tmp_path / "second")).info()["resumed_from"] == 7


def test_its_own_checkpoint_comes_before_the_others(tmp_path: Path, images: Path) -> None:
    execute(job(tmp_path / "first", images, until=4), HERE)
    begin = {"resume_from": checkpoint(tmp_path / "first", 4)}
    execute(job(tmp_path / "second", images, until=8, **begin), HERE)
    execute(job(tmp_path / "second", images, **begin), HERE)
    assert RunRecord(str(tmp_path / "second")).info()["resumed_from"] == 8
    execute(job(tmp_path / "plain", images), HERE)
    assert same(tmp_path / "second", tmp_path / "plain")


def test_other_values_count_from_that_step_on(tmp_path: Path, images: Path) -> None:
    """The peak of the schedule is the new one, the state of the optimizer and the schedule's place are the old ones."""
    execute(job(tmp_path / "first", images, until=6), HERE)
    begin = {"resume_from": checkpoint(tmp_path / "first", 6)}
    execute(job(tmp_path / "second", images, {"dropout": 0.5}, optimizer={"lr": 0.02}, **begin), HERE)
    execute(job(tmp_path / "plain", images), HERE)
    execute(job(tmp_path / "only_lr", images, optimizer={"lr": 0.02}, **begin), HERE)
    rates = {row["step"]: row["lr.classifier"] for row in read_metrics(str(tmp_path / "plain"))}
    for row in read_metrics(str(tmp_path / "second")):
        assert row["lr.classifier"] == pytest.approx(2 * rates[row["step"]])
    assert not same(tmp_path / "second", tmp_path / "plain")
    assert not same(tmp_path / "second", tmp_path / "only_lr")


def test_class_rows_go_on_with_any_number_of_workers(tmp_path: Path, small_data_folders: dict[str, Path], gang: Gang) -> None:
    data = small_data_folders["identities"]
    model = {"widths": [8], "depths": [1], "embedding_dim": 8, "loss": "cosface", "m3": 0.2}

    def recognise(run: Path, **more: Any) -> TrainingJob:
        given = {name: more.pop(name) for name in ("m3",) if name in more}
        values = {"family": "recognition", "model": model | given, "data": str(data), "run": str(run)}
        train = {"steps": 6, "batch_size": 32, "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}}
        return TrainingJob.parse(values | {"train": train} | more, "test")

    gang.run(_on_worker, 2, recognise(tmp_path / "first", until=3))
    begin = {"resume_from": checkpoint(tmp_path / "first", 3)}
    execute(recognise(tmp_path / "one", **begin), HERE)
    gang.run(_on_worker, 2, recognise(tmp_path / "two", **begin))
    execute(recognise(tmp_path / "plain"), HERE)
    execute(recognise(tmp_path / "other", m3=0.4, **begin), HERE)
    plain, one, two, other = (weights(tmp_path / run) for run in ("plain", "one", "two", "other"))
    assert any(name.startswith("head/") for name in plain)  # the class rows
    for name, value in plain.items():
        torch.testing.assert_close(one[name], value, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-4)
    assert any(not torch.equal(other[name], value) for name, value in one.items())


def _on_worker(job: TrainingJob) -> None:
    execute(job, Outlet(torch.device("cpu"), Communication.current()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"until": 12}, "until=12 is not before train.steps=12; leave it out"),
        ({"until": 0}, "until=0"),
        ({"resume_from": "somewhere"}, "'somewhere' is not the folder of a checkpoint; give RUN/checkpoints/step_00000100"),
        ({"resume_from": "{first}/checkpoints/step_6"}, "is not the folder of a checkpoint"),
        ({"resume_from": "{first}/checkpoints/step_00000012"}, "leaves nothing of the 12 steps"),
        ({"resume_from": "{first}/checkpoints/step_00000006", "until": 6}, "leaves nothing of the 6 steps"),
        ({"resume_from": "{first}/checkpoints/step_00000004"}, "no complete checkpoint is there"),
        ({"resume_from": "{root}/nowhere/checkpoints/step_00000006"}, "nowhere holds no run"),
        (
            {"model": {"widths": [4, 4]}},
            r"model\.widths was another than \[4, 4\] there; only train\.optimizer\.lr, .*model\.dropout may differ",
        ),
        ({"optimizer": {"name": "sgd"}}, r"train\.optimizer\.name was another than sgd"),
        ({"ema_decay": None}, r"train\.ema_decay was another than None"),
        ({"seed": 1}, r"train\.seed"),
    ],
)
def test_what_does_not_follow_is_refused(tmp_path: Path, images: Path, changes: dict[str, Any], message: str) -> None:
    execute(job(tmp_path / "first", images, until=6), HERE)
    places = {"root": tmp_path, "first": tmp_path / "first"}
    asked = {"resume_from": "{first}/checkpoints/step_00000006"} | changes
    asked["resume_from"] = str(asked["resume_from"]).format(**places)
    if "until" in changes and "resume_from" not in changes:
        del asked["resume_from"]
    with pytest.raises(UserError, match=message):
        execute(job(tmp_path / "second", images, **asked), HERE)


def test_a_folder_belongs_to_one_beginning(tmp_path: Path, images: Path) -> None:
    for name, rate in (("a", 0.01), ("b", 0.02)):
        execute(job(tmp_path / name, images, until=6, optimizer={"lr": rate}), HERE)
    execute(job(tmp_path / "run", images, resume_from=checkpoint(tmp_path / "a", 6)), HERE)
    for origin in ({}, {"resume_from": checkpoint(tmp_path / "b", 6)}):
        with pytest.raises(UserError, match="belongs to another job"):
            execute(job(tmp_path / "run", images, **origin), HERE)


def test_jobs_without_these_fields_are_who_they_were(tmp_path: Path, images: Path) -> None:
    plain = job(tmp_path / "run", images)
    assert plain.identity() == job(tmp_path / "run", images, until=3).identity()
    from components.config import fingerprint

    assert plain.identity() == fingerprint({"family": plain.family, "model": plain.model, "train": plain.train.to_json()})


def test_a_checkpoint_of_another_family(tmp_path: Path, images: Path) -> None:
    execute(job(tmp_path / "first", images, until=6), HERE)
    model = {"encoder_widths": [4, 4], "decoder_widths": [4, 4], "num_codes": 16, "code_dim": 4}
    values = {"family": "vqvae", "model": model, "train": {"steps": 12, "batch_size": 32}, "data": str(images), "run": str(tmp_path / "b")}
    other = TrainingJob.parse(values | {"resume_from": checkpoint(tmp_path / "first", 6)}, "test")
    with pytest.raises(UserError, match="is of family 'classifier', the job trains 'vqvae'"):
        execute(other, HERE)
