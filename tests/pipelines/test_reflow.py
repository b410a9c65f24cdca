"""The pipeline `reflow` on a handful of pictures: what its stages make, what is made again, and going on after a kill."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from components.data.dataset import Dataset
from components.errors import UserError
from components.families.model_folder import load_model
from components.families.rectified_flow import RectifiedFlow
from components.report.findings import Findings
from pipelines.cli import main
from pipelines.console import Console
from pipelines.reflow import REFLOW
from pipelines.reflow_config import ReflowConfig
from pipelines.settings import configure
from pipelines.stage import Pipeline
from pipelines.store import Artifact, Store
from pipelines.training import training_job
from pipelines.workers import Workers
from tests.small_data import write_images

STAGES = ("images", "judge", "flow", "pairs", "reflow", "distilled", "scores", "report")
NETWORK = ("widths=[8,8]", "attention=[false,false]", "blocks=1", "groups=4", "patch=2")
CLASSES = ("red", "green", "blue")
TRAINED = ("judge", "flow", "reflow", "distilled")
TINY = (
    *(f"{name}.train.{option}" for name in TRAINED for option in ("steps=4", "batch_size=16", "warmup_steps=0", "precision=float32")),
    *("judge.model.widths=[4]", "judge.model.feature_dim=4"),
    *(f"flow.model.network.{option}" for option in NETWORK),
    *("pairs.count=40", "pairs.rows_per_shard=16", "pairs.sampler.steps=2"),
    *("scores.samples=30", "scores.steps=[1,2,3]", "scores.shown=[1,3]", "scores.paths=12", "scores.path_steps=4"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty pictures of 8 x 8 pixels of three classes, each of another colour."""
    folder, draw = tmp_path_factory.mktemp("reflow"), np.random.default_rng(0)
    for number in range(60):
        pixels = draw.integers(0, 80, (8, 8, 3), dtype=np.uint8)
        pixels[..., number % 3] += 150
        file = folder / "pictures" / CLASSES[number % 3] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    return folder


@pytest.fixture(scope="module")
def argv(folder: Path) -> list[str]:
    store = str(folder / "store")
    return ["run", "reflow", "--preset", "quick", f"data={folder / 'pictures'}", *TINY, "--workers", "0", "--store", store, "--json"]


