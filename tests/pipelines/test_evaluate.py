"""`raymill evaluate` of samples and of likelihoods, and options that have no effect."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from components.data.dataset import Dataset
from components.data.loader import evaluation_batches
from components.evaluation.likelihood import evaluate_likelihood
from components.families import denoising
from components.families.classifier import ClassifierConfig
from components.families.contract import DataShape, Family
from components.families.diffusion import Diffusion
from components.families.model_folder import load_model
from components.training.communication import Communication
from components.training.context import Context
from components.training.randomness import Draws
from pipelines.cli import main
from pipelines.store import Store
from tests.pipelines.test_bad_input import Case
from tests.pipelines.world import require_one_line

JUDGED = ("evaluate", "prior", "{data}", "--judge", "classifier")


def run(argv: tuple[str, ...], root: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main([word.replace("{data}", str(root / "data")) for word in (*argv, "--json")]) == 0
    return json.loads(capsys.readouterr().out)


def test_samples_are_scored_by_options_and_seed(studio: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, again, other, cold = (
        run((*JUDGED, "--samples", "30", *words), studio, capsys) for words in ((), (), ("--seed", "1"), ("temperature=0.01",))
    )
    for found in (first, again, other, cold):
        assert found["scores"].pop("images_per_second") > 0
        assert found["scores"]["samples"] == 30
        assert found["scores"]["w1"] > found["scores"]["w1_of_real"] > 0
    assert first == again
    assert first["scores"]["fd"] != other["scores"]["fd"]
    assert cold["sampler"]["temperature"] == 0.01
    assert cold["scores"]["fd"] != first["scores"]["fd"]
    assert set(first["reference_points"]) == {"real held-out pictures", "class Gaussians", "noise"}
    held_out = run((*JUDGED, "--samples", "30", "--split", "test"), studio, capsys)
    assert set(held_out["reference_points"]) == {"class Gaussians", "noise"}


class Guess(Family):
    """Finds a picture as likely as its brightness, its class and a random number say."""

    def __init__(self) -> None:
        super().__init__(ClassifierConfig())
        self.weight = nn.Parameter(torch.zeros(1))

    def require_fitting(self, data: DataShape, url: str, split: str | None = None) -> None:
        pass

    def bits_per_dim(self, images: Tensor, ctx: Context, labels: Tensor | None = None) -> Tensor:
        assert labels is not None
        return images.float().mean((1, 2, 3)) + labels + ctx.random.uniform("guess", (len(images),))


def test_a_likelihood_is_a_mean_over_rows_whatever_the_batch(studio: Path) -> None:
    dataset = Dataset.open(str(studio / "data"), "train")
    whole = next(iter(evaluation_batches(dataset, 44)))
    ctx = Context(0, "likelihood", Draws(0, 0, "likelihood", 0, torch.device("cpu")), 44, 44, Communication())
    bits = Guess().bits_per_dim(whole["image"], ctx, whole["label"]).double()
    for batch_size in (8, 40, 256):
        found = evaluate_likelihood(Guess(), dataset, batch_size, 44, 0)
        assert found["rows"] == 44
        assert found["bits_per_dim"] == pytest.approx(bits.mean().item(), rel=1e-6)
        assert found["standard_error"] == pytest.approx(bits.std().item() / 44**0.5, rel=1e-6)
    assert evaluate_likelihood(Guess(), dataset, 8, 44, 1)["bits_per_dim"] != pytest.approx(bits.mean().item(), rel=1e-6)


def test_the_likelihood_of_a_diffusion(studio: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    coarse = partial(denoising.log_likelihood, rtol=0.1, atol=0.1)  # a network that has learnt nothing takes very many steps
    monkeypatch.setattr(denoising, "log_likelihood", coarse)
    found = run(("evaluate", "diffusion", "{data}", "--likelihood", "--limit", "2"), studio, capsys)["scores"]
    model = load_model(Store(str(studio / "store")).resolve("diffusion").path("model"))
    batch = next(iter(evaluation_batches(Dataset.open(str(studio / "data"), "test"), 2)))
    ctx = Context(0, "likelihood", Draws(0, 0, "likelihood", 0, torch.device("cpu")), 2, 2, Communication())
    with torch.no_grad():
        bits = model.bits_per_dim(batch["image"], ctx, batch["label"])
    assert found["bits_per_dim"] == pytest.approx(bits.mean().item(), rel=1e-9)
    assert found["rows"] == 2


def test_the_bound_of_a_diffusion(studio: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(("evaluate", "diffusion", "{data}", "--likelihood", "--bound", "--limit", "2"), studio, capsys)
    model = load_model(Store(str(studio / "store")).resolve("diffusion").path("model"))
    batch = next(iter(evaluation_batches(Dataset.open(str(studio / "data"), "test"), 2)))
    ctx = Context(0, "likelihood", Draws(0, 0, "likelihood", 0, torch.device("cpu")), 2, 2, Communication())
    assert isinstance(model, Diffusion)
    assert found["scores"]["bits_per_dim"] == pytest.approx(model.bound_in_bits_per_dim(batch["image"], ctx, batch["label"]).mean().item())
    assert found["bound"] is True


MISTAKES = [
    Case(
        "sampler option without a judge",
        ("evaluate", "prior", "{root}/codes", "temperature=0.5"),
        ("temperature=0.5 has no effect without --judge",),
    ),
    Case("samples without a judge", ("evaluate", "prior", "{root}/codes", "--samples", "20"), ("--samples has no effect without --judge",)),
    Case("seed without anything drawn", ("evaluate", "prior", "{root}/codes", "--seed", "0"), ("--seed has no effect",)),
    Case("limit with a judge", (*JUDGED, "--limit", "5"), ("--limit has no effect with --judge",)),
    Case("batch size with a judge", (*JUDGED, "--batch-size", "5"), ("--batch-size has no effect with --judge",)),
    Case("likelihood with a judge", (*JUDGED, "--likelihood"), ("--likelihood has no effect with --judge",)),
    Case("bound with a judge", (*JUDGED, "--bound"), ("--bound has no effect with --judge",)),
    Case("bound of nothing", ("evaluate", "diffusion", "{data}", "--bound"), ("--bound has no effect without --judge or --likelihood",)),
    Case("model without a bound", ("evaluate", "vqvae", "{data}", "--likelihood", "--bound"), ("VQVAE has no variational bound",)),
    Case("sampler option with a likelihood", ("evaluate", "diffusion", "{data}", "--likelihood", "steps=2"), ("steps=2 has no effect",)),
    Case("unknown sampler option", (*JUDGED, "temprature=1"), ("'temprature'", "did you mean 'temperature'")),
    Case("label that is none", (*JUDGED, "label=10"), ("label=10", "0 to 9")),
    Case("fewer samples than features", (*JUDGED, "--samples", "4"), ("--samples 4", "4 features")),
    Case("judge that is none", ("evaluate", "prior", "{data}", "--judge", "vqvae"), ("'vqvae'", "expected 'classifier'")),
    Case("model that does not generate", ("evaluate", "vqvae", "{data}", "--judge", "classifier"), ("does not generate",)),
    Case("model without a likelihood", ("evaluate", "vqvae", "{data}", "--likelihood"), ("VQVAE has no likelihood",)),
    Case(
        "rows that are no lanes",
        ("evaluate", "diffusion", "{data}", "--likelihood", "--batch-size", "12"),
        ("--batch-size 12", "multiple of 8"),
    ),
    Case(
        "rows that are no lanes, of scores", ("evaluate", "diffusion", "{data}", "--batch-size", "12"), ("--batch-size 12", "multiple of 8")
    ),
]


@pytest.mark.parametrize("case", MISTAKES, ids=lambda case: case.name)
def test_a_mistake_gives_one_line(case: Case, studio: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [word.replace("{root}", str(studio)).replace("{data}", str(studio / "data")) for word in case.argv]
    require_one_line(argv, case.says, capsys)
