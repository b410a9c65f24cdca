"""The whole pipeline on a handful of one's own pictures, in colour, with every optional stage: what it makes, and what it makes again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from components.families.classifier import Classifier
from components.families.model_folder import load_model
from components.families.prior import Prior
from components.families.vqgan import VQGAN
from components.report.findings import Findings
from pipelines.cli import main

STAGES = ("images", "judge", "features", "reconstructor", "tokenizer", "codes", "prior", "samples", "scores", "report")
TRAINED = ("judge", "features", "reconstructor", "tokenizer", "prior")
SHAPES = ("model.encoder_widths=[4,8]", "model.decoder_widths=[4,8]", "model.num_codes=8", "model.code_dim=4")
TINY = (
    *(f"{name}.train.{option}" for name in TRAINED for option in ("steps=3", "batch_size=16", "warmup_steps=0", "precision=float32")),
    *(f"{name}.{option}" for name in ("reconstructor", "tokenizer") for option in SHAPES),
    *(f"{name}.model.widths=[4,8]" for name in ("judge", "features")),
    *("tokenizer.model.discriminator_start=0", "tokenizer.model.gan_start=1", "tokenizer.model.discriminator_every=1"),
    *("prior.model.code_count=8", "prior.model.layers=1", "prior.model.heads=1", "prior.model.width=16"),
    "samples.per_class=3",
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures of 16 x 24 pixels of three classes, each of another colour."""
    folder, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(40):
        pixels = draw.integers(0, 80, (16, 24, 3), dtype=np.uint8)
        pixels[..., number % 3] += 150
        file = folder / ("red", "green", "blue")[number % 3] / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(file)
    return folder


def test_one_s_own_pictures_through_every_stage(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["run", "tokens", "--preset", "full", f"data={pictures}", *TINY, "--workers", "0", "--store", str(tmp_path / "store"), "--json"]

    def run(*more: str) -> dict:
        assert main([*argv, *more]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    first = run()
    places = {name: Path(artifact["url"]) for name, artifact in first["artifacts"].items()}
    assert tuple(first["made"]) == tuple(places) == STAGES
    check_models(places)
    check_samples(places["samples"])
    check_scores(places["scores"], first)
    check_page(Path(first["report"]).read_text())

    assert run()["made"] == []
    assert run("prior.train.seed=5")["made"] == ["prior", "samples", "scores", "report"]
    assert run("samples.seed=5")["made"] == ["samples", "scores", "report"]
    assert run("scores.targets.mse=0.5")["made"] == ["scores", "report"]
    assert run("prior.train.seed=5")["made"] == []  # the earlier one is still there


def check_models(places: dict[str, Path]) -> None:
    judge, tokenizer, prior = (load_model(str(places[name] / "model")) for name in ("judge", "tokenizer", "prior"))
    assert isinstance(judge, Classifier)
    assert isinstance(tokenizer, VQGAN)
    assert isinstance(prior, Prior)
    assert (judge.config.num_classes, judge.config.image_channels, judge.config.image_size) == (3, 3, (16, 24))
    assert tokenizer.features is not None
    features = load_model(str(places["features"] / "model"))
    assert tokenizer.features.config == features.config  # as fitted to these pictures, whatever the preset says
    for name, value in features.state_dict().items():
        assert torch.equal(tokenizer.features.state_dict()[name], value)
    assert prior.config.grid == (4, 6)
    assert prior.decode(torch.zeros(2, 4, 6, dtype=torch.int64)).shape == (2, 3, 16, 24)


def check_samples(place: Path) -> None:
    tensors = safetensors.torch.load_file(place / "samples.safetensors")
    assert tensors["images"].shape == (9, 3, 16, 24)
    assert tensors["codes"].shape == (9, 4, 6)
    assert tensors["labels"].tolist() == [0, 1, 2] * 3
    (picture,) = Findings.read(str(place)).pictures
    assert picture.row_names == ("blue", "green", "red")  # classes in order of their names
    assert Image.open(place / picture.file).size == (3 * (2 * 24 + 2), 3 * (2 * 16 + 2))


def check_scores(place: Path, answer: dict) -> None:
    found = Findings.read(str(place))
    assert [score.name for score in found.scores] == list(answer["scores"])
    error, codes, prior, labels, samples, rebuilt = found.scores
    assert set(error.beside) == {"PCA, 64 components", "VQ-VAE"}
    assert prior.beside["uniform"] == 3.0
    assert labels.beside["chance"] == pytest.approx(1 / 3)
    assert set(samples.beside) == {"real held-out pictures", "reconstructions", "class Gaussians", "noise"}
    assert samples.beside["reconstructions"] == rebuilt.value
    assert set(rebuilt.beside) == {"VQ-VAE", "real held-out pictures"}
    assert 0 < codes.value <= 1
    (histogram,) = found.histograms
    assert sum(histogram.shares) == pytest.approx(1)
    assert len(histogram.shares) == 8
    assert found.pictures[0].row_names == ("original", "VQ-VAE", "VQGAN")


def check_page(page: str) -> None:
    assert page.index("Reconstructions</h2>") < page.index("Samples by class</h2>")
    for name in STAGES[:-1]:
        assert f"<b>{name}</b>" in page
    assert "raymill run tokens" in page