def run(argv: list[str], capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    assert main([*argv, *more]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_every_stage_and_what_is_made_again(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    first = run(argv, capsys)
    places = {name: artifact["url"] for name, artifact in first["artifacts"].items()}
    assert tuple(first["made"]) == tuple(places) == STAGES
    check_pairs(places)
    check_models(places)
    check_scores(places["scores"], first)
    page = Path(first["report"]).read_text()
    for text in ("The same noises through every stage", "Distance against evaluations", "raymill run reflow", "<b>distilled</b>"):
        assert text in page
    assert run(argv, capsys)["made"] == []
    without = run(argv, capsys, "pairs.count=48", "distilled=null")
    assert without["made"] == ["pairs", "reflow", "scores", "report"]
    assert "One distilled step, Fréchet distance (FD-cnn)" not in without["scores"]


def check_pairs(places: Mapping[str, str]) -> None:
    """The pictures are what the flow makes of the noises beside them, row by row."""
    data = Dataset.open(places["pairs"])
    assert data.num_rows == 40
    rows = {name: torch.from_numpy(values) for name, values in data.take(np.arange(40)).items()}
    flow = _open(places["flow"])
    made = flow.from_noise(rows["noise"], flow.Sampler(sampler="heun", steps=2), rows["label"])
    assert torch.allclose(made, rows["image_float"], atol=1e-5)
    assert not torch.allclose(made.roll(3, 0), rows["image_float"], atol=1e-2)
    assert rows["label"].tolist() == [row % 3 for row in range(40)]


def check_models(places: Mapping[str, str]) -> None:
    flow, reflow, distilled = (_open(places[name]) for name in ("flow", "reflow", "distilled"))
    assert reflow.config == flow.config.model_copy(update={"pairs": True})
    assert flow.config.network.widths == (8, 8)
    assert distilled.config == reflow.config.model_copy(update={"distill": True})
    jobs = {name: json.loads((Path(places[name]) / "run.json").read_text())["job"] for name in ("reflow", "distilled")}
    assert jobs["reflow"]["children"] == {"start": f"{places['flow']}/model"}
    assert jobs["distilled"]["children"] == {"start": f"{places['reflow']}/model"}
    assert {job["data"] for job in jobs.values()} == {places["pairs"]}
    for before, after in ((flow, reflow), (reflow, distilled)):  # begun from, and moved away
        far = torch.cat([p.flatten() for p in _open(places["flow"], seed=1).parameters()])
        a, b = (torch.cat([p.flatten() for p in model.parameters()]) for model in (before, after))
        assert 0 < (a - b).norm() < (a - far).norm() / 2


def check_scores(place: str, answer: Mapping[str, Any]) -> None:
    found = Findings.read(place)
    assert [score.name for score in found.scores] == list(answer["scores"])
    one, distilled, most, straight, cost = found.scores
    assert most.name.startswith("3 Euler steps")
    assert one.target == pytest.approx(0.35 * one.beside["before reflow"])
    assert distilled.beside["before reflow"] == one.beside["before reflow"]
    assert distilled.beside["after reflow"] == one.value
    assert {"before reflow", "class Gaussians", "noise", "real held-out pictures"} == set(one.beside)
    assert min(straight.value, straight.beside["before reflow"]) > 0
    assert {"before reflow", "paired at random"} == set(cost.beside)
    (table,) = found.tables
    assert [row[0] for row in table.rows] == ["1", "2", "3"]
    assert table.rows[0][1:7:2] == (one.beside["before reflow"], one.value, distilled.value)
    assert table.rows[2][5:7] == (None, None)
    assert table.rows[2][7] == pytest.approx(most.value / most.beside["before reflow"])
    (chart,) = found.charts
    assert [series.name for series in chart.series] == ["flow", "reflow", "distilled", "real held-out pictures", "class Gaussians"]
    assert chart.series[0].x == (1, 2, 3)
    (picture,) = found.pictures
    assert picture.row_names == ("flow, 1 step", "flow, 3 steps", "reflow, 1 step", "reflow, 3 steps", "distilled, 1 step")
    assert Image.open(Path(place) / picture.file).size == (20 * (2 * 8 + 2), 5 * (2 * 8 + 2))


@pytest.mark.ray
def test_workers_that_trained_make_room_for_those_that_simulate(folder: Path) -> None:
    """The warm group of a flow's training has every CPU of a small cluster until then."""
    import ray

    count, data = os.cpu_count() or 1, write_images(folder / "data", train=48, test=16)
    config = configure(ReflowConfig(), REFLOW.presets["quick"], "quick", None, [*TINY, f"flow.train.batch_size={8 * count}"])
    with Workers(count) as workers:
        workers.train(training_job(config.flow, str(data), str(folder / "run"), {}), lambda row: None)
        assert ray.available_resources().get("CPU", 0.0) == 0
        assert workers.make_room() == count
        deadline = time.monotonic() + 60
        while ray.available_resources().get("CPU", 0.0) < count:
            assert time.monotonic() < deadline, ray.available_resources()
            time.sleep(0.1)


class Killed(BaseException):
    """Stands for a kill in the midst of a stage."""


class KilledAt(Console):
    """Kills the run at the first row that a stage reports."""

    def __init__(self, stage: str) -> None:
        super().__init__(quiet=True)
        self._stage = stage

    def reports(self, stage: str, row: Mapping[str, Any]) -> None:
        if stage == self._stage:
            raise Killed


def test_killed_in_a_stage_it_goes_on_and_comes_to_the_same(folder: Path, tmp_path: Path) -> None:
    often = [f"{name}.train.{option}=2" for name in TRAINED for option in ("log_every", "checkpoint_every")]
    config = configure(ReflowConfig(), REFLOW.presets["quick"], "quick", None, [f"data={folder / 'pictures'}", *TINY, *often])

    no_page = Pipeline("reflow", "for tests", ReflowConfig, REFLOW.stages[:-1], REFLOW.presets)

    def made(store: str, progress: Console) -> dict[str, Artifact]:
        with Workers(0) as workers:
            done = no_page.run(config, Store(store), workers, progress, "raymill run reflow")
        return {name: artifact for name, (artifact, _) in done.items()}

    store = str(tmp_path / "killed")
    for stage in ("flow", "pairs", "reflow", "distilled", "scores"):
        with pytest.raises(Killed):
            made(store, KilledAt(stage))
    whole, resumed = made(str(tmp_path / "whole"), Console(quiet=True)), made(store, Console(quiet=True))
    for name in ("pairs", "scores"):
        assert whole[name].name == resumed[name].name
        assert whole[name].manifest.files == resumed[name].manifest.files
    for name in ("flow", "reflow", "distilled"):
        files = [each[name].manifest.files for each in (whole, resumed)]
        assert files[0]["model/model.safetensors"] == files[1]["model/model.safetensors"]


@pytest.mark.parametrize(
    ("assignments", "problem"),
    [
        (["flow.family=classifier"], "flow.family=classifier cannot do"),
        (["pairs.sampler.label=3"], "label=3: the flow is trained again on every class"),
        (["pairs.sampler.steps=1"], "sampler.steps=1: one step does not follow the flow"),
        (["pairs.sampler.guidance=2"], "guidance=2.0: the stages are compared without"),
        (["pairs.seed=0"], "pairs.seed=0 and scores.seed=0"),
        (["pairs.rows_per_shard=12"], "rows_per_shard=12"),
        (["scores.steps=[1,5,2]"], r"steps=\[1, 5, 2\] do not rise from 1"),
        (["scores.steps=[2,5]"], r"steps=\[2, 5\] do not rise from 1"),
        (["scores.shown=[1,7]"], r"shown=\[1, 7\] has numbers"),
        (["distilled=null", "scores.targets.distilled=0.3"], "distilled=0.3 has no effect"),
    ],
)
def test_sections_that_do_not_go_together_are_refused(assignments: list[str], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        configure(ReflowConfig(), REFLOW.presets["quick"], "quick", None, assignments)


def _open(url: str, seed: int | None = None) -> RectifiedFlow:
    """The trained model, or with a seed one with the same config and other weights."""
    model = load_model(f"{url}/model")
    assert isinstance(model, RectifiedFlow)
    if seed is None:
        return model
    torch.manual_seed(seed)
    return RectifiedFlow(model.config)
