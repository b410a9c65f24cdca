"""What a run of wgan shows beside its critic: the exact W1, and the critic's values over the plane, from the command to the findings."""

from __future__ import annotations

import json
from pathlib import Path

import ot
import pytest
import torch

from components.data.dataset import Dataset
from components.data.loader import evaluation_batches
from components.evaluation.wasserstein import GRID
from components.families.model_folder import load_model
from components.families.wgan import WGAN
from components.report.findings import Findings
from components.training.communication import Communication
from components.training.context import Context
from components.training.randomness import Draws
from pipelines.cli import main

TRAIN = {"steps": 12, "warmup_steps": 0, "batch_size": 64, "log_every": 3, "evaluate_every": 6, "evaluate_rows": 200}


@pytest.mark.parametrize("conditional", [False, True])
def test_the_exact_w1_stands_beside_the_critics(
    conditional: bool, small_data_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, model = str(small_data_folders["points"]), ["model.width=16", "model.latent=4", f"model.conditional={conditional}"]
    train = [f"train.{name}={value}" for name, value in TRAIN.items()]
    assert main(["train", "wgan", data, "--workers", "0", "--store", str(tmp_path), "--json", *train, *model]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    over_steps, plane = Findings.read(answer["url"]).charts

    named = {series.name: series.x for series in over_steps.series}
    assert named["exact, held-out rows"] == named["critic, held-out rows"] == (6, 12)
    assert named["critic over its slope"] == named["critic, training rows"] == (3, 6, 9, 12)

    family, held_out = load_model(answer["model"]), Dataset.open(data, "test")
    assert isinstance(family, WGAN)
    batches = []
    for number, batch in enumerate(evaluation_batches(held_out, 256)):
        rows = len(batch["point"])
        ctx = Context(0, "evaluate", Draws(0, 0, "evaluate", 256 * number, torch.device("cpu")), rows, rows, Communication())
        with torch.no_grad():
            batches.append((batch["point"], family.fakes(batch, ctx), batch["label"]))
    real, fake, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    costs = torch.cdist(real.double(), fake.double()).numpy() + 1e3 * conditional * (labels[:, None] != labels).numpy()
    assert answer["scores"]["exact_w1"] == pytest.approx(ot.emd2([], [], costs), abs=1e-5)

    assert plane.field is not None
    x, y = plane.field.x, plane.field.y
    corners = torch.tensor([[x[0], y[0]], [x[-1], y[0]], [x[0], y[-1]]])
    with torch.no_grad():
        expected = family.score(corners, torch.zeros(3, dtype=torch.int64) if conditional else None).tolist()
    values = plane.field.values
    assert [values[0][0], values[0][GRID - 1], values[GRID - 1][0]] == pytest.approx(expected, abs=1e-5)
    shown = torch.tensor([plane.series[0].x, plane.series[0].y]).T
    assert torch.equal(shown, (real[labels == 0] if conditional else real)[: len(shown)])
