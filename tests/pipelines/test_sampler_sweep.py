"""Sampler sweeps in this process: the artifact, going on after a kill, the default that they leave in a model folder, and every mistake."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from components import storage
from components.config import override
from components.data.columns import Column
from components.data.write import write_dataset
from components.evaluation import generation
from components.evaluation.sampling import to_images
from components.families.classifier import Classifier, ClassifierConfig
from components.families.diffusion import Diffusion, DiffusionConfig
from components.families.model_folder import SAMPLER, copy_model, load_model, save_model, verify_model
from components.families.prior import PriorSampler
from components.sweep.sampling import Bench, SamplingOutcome
from pipelines.cli import main
from pipelines.sampler_sweep_config import configure_sampler_sweep, evaluate_command, sampler_of
from pipelines.sampler_sweep_guide import SamplerSweepGuide
from pipelines.settings import sampler_settings
from pipelines.store import Store
from pipelines.training import find_model
from tests.pipelines.test_bad_input import Case
from tests.pipelines.world import LOCAL, digest, require_one_line
from tests.small_data import shipped_images

FORTY = "samples=40"
PRIOR = ("sweep", "prior", "{data}", "--judge", "classifier", FORTY, *LOCAL)
WARM = ("--vary", "temperature=uniform: [0.5, 1.5]")
SWEEP = (*PRIOR, *WARM, "--vary", "guidance=choice: [1, 2]", "--trials", "6")
DIFFUSION = ("sweep", "diffusion", "{data}", "--judge", "classifier", FORTY, *LOCAL)
GRID = (
    *(*DIFFUSION, "--search", "grid", "--vary", "steps=choice: [1, 2]", "--vary", "sampler=choice: [ddim, dpm_solver]"),
    *("--vary", "eta={choice: [0.0, 1.0], when: {sampler: ddim}}"),
)


@pytest.fixture
def root(studio: Path) -> Path:
    return studio


def run(argv: tuple[str, ...], root: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    code = main([word.replace("{data}", str(root / "data")) for word in (*argv, "--json")])
    out, err = capsys.readouterr()
    assert code == 0, err + out
    return json.loads(out)


def settings(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Without how long they took."""
    return [{name: value for name, value in each.items() if name != "seconds"} for each in found["settings"]]


def model_of(root: Path, name: str) -> str:
    return Store(str(root / "store")).resolve(name).path("model")


