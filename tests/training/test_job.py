"""What a job refuses, in words that help, and what it keeps: best checkpoints, other people's folders, finite weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from components.errors import UserError
from components.families.classifier import Classifier
from components.families.model_folder import load_model, save_model, verify_model
from components.training.config import TrainConfig
from components.training.job import TrainingJob, execute
from components.training.outlet import Outlet
from components.training.record import read_metrics

HERE = Outlet(torch.device("cpu"))


def job(folder: Path, data: Path, model: dict[str, Any] | None = None, **train: Any) -> TrainingJob:
    settings = {"steps": 6, "batch_size": 32, "log_every": 2, "checkpoint_every": 2, "optimizer": {"lr": 0.01}} | train
    small = {"widths": [4, 8], "feature_dim": 8} | (model or {})
    return TrainingJob.parse({"family": "classifier", "model": small, "train": settings, "data": str(data), "run": str(folder)}, "test")


def test_a_run_leaves_its_whole_record(tmp_path: Path, small_data_folders: dict[str, Path]) -> None:
    execute(job(tmp_path, small_data_folders["images"]), HERE)
    rows = read_metrics(str(tmp_path))
    assert [row["step"] for row in rows] == [2, 4, 6]
    expected = {"loss.classifier", "accuracy", "samples_per_second", "step_seconds", "data_wait_seconds", "peak_memory_bytes"}
    assert expected | {"model_flops_per_second", "model_flop_utilisation", "gradient_norm.classifier", "lr.classifier"} <= set(rows[0])
    assert all(row["model_flops_per_second"] > 0 and row["peak_memory_bytes"] > 1e6 for row in rows)
    info = json.loads((tmp_path / "run.json").read_text())
    assert info["starts"] == 1
    assert 0 <= info["scores"]["accuracy"] <= 1
    assert verify_model(str(tmp_path / "model")) == 1


def test_the_best_checkpoint_is_published(tmp_path: Path, small_data_folders: dict[str, Path]) -> None:
    best = {"evaluate_every": 2, "keep_best": 1, "publish": "best"}
    execute(job(tmp_path, small_data_folders["images"], optimizer={"lr": 0.5}, **best), HERE)
    scores = {row["step"]: row["held_out.accuracy"] for row in read_metrics(str(tmp_path))}
    step = max(scores, key=lambda step: (scores[step], -step))
    kept = load_file(tmp_path / "checkpoints" / f"step_{step:08d}" / "model.safetensors")
    published = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(kept[name], published[name]) for name in published)
    assert json.loads((tmp_path / "run.json").read_text())["scores"]["accuracy"] == pytest.approx(scores[step])


def test_accumulated_batches_take_the_step_of_the_whole(tmp_path: Path, small_data_folders: dict[str, Path]) -> None:
    sgd = {"optimizer": {"name": "sgd", "lr": 0.05}, "batch_size": 40}
    for name, accumulate in (("whole", 1), ("parts", 3)):
        execute(job(tmp_path / name, small_data_folders["images"], accumulate=accumulate, **sgd), HERE)
    a, b = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


def test_bfloat16_trains_with_float32_weights(tmp_path: Path, small_data_folders: dict[str, Path]) -> None:
    execute(job(tmp_path, small_data_folders["images"], precision="bfloat16", steps=30), HERE)
    assert {t.dtype for t in load_file(tmp_path / "model" / "model.safetensors").values()} == {torch.float32}
    assert json.loads((tmp_path / "run.json").read_text())["scores"]["accuracy"] > 0.2


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, small_data_folders: dict[str, Path]) -> None:
    wild = job(tmp_path, small_data_folders["images"], optimizer={"name": "sgd", "lr": 1e30}, clip_norm=None, log_every=1)
    with pytest.raises(UserError, match=r"not finite; lower optimizer\.lr, .*; there is no checkpoint of the steps before it"):
        execute(wild, HERE)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 8, "accumulate": 2}, "raise batch_size to at least 16"),
        ({"recompute": 1, "steps": 3, "warmup_steps": 3}, "leaves nothing of steps=3"),
        ({"keep_best": 1}, "set evaluate_every"),
        ({"publish": "best"}, "set evaluate_every"),
        ({"evaluate_rows": 10}, "no effect without evaluate_every"),
        ({"steps": 0}, "steps"),
        ({"optimizer": {"lr": -1}}, r"optimizer\.lr"),
        ({"stepz": 3}, "did you mean 'steps'"),
        ({"optimizer": {"learning_rate": 1}}, "optimizer.learning_rate"),
    ],
)
def test_settings_that_cannot_be_meant(tmp_path: Path, small_data_folders: dict[str, Path], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        execute(job(tmp_path, small_data_folders["images"], **changes), HERE)


def test_a_folder_belongs_to_one_job(tmp_path: Path, small_data_folders: dict[str, Path]) -> None:
    execute(job(tmp_path, small_data_folders["images"]), HERE)
    execute(job(tmp_path, small_data_folders["images"]), HERE)  # finished: nothing to do
    with pytest.raises(UserError, match="belongs to another job"):
        execute(job(tmp_path, small_data_folders["images"], seed=1), HERE)


def test_best_needs_held_out_rows(tmp_path: Path, small_data_folders: dict[str, Path]) -> None:
    from components.data.write import write_dataset
    from components.families.contract import Column
    from tests.small_data import shipped_images

    images, labels = shipped_images("train", 40)
    columns = {"image": Column(dtype="uint8", shape=(1, 28, 28)), "label": Column(dtype="int64")}
    write_dataset(str(tmp_path / "data"), {"train": [{"image": images, "label": labels}]}, columns, tuple("0123456789"))
    with pytest.raises(UserError, match="has no test split; set it to 0"):
        execute(job(tmp_path / "run", tmp_path / "data", evaluate_every=2), HERE)


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    save_model(Classifier(Classifier.Config(widths=(4,), feature_dim=4)), str(tmp_path / "model"))
    return tmp_path / "model"


def test_model_folders_open_with_equal_weights(model_folder: Path) -> None:
    one, two = load_model(str(model_folder)), load_model(str(model_folder), expect="classifier")
    assert not one.training
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_model_folders_that_are_none(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no model folder"):
        load_model(str(tmp_path))
    with pytest.raises(UserError, match="holds a 'classifier' model, expected 'prior'"):
        load_model(str(model_folder), expect="prior")
    weights = model_folder / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(UserError, match="was altered"):
        load_model(str(model_folder))
    torch.save({"w": torch.ones(1)}, weights)
    with pytest.raises(UserError, match="pickles are never loaded"):
        load_model(str(model_folder))
    weights.rename(model_folder / "model.pt")
    with pytest.raises(UserError, match=r"'model\.pt' there is a pickle, which is never loaded"):
        load_model(str(model_folder))


def test_config_rejects_what_it_does_not_know() -> None:
    with pytest.raises(UserError, match="did you mean 'batch_size'"):
        TrainConfig.parse({"batchsize": 3}, "test")
