"""Benchmarks that look at trainings on their way: they rest at marks, go on with the same bits, and begin again where they stopped."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks import likelihood
from benchmarks.likelihood import MODELS, Asked, Model, independent_pixels
from benchmarks.marks import FIRST_STEPS, MINUTE, Rows, job_of, keep, minutes_of, some_of, trained_seconds
from components.data.dataset import Dataset
from components.errors import UserError
from components.evaluation.scoring import evaluate
from components.families.catalogue import FAMILIES
from components.families.model_folder import load_model
from components.training.job import TrainingJob, execute
from components.training.outlet import Outlet
from pipelines.settings import PRESETS
from pipelines.workers import Workers
from tests.families.small_points import Cloud
from tests.pipelines.world import write_idx
from tests.small_data import shipped_images

STEPS = 120
AT_ONCE, AT_THE_END = 1e-6, 1000.0  # minutes: a mark that the first steps are past, and one that is beyond the last


@pytest.fixture
def job(tmp_path: Path, small_data_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> TrainingJob:
    monkeypatch.setitem(FAMILIES, "cloud", Cloud)
    train = {"steps": STEPS, "batch_size": 48, "ema_decay": 0.9, "log_every": 50}
    values = {"family": "cloud", "train": train, "data": str(small_data_folders["points"]), "run": str(tmp_path / "run")}
    return TrainingJob.parse(values, "test")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_training_rests_at_its_marks_and_goes_on_with_the_same_bits(job: TrainingJob, tmp_path: Path) -> None:
    early, late, straight = tmp_path / "early", tmp_path / "late", job.model_copy(update={"run": str(tmp_path / "straight")})
    with Workers("0") as crew:
        keep(job, AT_ONCE, str(early), crew)
        assert trained_seconds(job.run)[0] == FIRST_STEPS
        keep(job, AT_THE_END, str(late), crew)
        execute(straight, Outlet(torch.device("cpu")))
        facts = [json.loads(Path(f"{place}.json").read_text()) for place in (early, late)]
        assert [each["step"] for each in facts] == [FIRST_STEPS, STEPS]
        assert 0 < facts[0]["minutes"] < facts[1]["minutes"] == pytest.approx(trained_seconds(job.run)[1] / MINUTE)
        whole = weights(tmp_path / "straight" / "model")
        assert all(torch.equal(value, whole[name]) for name, value in weights(late).items())
        assert not all(torch.equal(value, whole[name]) for name, value in weights(early).items())
        before = (early / "model.safetensors").stat().st_mtime_ns
        keep(job, AT_ONCE, str(early), crew)
        assert (early / "model.safetensors").stat().st_mtime_ns == before, "what is kept is not made again"
        with pytest.raises(UserError, match="beyond the mark of 1e-06; give another folder"):
            keep(job, AT_ONCE, str(tmp_path / "other"), crew)


def test_the_model_of_a_mark_has_averaged_weights(job: TrainingJob, tmp_path: Path) -> None:
    with Workers("0") as crew:
        keep(job, AT_ONCE, str(tmp_path / "early"), crew)
    (checkpoint,) = (Path(job.run) / "checkpoints").iterdir()
    average = load_file(checkpoint / "average.safetensors")
    assert all(torch.equal(value, average[name]) for name, value in weights(tmp_path / "early").items())


def test_rows_are_found_by_what_they_were_measured_of(tmp_path: Path) -> None:
    rows = Rows(str(tmp_path))
    assert rows.find({"who": "made", "mark": 5.0}) is None
    rows.add({"who": "made", "mark": 5.0}, {"nats": 105.0})
    for again in (rows, Rows(str(tmp_path))):
        assert again.find({"who": "made", "mark": 5.0}) == {"of": {"who": "made", "mark": 5.0}, "nats": 105.0}
        assert again.find({"who": "made", "mark": 10.0}) is None


def test_what_command_lines_name() -> None:
    assert minutes_of("10,5,20") == (5.0, 10.0, 20.0)
    assert some_of("b,a", ("a", "b"), "model") == ("b", "a")
    with pytest.raises(Exception, match="unknown model 'c'; choose among a, b"):
        some_of("a,c", ("a", "b"), "model")


def test_independent_pixels_are_what_counting_gives() -> None:
    train, test = (torch.from_numpy(shipped_images(part, rows)[0].copy()) for part, rows in (("train", 40), ("t10k", 7)))
    found = independent_pixels(train, test)
    known, held_out = train.numpy()[:, 0], test.numpy()[:, 0]
    nats = bits = 0.0
    for y in range(28):
        for x in range(28):
            counts = np.bincount(known[:, y, x], minlength=256) + 1
            bits -= np.log2(counts[held_out[:, y, x]] / counts.sum()).sum()
            ink = ((known[:, y, x] > 127).sum() + 1) / (40 + 2)
            nats -= sum(math.log(ink if pixel > 127 else 1 - ink) for pixel in held_out[:, y, x])
    assert found["nats"] == pytest.approx(nats / 7, rel=1e-9)
    assert found["bits_per_dim"] == pytest.approx(bits / (7 * 784), rel=1e-9)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_the_preset_of_its_kind(name: str, preset: str, tmp_path: Path) -> None:
    model = MODELS[name]
    job = job_of(model.family, preset, model.overrides, "data", str(tmp_path))
    assert job.model["network"]["kind"] == name
    family = FAMILIES[model.family]
    assert model.unit in {"bits_per_dim", family.headline[0]}


SMALL = {
    "made": Model("autoregressive", "made", "nats", 105.0, ("model.network.hidden=[16]",)),
    "nice": Model("flow", "nice", "bits_per_dim", 4.55, ("model.network.width=16", "model.network.layers=1")),
}


def test_likelihoods_over_time_stand_beside_independent_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "MODELS", SMALL)
    source = str(write_idx(tmp_path / "idx"))
    short = (f"train.steps={STEPS}", "train.batch_size=16", "train.warmup_steps=0", "train.log_every=40")
    asked = Asked(str(tmp_path / "out"), tuple(SMALL), (AT_ONCE,), "quick", short)
    first = likelihood.main(asked, 0, source)
    assert [row[0] for row in first.rows] == ["independent pixels", "made", "nice"]
    whole = likelihood.main(replace(asked, minutes=(AT_ONCE, AT_THE_END)), 0, source)
    assert [row for row in whole.rows if row[0] == "made"][:1] == [row for row in first.rows if row[0] == "made"]
    labels, _, steps, nats, bits, aims = zip(*whole.rows, strict=True)
    assert labels == ("independent pixels", "made", "made", "nice", "nice")
    assert steps[1:] == (str(FIRST_STEPS), str(STEPS)) * 2
    assert nats[3:] == ("-", "-")
    assert bits[1:3] == ("-", "-")
    assert aims[1:] == ("105", "105", "4.55", "4.55")
    assert 0 < float(nats[2]) < 28 * 28
    assert 0 < float(bits[4]) < 8
    assert likelihood.main(replace(asked, minutes=(AT_ONCE, AT_THE_END, 2 * AT_THE_END)), 0, source).rows == whole.rows
    lines = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    assert len(lines) == len(whole.rows), "what was measured is not measured again"
    kept = load_model(str(tmp_path / "out" / "models" / f"made-{lines[1]['of']['job']}-{AT_THE_END:g}"))
    found = evaluate(kept, Dataset.open(str(tmp_path / "out" / "data"), "test"))["nats"]
    assert nats[2] == f"{found:.4g}"