def test_a_sweep_is_an_artifact_and_its_best_is_what_evaluate_finds(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(SWEEP, root, capsys)
    assert found["made"]
    assert [each["state"] for each in found["settings"]] == ["finished"] * 6
    scores = [each["scores"]["fd"] for each in found["settings"]]
    assert found["best"]["number"] == scores.index(min(scores))
    assert {each["scores"]["evaluations"] for each in found["settings"]} == {49, 98}
    front = [found["settings"][number]["scores"] for number in found["front"]]
    assert [each["evaluations"] for each in front] == sorted({each["evaluations"] for each in front})
    assert front[-1]["fd"] == min(scores)
    assert not run(SWEEP, root, capsys)["made"]
    again = run(tuple(shlex.split(found["command"])[1:]), root, capsys)
    assert again["scores"].pop("images_per_second") > 0
    assert again["scores"].items() >= found["best"]["scores"].items()  # and the exact W1, which costs a sweep too much
    assert set(again["reference_points"]) == {"real held-out pictures", "class Gaussians", "noise"}
    assert again["reference_points"]["real held-out pictures"]["samples"] == 16
    assert main(["verify", found["url"]]) == 0
    assert not Path(Store(str(root / "store")).place("runs")).exists()
    page = Path(found["report"]).read_text()
    assert page.count("<svg") == 1
    assert page.count("data:image/png") == 1
    assert found["command"] in page.replace("&#39;", "'")
    assert "<script" not in page


def test_a_grid_tries_every_combination_of_a_model_with_many_samplers(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(GRID, root, capsys)
    tried = [(each["values"]["sampler"], each["values"]["steps"], each["values"].get("eta")) for each in found["settings"]]
    assert sorted(tried, key=str) == sorted(
        [("ddim", s, e) for s in (1, 2) for e in (0.0, 1.0)] + [("dpm_solver", s, None) for s in (1, 2)], key=str
    )
    assert {each["values"]["steps"]: each["scores"]["evaluations"] for each in found["settings"]} == {1: 1, 2: 2}
    kid = run((*GRID, "judge.score=kid"), root, capsys)
    assert settings(kid) == settings(found)
    kids = [each["scores"]["kid"] for each in kid["settings"]]
    assert kid["best"]["number"] == kids.index(min(kids))


class Killed(BaseException):
    """Ends the process, as far as the code can tell."""


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_a_sweep_that_was_killed_goes_on_and_ends_the_same(
    search: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = (*SWEEP, "--search", search, *(("ahead=2",) if search == "tpe" else ()))
    calm = run(argv, root, capsys)
    ran: list[dict[str, Any]] = []
    bench_run = Bench.run
    monkeypatch.setattr(Bench, "run", lambda self, sampler: (ran.append(sampler), bench_run(self, sampler))[1])
    shutil.rmtree(calm["url"])
    for last in (1, 3):  # killed again and again
        with monkeypatch.context() as patch:
            patch.setattr(SamplerSweepGuide, "ends", _killer(last))
            with pytest.raises(Killed):
                run(argv, root, capsys)
    again = run(argv, root, capsys)
    assert settings(again) == settings(calm)
    assert again["best"]["values"] == calm["best"]["values"]
    assert len(ran) == 6
    assert Path(again["url"], "samples.png").read_bytes()


def _killer(last: int) -> Callable[..., None]:
    """An `ends` whose process dies at its `last` setting, after it is kept."""
    ends, count = SamplerSweepGuide.ends, [0]

    def end(self: SamplerSweepGuide, number: int, outcome: SamplingOutcome) -> None:
        ends(self, number, outcome)
        count[0] += 1
        if count[0] == last:
            raise Killed

    return end


def test_a_setting_whose_samples_are_no_numbers_is_a_result(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = type(load_model(model_of(root, "diffusion"))).sample
    monkeypatch.setattr(
        "components.families.denoising.Denoising.sample",
        lambda self, count, seed, sampler, first=0: sample(self, count, seed, sampler, first) * (float("nan") if sampler.steps == 2 else 1),
    )
    found = run(GRID, root, capsys)
    assert {each["values"]["steps"]: each["state"] for each in found["settings"]} == {1: "finished", 2: "failed"}
    assert "not finite" in next(each["problem"] for each in found["settings"] if each["state"] == "failed")
    argv = (*DIFFUSION, "--vary", "eta=uniform: [0, 1]", "--trials", "2", "base.steps=2")
    assert main([word.replace("{data}", str(root / "data")) for word in (*argv, "--json")]) == 2
    assert "none of 2 settings came to a score; trial 0: sample 0 is not finite" in json.loads(capsys.readouterr().out)["error"]


def test_when_there_is_no_more_to_try_a_sweep_is_shorter(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run((*PRIOR, "--vary", "top_k=choice: [2, null]", "--trials", "5"), root, capsys)
    assert {each["values"]["top_k"] for each in found["settings"]} == {2, None}


def test_the_best_becomes_the_default_that_samples_are_drawn_by(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = model_of(root, "prior")
    before = digest(Path(url))
    found = run((*SWEEP, "--write"), root, capsys)
    assert found["written"] == f"{url}/{SAMPLER}"
    assert {name: text for name, text in digest(Path(url)).items() if name != SAMPLER} == before
    chosen = json.loads(Path(found["written"]).read_text())["chosen"]
    assert chosen["sweep"] == found["name"]
    assert chosen["scores"]["fd"] == found["best"]["scores"]["fd"]
    loaded = load_model(url)
    best = PriorSampler.parse(found["best"]["values"], "best")
    assert loaded.default_sampler == best
    assert sampler_settings(loaded, None, ["top_p=0.5"]) == best.model_copy(update={"top_p": 0.5})
    assert (
        run(("evaluate", "prior", "{data}", "--judge", "classifier", "--samples", "40"), root, capsys)["scores"]["fd"]
        == chosen["scores"]["fd"]
    )
    run(("sample", "prior", "--count", "3", "--out", str(tmp_path / "drawn")), root, capsys)
    drawn = safetensors.torch.load_file(tmp_path / "drawn" / "samples.safetensors")
    assert torch.equal(drawn["images"], to_images(loaded, loaded.sample(3, 0, best)))
    assert not run(SWEEP, root, capsys)["made"]  # the default is no part of the model that a sweep looks at
    assert main(["verify", url]) == main(["verify", Store(str(root / "store")).resolve("prior").url]) == 0
    rewritten = run((*SWEEP, "judge.score=kid", "--write"), root, capsys)
    assert load_model(url).default_sampler == PriorSampler.parse(rewritten["best"]["values"], "best")


def test_a_default_goes_with_copies_of_the_model_and_not_into_what_is_built_on_it(root: Path, tmp_path: Path) -> None:
    url, place = model_of(root, "prior"), tmp_path / "copy"
    storage.write_json(f"{url}/{SAMPLER}", {"family": "prior", "sampler": {"temperature": 0.5}, "chosen": {}})
    loaded = load_model(url)
    copy_model(url, str(place), loaded.config)
    assert load_model(str(place)).default_sampler == loaded.default_sampler == PriorSampler(temperature=0.5)
    verify_model(str(place))
    save_model(loaded, str(tmp_path / "child"), {"tokenizer": url})
    assert not (tmp_path / "child" / "children" / "tokenizer" / SAMPLER).exists()


def test_a_registered_model_is_swept_and_stays_whole(
    root: Path, database: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(database, root / "store" / "mlflow.db")
    run(("register", "painter", "prior"), root, capsys)
    found = run((SWEEP[0], "models:/painter/1", *SWEEP[2:], "--write"), root, capsys)
    assert found["written"] == f"{model_of(root, 'prior')}/{SAMPLER}"
    run(("promote", "painter", "1"), root, capsys)  # reads every byte of the artifact
    assert load_model(find_model("models:/painter@champion", Store(str(root / "store")))).default_sampler is not None


def test_another_sampler_than_the_default_begins_anew(root: Path) -> None:
    url = model_of(root, "diffusion")
    storage.write_json(f"{url}/{SAMPLER}", {"family": "diffusion", "sampler": {"sampler": "ddim", "eta": 0.5, "steps": 4}, "chosen": {}})
    loaded = load_model(url)

    def found(*assignments: str) -> tuple[Any, ...]:
        values = sampler_settings(loaded, None, list(assignments)).to_json()
        return values["sampler"], values["eta"], values["steps"]

    assert found("steps=2") == ("ddim", 0.5, 2)
    assert found("sampler=ddim") == ("ddim", 0.5, 4)
    assert found("sampler=dpm_solver") == ("dpm_solver", 0.0, None)


def test_the_command_of_the_best_does_not_lean_on_the_written_default(tmp_path: Path) -> None:
    url = str(tmp_path / "model")
    network = {"widths": (4,), "attention": (False,), "blocks": 1}
    save_model(Diffusion(DiffusionConfig.parse({"image_size": (4, 4), "network": network}, "test")), url)
    config = override(configure_sampler_sweep("diffusion", None, ["steps=choice: [4, 5]"], []), ["base.rtol=1e-4"])
    for sampler in ({"guidance": 2, "eta": 0.5}, {"sampler": "ddim", "clip": False}, {"sampler": "dpm_solver", "steps": 3}, {}):
        storage.write_json(f"{url}/{SAMPLER}", {"family": "diffusion", "sampler": sampler, "chosen": {}})
        for best in ({"guidance": 1.0, "steps": 5}, {"sampler": "ddim", "steps": 5}, {"clip": None, "eta": 0.25}):
            words = shlex.split(evaluate_command(config, best, "diffusion", "data", "judge"))
            drawn = sampler_settings(load_model(url), None, [word for word in words if "=" in word])
            assert drawn == sampler_of(config, best)


@pytest.mark.parametrize(
    ("content", "says"),
    [('{"sampler": {"temprature": 1}, "family": "prior"}', "temprature"), ("[]", "no sampler of a Prior"), ("{", "not valid JSON")],
)
def test_a_damaged_default_is_told_with_its_file(content: str, says: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path(model_of(root, "prior"), SAMPLER).write_text(content)
    require_one_line(["sample", "prior"], (SAMPLER, says), capsys)


def test_real_pictures_are_looked_at_once(root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ("evaluate", "prior", "{data}", "--judge", "classifier", "--samples", "20")
    first = run(argv, root, capsys)
    with monkeypatch.context() as patch:
        patch.setattr(generation.Reference, "of", None)
        patch.setattr("pipelines.references.point_scores", None)
        second = run(argv, root, capsys)
    for file in Path(root / "store" / "cache").glob("[rp]*-*"):
        file.write_bytes(file.read_bytes()[:10])  # cut short
    third = run(argv, root, capsys)
    for found in (first, second, third):
        found["scores"].pop("images_per_second")
    assert first == second == third


def test_a_sweep_in_an_object_store_is_the_same(s3: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = run(SWEEP, root, capsys)
    for name in ("prior", "classifier"):
        for file in storage.list_files(model_of(root, name)):
            storage.upload(f"{model_of(root, name)}/{file}", f"{s3}/models/{name}/{file}")
    moved = {"prior": f"{s3}/models/prior", "classifier": f"{s3}/models/classifier"}
    there = run((*(moved.get(word, word) for word in SWEEP), "--store", f"{s3}/store", "--write"), root, capsys)
    assert settings(there) == settings(here)
    assert load_model(moved["prior"]).default_sampler == PriorSampler.parse(here["best"]["values"], "best")


MISTAKES = [
    Case("nothing varies", PRIOR, ("--vary KEY=SPACE",)),
    Case("not a space", (*PRIOR, "--vary", "steps"), ("'steps' is not KEY=SPACE", "choice: [5, 10, 20]")),
    Case("unknown option", (*PRIOR, "--vary", "temprature=uniform: [1, 2]"), ("'temprature'", "did you mean 'temperature'")),
    Case("option that changes nothing", (*PRIOR, "--vary", "batch_size=choice: [1, 2]"), ("batch_size", "do not depend")),
    Case("values out of range", (*PRIOR, "--vary", "top_p=uniform: [0.9, 1.5]"), ("top_p=", "less than or equal to 1", "trial")),
    Case("more codes than there are", (*PRIOR, "--vary", "top_k=choice: [4, 400]"), ("top_k=400", "16 codes", "trial")),
    Case(
        "sampler that does not fit",
        (*DIFFUSION, "--vary", "sampler=choice: [ddim, predictor_corrector]"),
        ("predictor_corrector", "does not fit"),
    ),
    Case("more steps than levels", (*DIFFUSION, "--vary", "steps=choice: [4, 9]", "--search", "grid"), ("steps: 9", "8 levels", "trial")),
    Case(
        "option without effect on a sampler",
        (*GRID[:-2], "--vary", "eta=choice: [0.0, 1.0]"),
        ("eta=1.0", "no effect with sampler=dpm_solver"),
    ),
    Case("grid of no choices", (*PRIOR, *WARM, "--search", "grid"), ("temperature", "a grid needs a choice")),
    Case("grid with trials", (*GRID, "--trials", "3"), ("trials=3", "no effect with search=grid")),
    Case("tpe option without tpe", (*SWEEP, "ahead=2"), ("ahead", "no effect")),
    Case("no trials", (*PRIOR, *WARM, "--trials", "0"), ("trials=0",)),
    Case("unknown search", (*PRIOR, *WARM, "--search", "gird"), ("search='gird'", "'random', 'grid' or 'tpe'")),
    Case("unknown score", (*PRIOR, *WARM, "judge.score=fid"), ("judge.score='fid'", "'fd' or 'kid'")),
    Case("unknown key of the sweep", (*PRIOR, *WARM, "sampels=3"), ("'sampels'", "did you mean 'samples'")),
    Case("fewer samples than features", (*SWEEP, "samples=4"), ("samples=4", "4 features")),
    Case("unknown split", (*SWEEP, "split=trian"), ("'trian'", "did you mean 'train'")),
    Case("scheduler", (*SWEEP, "--scheduler", "asha"), ("--scheduler has no effect with --judge",)),
    Case("preset", (*SWEEP, "--preset", "quick"), ("--preset has no effect with --judge",)),
    Case(
        "write without a judge",
        ("sweep", "classifier", "{data}", "--vary", "model.dropout=uniform: [0, 0.5]", "--write", *LOCAL),
        ("--write has no effect",),
    ),
    Case("judge that is none", ("sweep", "prior", "{data}", "--judge", "vqvae", *WARM, *LOCAL), ("'vqvae'", "expected 'classifier'")),
    Case(
        "model that does not generate", ("sweep", "vqvae", "{data}", "--judge", "classifier", *WARM, *LOCAL), ("vqvae", "does not generate")
    ),
    Case("unknown model", ("sweep", "piror", "{data}", "--judge", "classifier", *WARM, *LOCAL), ("'piror'", "did you mean 'prior'")),
    Case("data without pictures", ("sweep", "prior", "{root}/codes", "--judge", "classifier", *WARM, *LOCAL), ("codes", "image")),
    Case(
        "judge of another picture size",
        ("sweep", "prior", "{data}", "--judge", "{root}/judge", *WARM, *LOCAL),
        ("image_size=[14, 14]", "needs [28, 28]"),
        lambda root: _judge_of(root, (14, 14)),
    ),
    Case(
        "model of another picture size",
        ("sweep", "prior", "{root}/small", "--judge", "{root}/judge", *WARM, *LOCAL),
        ("(1, 28, 28)", "(1, 14, 14)"),
        lambda root: (_judge_of(root, (14, 14)), _small_pictures(root)),
    ),
    Case(
        "prior without a tokenizer",
        ("sweep", "{root}/copy", "{data}", "--judge", "classifier", *WARM, *LOCAL),
        ("tokenizer",),
        lambda root: save_model(_without_tokenizer(root), str(root / "copy")),
    ),
    Case(
        "file of another family",
        (*SWEEP, "--config", "{root}/sweep.yaml"),
        ("sweep.yaml", "'diffusion'", "'prior'"),
        lambda root: (root / "sweep.yaml").write_text("family: diffusion"),
    ),
]


def _judge_of(root: Path, size: tuple[int, int]) -> None:
    save_model(Classifier(ClassifierConfig(image_size=size, widths=(4,), feature_dim=4)), str(root / "judge"))


def _small_pictures(root: Path) -> None:
    images, labels = shipped_images("train", 40)
    columns = {"image": Column(dtype="uint8", shape=(1, 14, 14)), "label": Column(dtype="int64")}
    rows = {"image": images[:, :, ::2, ::2].copy(), "label": labels}
    write_dataset(str(root / "small"), {"train": [rows]}, columns, tuple(map(str, range(10))), {"made": "for a test"})


def _without_tokenizer(root: Path) -> Any:
    family = load_model(model_of(root, "prior"))
    return type(family)(family.config)


@pytest.mark.parametrize("case", MISTAKES, ids=lambda case: case.name)
def test_a_mistake_gives_one_line_and_leaves_the_store(case: Case, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case.spoil(root)
    argv = [word.replace("{root}", str(root)).replace("{data}", str(root / "data")) for word in case.argv]
    before = digest(root / "store")
    require_one_line(argv, case.says, capsys)
    assert digest(root / "store") == before
