"""The pipeline `model`: pictures to one trained model and its page, from scratch or from an earlier model's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.data.dataset import Dataset
from components.data.loader import evaluation_batches
from components.evaluation.pictures import GAP_PIXELS
from components.families.model_folder import load_model
from components.report.findings import Findings
from pipelines.cli import main
from tests.pipelines.world import require_one_line, write_folders

TINY = ("model.model.widths=[4]", "model.model.feature_dim=4")
SHORT = ("model.train.steps=2", "model.train.batch_size=8", "model.train.warmup_steps=0", "--workers", "0")


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYMILL_STORE", str(tmp_path / "store"))
    return write_folders(tmp_path / "pictures")


def run(capsys: pytest.CaptureFixture[str], pictures: Path, *options: str) -> dict[str, Any]:
    assert main(["run", "model", f"data={pictures}", *options, *SHORT, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_a_model_and_its_page(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(capsys, pictures, *TINY)
    assert first["made"] == ["images", "model", "report"]
    assert set(first["scores"]) == {"accuracy"}
    assert "<b>model</b>" in Path(first["report"]).read_text()
    assert run(capsys, pictures, *TINY)["made"] == []
    other = run(capsys, pictures, "model.family=vqvae", "model.model.encoder_widths=[4,4]", "model.model.decoder_widths=[4,4]")
    assert other["made"] == ["model", "report"]
    assert type(load_model(other["artifacts"]["model"]["url"] + "/model")).__name__ == "VQVAE"


def test_the_page_shows_samples_and_completions_of_a_model_that_draws(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = ("model.family=autoregressive", "model.model.network.kind=nade", "model.model.network.hidden=4")
    made = run(capsys, pictures, *network)
    folder = Path(made["artifacts"]["model"]["url"])
    shown = Findings.read(str(folder)).pictures
    assert [(each.file, each.title) for each in shown] == [("samples.png", "Samples"), ("completions.png", "Completions of upper halves")]
    for each in shown:
        assert each.title in Path(made["report"]).read_text()
    assert set(made["scores"]) == {"nats"}
    gap, scale, held_out = GAP_PIXELS // 2, 3, made["artifacts"]["images"]["url"]
    images = next(iter(evaluation_batches(Dataset.open(held_out, "test"), 1)))["image"][0, 0].numpy()
    rows = np.asarray(Image.open(folder / "completions.png").convert("L"))[gap : gap + 28 * scale : scale]
    cells = [rows[:, gap + place * (28 * scale + GAP_PIXELS) :][:, : 28 * scale : scale] for place in range(10)]
    assert np.array_equal(cells[0], np.where(images > 127, 255, 0))
    for cell in cells[1:]:
        assert np.array_equal(cell[:14], cells[0][:14])
    assert any(not np.array_equal(cell[14:], cells[0][14:]) for cell in cells[1:])


def test_the_start_is_part_of_what_a_model_was_made_from(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scratch = run(capsys, pictures, *TINY)["artifacts"]["model"]
    for start in (scratch["url"], f"{scratch['url']}/model"):
        warm = run(capsys, pictures, *TINY, f"start={start}")
        assert warm["made"] == ["model", "report"]
        manifest = json.loads(Path(warm["artifacts"]["model"]["url"], "artifact.json").read_text())
        assert manifest["sources"] == {"start": start}
        assert set(manifest["inputs"]) == {"images", "start"}
        assert run(capsys, pictures, *TINY, f"start={start}")["made"] == []
    assert manifest["inputs"]["start"] != scratch["fingerprint"]  # the folder alone is known by its content


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("model.family=prior",), ("model.family=prior learns from codes", "pipeline tokens")),
        (("--preset", "full", "model.family=vqgan"), ("perceptual_weight=0.03", "trained classifier")),
        (("start=nowhere",), ("start=nowhere", "does not exist")),
    ],
)
def test_what_it_refuses(options: tuple[str, ...], says: tuple[str, ...], pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require_one_line(["run", "model", f"data={pictures}", *options, *SHORT], says, capsys)
