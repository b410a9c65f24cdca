"""The pipeline `faces` from aligned pictures on: letters stand for people, since no faces of many people may be shipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.data.dataset import Dataset
from components.errors import UserError
from components.families.model_folder import load_model
from components.families.recognition import Recognition
from components.report.findings import Findings
from pipelines import faces
from pipelines.console import Console
from pipelines.faces_config import AlignedConfig, FacesConfig
from pipelines.settings import configure
from pipelines.source import Source
from pipelines.stage import Pipeline, Task, stage
from pipelines.store import Artifact, Store
from pipelines.sweep import read_trials
from pipelines.workers import Workers
from tests.small_data import write_identities

TINY = {"backbone": "compact", "widths": [8, 16], "depths": [1, 1], "embedding_dim": 16, "virtual_identities": 2}
SHORT = [
    *(f"{name}.train.{key}" for name in ("usual", "softmax", "margins") for key in ("steps=6", "batch_size=32", "warmup_steps=1")),
    *(f"{name}.model.margin_warmup_steps=0" for name in ("usual", "margins")),
    *(f"{name}.model.{key}={value}" for name in ("usual", "softmax", "margins") for key, value in TINY.items()),
    *("margins.train.evaluate_every=2", "margins.train.checkpoint_every=2", "margins.asha.grace_steps=2", "margins.trials=3"),
    *("recognizer.steps=6", "recognizer.false_accept_rate=0.05", "people.development=20"),
]


@stage(version=1)
def aligned(data: Source, task: Task[AlignedConfig]) -> None:
    """In the place of the stage that looks for faces: pictures of letters."""
    write_identities(Path(task.draft.out))


LETTERS = Pipeline("letters", "for tests", FacesConfig, [aligned, *faces.FACES.stages[1:]], faces.FACES.presets)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("faces")
    (folder / "people").mkdir()
    (folder / "people" / "a").write_text("a")
    config = configure(FacesConfig(), LETTERS.presets["quick"], "quick", None, [f"data={folder / 'people'}", *SHORT])
    with Workers(0) as workers:
        done = LETTERS.run(config, Store(str(folder / "store")), workers, Console(quiet=True), "raymill run letters")
    return {name: artifact for name, (artifact, _) in done.items()}


def test_nobody_is_in_two_parts(made: dict[str, Artifact]) -> None:
    people = made["people"].url
    seen = [
        set(Dataset.open(people, split).shape.class_names[i] for i in _labels(people, split)) for split in ("train", "validation", "test")
    ]
    assert all(seen)
    assert not (seen[0] & seen[1])
    assert not ((seen[0] | seen[1]) & seen[2])
    assert len(seen[1]) == 20


def _labels(url: str, split: str) -> set[int]:
    data = Dataset.open(url, split)
    return {label for label, count in enumerate(data.shape.rows_by_class[split]) if count}


def test_the_sweeps_best_settings_are_trained_and_get_a_threshold(made: dict[str, Artifact]) -> None:
    trials = read_trials(made["margins"])
    best = trials["trials"][trials["best"]]["values"]
    model = load_model(made["recognizer"].path("model"))
    assert isinstance(model, Recognition)
    assert {"model.m3": model.config.m3, "model.scale": model.config.scale} == best
    assert model.config.false_accept_rate == 0.05
    assert model.config.threshold is not None
    assert trials["judge"]["score"] == "auc"


def test_the_report_has_methods_curves_and_trials(made: dict[str, Artifact]) -> None:
    found = Findings.read(made["verification"].url)
    assert {row[0] for row in found.tables[0].rows} == {
        *("raw pixels", "PCA, 60 components", "plain softmax", "the usual margin", "the sweep's best")
    }
    assert len(found.charts[0].series) == 5
    page = Path(made["report"].path("page.html")).read_text()
    for text in ("True accepts over false accepts", "Methods on the same pairs", "What varied", "equal error rate"):
        assert text in page


def test_sections_that_do_not_go_together_are_refused() -> None:
    for assignment, problem in (("people.development=0", "nobody to judge"), ("people.fold=7", "fold=7")):
        with pytest.raises(UserError, match=problem):
            configure(FacesConfig(), LETTERS.presets["quick"], "quick", None, [assignment])
