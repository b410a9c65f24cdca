"""Points from end to end: prepared, learnt, scored, drawn as files and as a data set; and what says that points are no pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from components.data.dataset import Dataset
from components.families.catalogue import FAMILIES
from components.report.findings import Findings
from pipelines.cli import main
from tests.families.small_points import Cloud
from tests.pipelines.world import require_one_line, write_npz
from tests.small_data import ring_points

TRAIN = ("train.steps=40", "train.batch_size=64", "train.optimizer.lr=0.05", "--workers", "0")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ring of points and a cloud in five dimensions, each as an archive, a data set and a model."""
    root = tmp_path_factory.mktemp("points")
    points, labels = ring_points(600, 0)
    five = np.random.default_rng(0).normal(3.0, 0.5, (200, 5))  # float64, without labels
    write_npz(root / "ring.npz", point=points, label=labels)
    write_npz(root / "five.npz", point=five)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "cloud", Cloud)
        for name in ("ring", "five"):
            assert main(["prepare", str(root / f"{name}.npz"), str(root / name), "--workers", "0", "--json"]) == 0
            store = ("--store", str(root / f"store-{name}"))
            assert main(["train", "cloud", str(root / name), *TRAIN, *store, "--json"]) == 0
    return root


@pytest.fixture(autouse=True)
def _cloud_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "cloud", Cloud)


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*argv, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_points_are_drawn_as_files(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ("--store", str(world / "store-ring"))
    found = run(capsys, "sample", "cloud", "--count", "200", "--out", str(tmp_path), *store)
    assert found["files"] == [str(tmp_path / "samples.png"), str(tmp_path / "samples.safetensors")]
    numbers = load_file(tmp_path / "samples.safetensors")
    assert {name: (values.dtype, values.shape) for name, values in numbers.items()} == {"samples": (np.float32, (200, 2))}
    assert numbers["samples"].min() < 0, "points are not clamped as pictures are"
    picture = np.asarray(Image.open(tmp_path / "samples.png").convert("RGB"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 8, "a colour for each class"
    before = (tmp_path / "samples.png").read_bytes()
    run(capsys, "sample", "cloud", "--count", "200", "--out", str(tmp_path), *store)
    assert (tmp_path / "samples.png").read_bytes() == before
    one = run(capsys, "sample", "cloud", "label=3", "--count", "100", "--out", str(tmp_path / "one"), *store)
    assert one["files"] == [str(tmp_path / "one" / name) for name in ("samples.png", "samples.safetensors")]


def test_points_are_drawn_as_a_data_set(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("sample", "cloud", "--store", str(world / "store-ring"), "--count", "1500", "--seed", "4")
    run(capsys, *arguments, "--out", str(tmp_path / "files"))
    found = run(capsys, *arguments, "--out", str(tmp_path / "data"), "--workers", "0")
    assert found["rows"] == 1500
    assert found["shards"] == 2
    assert found["files"] == [str(tmp_path / "data" / "samples.png")]
    data = Dataset.open(str(tmp_path / "data"))
    assert data.shape.columns["point"].to_json() == {"dtype": "float32", "shape": [2]}
    rows = data.take(np.arange(1500))
    np.testing.assert_allclose(rows["point"], load_file(tmp_path / "files" / "samples.safetensors")["samples"], atol=1e-6)
    assert rows["label"].tolist() == [row % 8 for row in range(1500)]
    assert main(["verify", str(tmp_path / "data")]) == 0
    run(capsys, "train", "cloud", str(tmp_path / "data"), *TRAIN, "--store", str(tmp_path / "store"))  # a model learns from what one drew


def test_points_of_other_widths_have_no_picture(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("sample", "cloud", "--store", str(world / "store-five"), "--count", "64", "--out")
    assert run(capsys, *arguments, str(tmp_path / "files"))["files"] == [str(tmp_path / "files" / "samples.safetensors")]
    assert load_file(tmp_path / "files" / "samples.safetensors")["samples"].shape == (64, 5)
    assert run(capsys, *arguments, str(tmp_path / "data"), "--workers", "0")["files"] == []
    assert Dataset.open(str(tmp_path / "data")).shape.columns["point"].shape == (5,)


def test_the_pipeline_model_learns_from_points(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [f"model.{option}" for option in TRAIN[:-2]]
    arguments = ["run", "model", f"data={world / 'ring.npz'}", "model.family=cloud", *options, "--workers", "0"]
    found = run(capsys, *arguments, "--store", str(tmp_path))
    assert found["made"] == ["images", "model", "report"]
    assert Findings.read(found["artifacts"]["model"]["url"]).scores[0].name == "nats"
    page = Path(found["report"]).read_text()
    assert "loss.cloud" in page
    assert "nats" in page


SMALL = {
    "flow": ("model.model.network={kind: realnvp, width: 8}",),
    "gan": ("model.model.width=8", "model.model.latent=4"),
    "wgan": ("model.model.width=8", "model.model.latent=4"),
}


@pytest.mark.parametrize("family", SMALL)
def test_generative_families_learn_from_points(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str) -> None:
    store = ("--store", str(tmp_path / "store"))
    short = ("model.train.steps=6", "model.train.warmup_steps=0", "model.train.batch_size=32", "--workers", "0")
    found = run(capsys, "run", "model", f"data={world / 'ring.npz'}", f"model.family={family}", *SMALL[family], *short, *store)
    assert found["made"] == ["images", "model", "report"]
    findings = Findings.read(found["artifacts"]["model"]["url"])
    assert [score.name for score in findings.scores] == [FAMILIES[family].headline[0]]
    assert [picture.caption for picture in findings.pictures] == ["The first 1,000 of seed 0, not chosen."]
    out = tmp_path / "out"
    assert run(capsys, "sample", "model", "--count", "100", "--out", str(out), "--workers", "0", *store)["files"] == [
        str(out / "samples.png")
    ]
    points = Dataset.open(str(out)).take(np.arange(100))["point"]
    assert points.shape == (100, 2)
    assert np.isfinite(points).all()


def test_points_are_scored_by_the_model(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(run(capsys, "evaluate", "cloud", str(world / "ring"), "--store", str(world / "store-ring"))["scores"]) == {"nats"}


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["evaluate", "cloud", "{ring}", "--judge", "{judge}"], ("makes points of 2 numbers", "raymill evaluate MODEL DATA")),
        (["sweep", "cloud", "{ring}", "--judge", "{judge}", "--vary", "label=choice: [1, 2]"], ("makes points of 2 numbers",)),
        (["evaluate", "cloud", "{five}"], ("width=2", "needs 5")),
        (["train", "classifier", "{ring}"], ("expected 'image'",)),
        (["train", "vqvae", "{five}"], ("has columns ['point'], expected 'image'",)),
    ],
)
def test_points_are_no_pictures(world: Path, argv: list[str], says: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    places = {"{ring}": str(world / "ring"), "{five}": str(world / "five"), "{judge}": "cloud"}
    words = [places.get(word, word) for word in argv]
    require_one_line([*words, "--store", str(world / "store-ring"), *(TRAIN if argv[0] == "train" else ())], says, capsys)
