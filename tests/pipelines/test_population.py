"""Population based training in this process: generations by the rules, plain training inside, going on after an end, and every mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from components import storage
from components.data.index import read_index
from components.families.model_folder import load_model
from components.sweep import trial as trials
from components.sweep.trial import run_here
from components.training.job import execute
from components.training.outlet import Outlet
from components.training.record import read_metrics
from pipelines.cli import main
from pipelines.population_guide import PopulationGuide
from pipelines.source import SourceReader
from pipelines.store import Store
from pipelines.sweep_config import configure_sweep, resolve, settings_of
from pipelines.training import find_model, training_job
from tests.pipelines.test_bad_input import Case
from tests.pipelines.test_sweep import Killed, run
from tests.pipelines.world import LOCAL, TINY, digest, require_one_line
from tests.sweep.test_trial import same

SETTINGS = (*TINY["classifier"], "train.steps=12", "train.batch_size=16", "train.log_every=3", "train.checkpoint_every=2")
RATE, DROPOUT = "train.optimizer.lr", "model.dropout"
VARY = (f"{RATE}=log: [1e-4, 1e-1]", f"{DROPOUT}=uniform: [0, 0.5]")
BASE = ("sweep", "classifier", "{data}", *SETTINGS, *LOCAL)
POPULATION = (*BASE, *(word for text in VARY for word in ("--vary", text)), "--trials", "4", "--scheduler", "pbt", "pbt.interval_steps=4")


def test_members_that_copy_nobody_are_plain_trainings(tmp_path: Path, small_data_folders: dict[str, Path]) -> None:
    """And the others follow the rules: one of four copies the best, its values multiplied or drawn anew."""
    data = str(small_data_folders["images"])
    asked = configure_sweep("classifier", None, None, VARY, [*SETTINGS, "trials=4", "scheduler=pbt", "pbt.interval_steps=4"])
    index = read_index(data)
    config, told = resolve(asked, index.shape, index.splits, data)
    assert told == ["train.evaluate_every=4: pbt needs scores at the end of each generation"]
    sources = {"data": SourceReader(Store(str(tmp_path / "store"))).read(data, "DATA")}
    guide = PopulationGuide(config, sources, str(tmp_path / "work"), index.shape, lambda row: None)
    run_here(guide)
    courses = [guide.details(entry)["generations"] for entry in guide.entries]
    assert [course["steps"] for course in courses[0]] == [[0, 4], [4, 8], [8, 12]]
    for place in (1, 2):
        before = {number: course[place - 1]["score"] for number, course in enumerate(courses)}
        ranked = sorted(before, key=lambda number: (-before[number], number))
        assert {number: course[place]["copied"] for number, course in enumerate(courses)} == {
            number: ranked[0] if number == ranked[-1] else None for number in before
        }
        for course in courses:
            if course[place]["copied"] is None:
                assert course[place]["values"] == course[place - 1]["values"]
            else:
                assert course[place]["values"] != courses[ranked[0]][place - 1]["values"]
                assert 1e-4 <= course[place]["values"][RATE] <= 1e-1
                assert 0 <= course[place]["values"][DROPOUT] <= 0.5
        assert not (tmp_path / "work" / "members" / f"generation_0000{place - 1}" / "member_00000" / "checkpoints").exists()
    alone = [number for number, course in enumerate(courses) if all(each["copied"] is None for each in course)]
    assert alone
    for number in alone:
        plain = training_job(settings_of(config, guide.entries[number].values), data, str(tmp_path / f"plain{number}"), {})
        execute(plain, Outlet(torch.device("cpu")))
        assert same(tmp_path / f"plain{number}", tmp_path / "work" / "members" / "generation_00002" / f"member_{number:05d}")


def test_a_population_is_an_artifact_with_the_best_model(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(POPULATION, root, capsys)
    assert found["made"]
    assert found["command"] is None
    assert not run(POPULATION, root, capsys)["made"]
    store = Store(str(root / "store"))
    assert not Path(store.place("runs")).exists()
    assert main(["verify", found["url"]]) == 0
    best = found["best"]
    assert best["score"] == max(trial["score"] for trial in found["trials"])
    assert best["generations"][-1]["values"] == best["values"]
    assert [step for step, _ in best["curve"]] == [4, 8, 12]
    capsys.readouterr()
    assert main(["evaluate", find_model(found["name"], store), str(root / "data"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"]["accuracy"] == best["score"]
    rows = read_metrics(found["url"])
    assert [row["step"] for row in rows] == [2, 3, 4, 6, 8, 9, 10, 12]
    for place, number in enumerate(best["ancestors"]):  # the metrics are of those whose weights it has
        (score,) = [row["held_out.accuracy"] for row in rows if row["step"] == 4 * place + 4]
        assert score == found["trials"][number]["generations"][place]["score"]
    page = Path(found["report"]).read_text()
    assert "no single <code>raymill train</code> makes it" in page
    assert "To train the best one alone" not in page
    assert page.count("<svg") >= 4 + 3
    assert "<script" not in page


def test_a_population_that_was_killed_goes_on_and_ends_the_same(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = run((*POPULATION, "--store", str(tmp_path / "calm")), root, capsys)
    steps: list[tuple[str, int]] = []
    plain = trials.execute
    monkeypatch.setattr(trials, "execute", lambda job, outlet: plain(job, _counting(outlet, job.run, steps)))
    argv = (*POPULATION, "--store", str(tmp_path / "killed"))
    for name, calls in (("reports", 2), ("ends", 2), ("_begin", 1), ("_forget_checkpoints", 1), ("ends", 2)):
        with monkeypatch.context() as patch:
            patch.setattr(PopulationGuide, name, _killer(getattr(PopulationGuide, name), calls))
            with pytest.raises(Killed):
                run(argv, root, capsys)
    again = run(argv, root, capsys)
    assert again["trials"] == calm["trials"]
    assert again["best"] == calm["best"]
    kept = ("trials.json", "findings.json", "model.safetensors", "config.json")
    here, there = ({n: t for n, t in digest(tmp_path / store).items() if n.endswith(kept)} for store in ("killed", "calm"))
    assert len(here) == 4
    assert here == there
    ended = [place for place, step in steps if step in (4, 8, 12)]
    assert sorted(ended) == sorted({*ended})  # no finished training was repeated
    assert len(ended) == 12


def _counting(outlet: Outlet, run_folder: str, steps: list[tuple[str, int]]) -> Outlet:
    show = outlet.show

    def shown(row: dict[str, Any]) -> None:
        steps.append((run_folder, row["step"]))
        show(row)

    outlet.show = shown
    return outlet


def _killer(method: Callable[..., Any], last: int) -> Callable[..., Any]:
    """A method whose process dies after the `last` call."""
    count = [0]

    def call(*arguments: Any) -> Any:
        result = method(*arguments)
        count[0] += 1
        if count[0] == last:
            raise Killed
        return result

    return call


WILD = (*BASE, "train.optimizer.name=sgd", "train.clip_norm=null", "--trials", "4", "--scheduler", "pbt", "pbt.interval_steps=4")


def test_who_diverges_goes_on_as_another(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run((*WILD, "--vary", f"{RATE}=log: [1.0e-3, 1.0e+38]", "pbt.resample=0"), root, capsys)
    first = [trial["generations"][0] for trial in found["trials"]]
    failed = [number for number, course in enumerate(first) if course["problem"]]
    assert 1 < len(failed) < 4  # more than the quantile
    for number in failed:
        assert "not finite" in first[number]["problem"]
        assert found["trials"][number]["generations"][1]["copied"] not in (None, *failed)
    assert found["best"]["state"] == "finished"


def test_when_every_member_diverges_there_is_no_population(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = (*WILD, "--vary", f"{RATE}=uniform: [1.0e+30, 2.0e+30]")
    for _ in range(2):  # and the same command says the same again
        says = ("none of 4 members came to a score in generation 1; training stopped: at step",)
        capsys.readouterr()
        assert main([word.replace("{data}", str(root / "data")) for word in (*argv, "--json")]) == 2
        assert says[0] in json.loads(capsys.readouterr().out)["error"]


def test_other_sweeps_are_who_they_were() -> None:
    config = configure_sweep("classifier", None, None, VARY[:1], ["scheduler=asha"])
    assert "pbt" not in config.identity()
    assert configure_sweep("classifier", None, None, VARY[:1], ["scheduler=pbt"]).identity()["pbt"]["quantile"] == 0.25


def test_what_is_left_open_is_filled_in(small_data_folders: dict[str, Path]) -> None:
    data = str(small_data_folders["images"])
    index = read_index(data)
    for every, interval in ((0, 10), (3, 12), (25, 25)):
        asked = configure_sweep("classifier", None, None, VARY, ["scheduler=pbt", "train.steps=95", f"train.evaluate_every={every}"])
        config, told = resolve(asked, index.shape, index.splits, data)
        assert config.pbt.interval_steps == interval
        assert config.train.evaluate_every == (every or interval)
        assert told[0] == f"pbt.interval_steps={interval}: about a tenth of train.steps"


MISTAKES = [
    Case("a space of shapes", (*POPULATION, "--vary", "model.feature_dim=integer: [4, 8]"), ("model.feature_dim", RATE, DROPOUT)),
    Case("a space of the schedule", (*POPULATION, "--vary", "train.warmup_steps=integer: [0, 4]"), ("train.warmup_steps", RATE)),
    Case("a choice", (*BASE, "--vary", f"{RATE}=choice: [0.1, 0.01]", "--scheduler", "pbt"), (RATE, "log, uniform or integer")),
    Case(
        "a conditional space",
        (*BASE, "--vary", f"{RATE}={{log: [1e-4, 1e-1], when: {{{DROPOUT}: 0}}}}", "--vary", VARY[1], "--scheduler", "pbt"),
        (RATE, "conditional"),
    ),
    Case("momentum of adamw", (*POPULATION, "--vary", "train.optimizer.momentum=uniform: [0, 0.9]"), ("momentum", "choose sgd")),
    Case("another search", (*POPULATION, "--search", "tpe"), ("search=tpe", "scheduler=pbt")),
    Case("too few", (*POPULATION, "--trials", "3"), ("trials=3", "at least 4")),
    Case("one generation", (*POPULATION, "pbt.interval_steps=12"), ("pbt.interval_steps=12", "train.steps=12")),
    Case("a generation without scores", (*POPULATION, "train.evaluate_every=3"), ("pbt.interval_steps=4", "evaluate_every=3")),
    Case("pbt option without pbt", (*BASE, "--vary", VARY[0], "pbt.quantile=0.5"), ("pbt", "no effect")),
    Case("asha option with pbt", (*POPULATION, "asha.grace_steps=4"), ("asha", "no effect")),
    Case("more than half", (*POPULATION, "pbt.quantile=0.6"), ("quantile=0.6",)),
    Case("factors that only lead down", (*POPULATION, "pbt.factors=[0.5, 0.9]"), ("[0.5, 0.9]", "above 1")),
    Case("a probability above 1", (*POPULATION, "pbt.resample=1.5"), ("resample=1.5",)),
    Case("best checkpoints", (*POPULATION, "train.evaluate_every=4", "train.keep_best=1"), ("keep_best", "pbt")),
    Case("unknown option", (*POPULATION, "pbt.interval=4"), ("'pbt.interval'", "interval_steps")),
]


@pytest.mark.parametrize("case", MISTAKES, ids=lambda case: case.name)
def test_a_mistake_gives_one_line_and_leaves_the_store(case: Case, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [word.replace("{data}", str(root / "data")) for word in case.argv]
    before = digest(root / "store")
    require_one_line(argv, case.says, capsys)
    assert digest(root / "store") == before


def test_a_population_in_an_object_store_is_the_same(s3: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = run((*POPULATION, "--store", f"{s3}/store"), root, capsys)
    here = run((*POPULATION, "--store", str(tmp_path / "local")), root, capsys)
    assert there["trials"] == here["trials"]
    store = Store(f"{s3}/store")
    store.resolve(there["name"]).verify()
    assert (
        load_model(find_model(there["name"], store)).config == load_model(find_model(here["name"], Store(str(tmp_path / "local")))).config
    )
    assert storage.list_files(store.place("runs")) == []
