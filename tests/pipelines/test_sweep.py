"""The sweep command in this process: the artifact it makes, trials that are trainings, going on after an end, and every mistake."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from components import storage
from components.sweep import trial as trials
from pipelines.cli import main
from pipelines.settings import Training, configure, family_preset, take_preset
from pipelines.store import Recipe, Store
from pipelines.sweep_config import configure_sweep, train_command
from pipelines.sweep_guide import SweepGuide
from tests.pipelines.test_bad_input import Case
from tests.pipelines.world import LOCAL, TINY, digest, require_one_line

BASE = ("sweep", "classifier", "{data}", *TINY["classifier"], "train.steps=9", "train.batch_size=16", "train.log_every=1", *LOCAL)
RATE = ("--vary", "train.optimizer.lr=log: [1e-4, 1e-1]")
SWEEP = (*BASE, *RATE, "--trials", "4", "--scheduler", "asha")


def run(argv: tuple[str, ...], root: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main([word.replace("{data}", str(root / "data")) for word in (*argv, "--json")]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_sweep_is_an_artifact_and_its_trials_are_trainings(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(SWEEP, root, capsys)
    assert found["made"]
    states = [trial["state"] for trial in found["trials"]]
    assert states[0] == "finished"
    assert "stopped" in states
    assert found["trials"][states.index("stopped")]["curve"][-1][0] in (1, 3)
    best = max((t for t in found["trials"] if t["state"] == "finished"), key=lambda t: t["score"])
    assert found["best"]["score"] == best["score"]
    assert not run(SWEEP, root, capsys)["made"]
    store = Store(str(root / "store"))
    assert not Path(store.place("runs")).exists()
    for each in found["trials"]:
        assert (each["artifact"] is None) == (each["state"] != "finished")
    alone = run((*found["command"].split()[1:4], *_words(found["command"]), *LOCAL), root, capsys)
    assert not alone["made"]
    assert alone["name"] == found["best"]["artifact"]
    assert alone["scores"]["accuracy"] == found["best"]["score"]
    assert main(["verify", found["url"]]) == 0
    page = Path(found["report"]).read_text()
    assert found["command"].replace("'", "&#39;") in page
    assert page.count("<svg") >= 4
    assert "<script" not in page


def _words(command: str) -> list[str]:
    return shlex.split(command)[4:]


def test_what_is_there_already_is_not_trained_again(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    execute = trials.execute
    monkeypatch.setattr(trials, "execute", lambda job, outlet: (ran.append(job.run), execute(job, outlet)))
    first = run((*BASE, *RATE, "--trials", "2"), root, capsys)
    assert len(ran) == 2
    more = run((*BASE, *RATE, "--trials", "3"), root, capsys)
    assert len(ran) == 3
    assert more["trials"][:2] == first["trials"]
    assert more["fingerprint"] != first["fingerprint"]


class Killed(BaseException):
    """Ends the process, as far as the code can tell."""


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_a_sweep_that_was_killed_goes_on_and_ends_the_same(
    search: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = (*SWEEP, "--search", search, "train.checkpoint_every=2")
    calm = run((*argv, "--store", str(tmp_path / "calm")), root, capsys)
    for rows in (1, 4, 6):  # killed again and again
        with monkeypatch.context() as patch:
            patch.setattr(SweepGuide, "reports", _killer(rows))
            with pytest.raises(Killed):
                run((*argv, "--store", str(tmp_path / "killed")), root, capsys)
    again = run((*argv, "--store", str(tmp_path / "killed")), root, capsys)
    assert again["trials"] == calm["trials"]
    assert _without_times(tmp_path / "killed") == _without_times(tmp_path / "calm")


def _killer(last: int) -> Callable[..., bool]:
    """A `reports` whose process dies at the `last` row, after it is kept."""
    reports, count = SweepGuide.reports, [0]

    def report(self: SweepGuide, number: int, row: dict[str, Any]) -> bool:
        goes_on = reports(self, number, row)
        count[0] += 1
        if count[0] == last:
            raise Killed
        return goes_on

    return report


def _without_times(store: Path) -> dict[str, str]:
    """Weights and trials by path."""
    return {name: text for name, text in digest(store).items() if name.endswith(("model.safetensors", "trials.json"))}


def test_when_there_is_no_more_to_try_a_sweep_is_shorter(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run((*BASE, "--vary", "model.flip=choice: [true, false]", "--trials", "5"), root, capsys)
    assert sorted(trial["values"]["model.flip"] for trial in found["trials"]) == [False, True]


WILD = (*BASE, "train.optimizer.name=sgd", "train.clip_norm=null", "--trials", "2")


def test_a_diverged_trial_is_a_result(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run((*WILD, "--vary", "train.optimizer.lr=choice: [1.0e-3, 1.0e+30]"), root, capsys)
    assert {trial["values"]["train.optimizer.lr"]: trial["state"] for trial in found["trials"]} == {1e-3: "finished", 1e30: "failed"}
    failed = next(trial for trial in found["trials"] if trial["state"] == "failed")
    assert "not finite" in failed["problem"]
    assert found["best"]["state"] == "finished"


def test_when_every_trial_diverges_there_is_no_sweep(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = (*WILD, "--vary", "train.optimizer.lr=uniform: [1.0e+30, 2.0e+30]", "--json")
    assert main([word.replace("{data}", str(root / "data")) for word in argv]) == 2
    assert "none of 2 trials came to a score; trial 0: training stopped: at step" in json.loads(capsys.readouterr().out)["error"]


def test_a_model_that_another_process_is_making_is_left_to_it(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = run((*BASE, *RATE, "--trials", "2", "--store", str(tmp_path / "other")), root, capsys)
    store, other = Store(str(root / "store")), Store(str(tmp_path / "other"))
    theirs = other.resolve(alone["trials"][0]["artifact"])
    recipe = Recipe.parse({name: getattr(theirs.manifest, name) for name in ("stage", "version", "config", "inputs")}, "test")
    with store.drafting(recipe, lambda owner: None) as draft, ThreadPoolExecutor(1) as thread:
        running = thread.submit(run, (*BASE, *RATE, "--trials", "2"), root, capsys)
        while not any(found.name == alone["trials"][1]["artifact"] for found in store.artifacts()):  # the sweep goes on with its others
            assert not running.done()
            time.sleep(0.1)
        for file in theirs.manifest.files:
            storage.download(theirs.path(file), str(draft.folder / file))
        made = store.publish(draft, recipe, theirs.manifest.sources, 1.0, "by another process")
    assert running.result()["trials"] == alone["trials"]
    assert store.resolve(made.name).manifest.command == "by another process"


@pytest.mark.parametrize(
    ("preset", "assignments"),
    [
        (None, ["model.dropout=0.25", "train.optimizer.betas=[0.9, 0.99]", "train.clip_norm=null", "train.ema_decay=0.5"]),
        ("quick", ["train.ema_decay=null", "train.optimizer.lr=1e-05", "model.widths=[8]"]),
    ],
)
def test_the_printed_command_gives_just_these_settings(preset: str | None, assignments: list[str]) -> None:
    settings = configure_sweep("classifier", preset, None, [], assignments).base
    words = _words(train_command(settings, "data", [], preset))
    if preset is not None:
        words.remove("--preset")
        words.remove(preset)
    _, texts = take_preset(None, words)
    again = configure(Training.parse({"family": "classifier"}, "test"), family_preset("classifier", preset or ""), preset, None, texts)
    assert again == settings


def yaml_of(root: Path, text: str) -> None:
    (root / "sweep.yaml").write_text(text)


MISTAKES = [
    Case("nothing varies", (*BASE,), ("--vary KEY=SPACE",)),
    Case("not a space", (*BASE, "--vary", "train.optimizer.lr=0.1"), ("'train.optimizer.lr=0.1'", "KEY=SPACE")),
    Case("not a text of two parts", (*BASE, "--vary", "train.optimizer.lr"), ("KEY=SPACE",)),
    Case("space that is no YAML", (*BASE, "--vary", "model.dropout=uniform: [0"), ("KEY=SPACE",)),
    Case("unknown kind of space", (*BASE, "--vary", "model.dropout=uniforn: [0, 1]"), ("uniforn", "did you mean 'uniform'")),
    Case("unknown key", (*BASE, "--vary", "model.dorpout=uniform: [0, 0.5]"), ("'model.dorpout'", "did you mean 'model.dropout'")),
    Case("key of the sweep itself", (*BASE, "--vary", "trials=integer: [1, 2]"), ("vary trials", "model and train")),
    Case("key twice", (*BASE, *RATE, *RATE), ("twice",)),
    Case("empty choice", (*BASE, "--vary", "model.flip=choice: []"), ("empty choice",)),
    Case("ends the wrong way round", (*BASE, "--vary", "model.dropout=uniform: [0.5, 0.1]"), ("[0.5, 0.1]", "lower end first")),
    Case("logarithm of nothing", (*BASE, "--vary", "train.optimizer.lr=log: [0, 0.1]"), ("log", "above 0")),
    Case("values out of range", (*BASE, "--vary", "model.dropout=uniform: [0.9, 1.5]"), ("dropout=", "less than 1", "trial")),
    Case("values of another type", (*BASE, "--vary", "model.widths=uniform: [1, 2]"), ("widths=", "tuple", "trial")),
    Case(
        "condition on what does not vary", (*BASE, "--vary", "model.dropout={uniform: [0, 0.5], when: {model.flip: true}}"), ("model.flip",)
    ),
    Case("unknown score", (*BASE, *RATE, "judge={score: acuracy, best: max}"), ("'acuracy'", "did you mean 'accuracy'")),
    Case("neither min nor max", (*BASE, *RATE, "judge={score: nll, best: least}"), ("judge.best", "'min' or 'max'")),
    Case("no trials", (*BASE, *RATE, "--trials", "0"), ("trials=0",)),
    Case("unknown search", (*BASE, *RATE, "--search", "grid"), ("search='grid'", "'random' or 'tpe'")),
    Case("unknown scheduler", (*BASE, *RATE, "--scheduler", "hyperband"), ("scheduler='hyperband'", "'none', 'asha' or 'pbt'")),
    Case("asha option without asha", (*BASE, *RATE, "asha.grace_steps=3"), ("asha", "no effect")),
    Case("tpe option without tpe", (*BASE, *RATE, "ahead=2"), ("ahead", "no effect")),
    Case("asha that never judges", (*SWEEP, "asha.grace_steps=9"), ("grace_steps=9", "train.steps=9")),
    Case("asha over steps", (*SWEEP, "--vary", "train.steps=integer: [3, 9]"), ("train.steps", "asha")),
    Case("scores of different rows", (*BASE, "--vary", "train.held_out=choice: [train, test]"), ("train.held_out",)),
    Case("split that is not there", (*BASE, *RATE, "train.held_out=validation"), ("validation split",)),
    Case("factor of one", (*SWEEP, "asha.reduction_factor=1"), ("reduction_factor=1",)),
    Case("no CPU", (*BASE, *RATE, "resources.cpus=0"), ("resources.cpus=0",)),
    Case("unknown option", (*BASE, *RATE, "trails=4"), ("'trails'", "did you mean 'trials'")),
    Case("unknown family", ("sweep", "clasifier", "{data}", *RATE), ("'clasifier'", "did you mean 'classifier'")),
    Case("no data", ("sweep", "classifier", "{root}/nowhere", *RATE, *LOCAL), ("nowhere",)),
    Case("data that is no data set", ("sweep", "classifier", "{root}/idx", *RATE, *LOCAL), ("idx", "no data set")),
    Case(
        "file of another family",
        (*BASE, *RATE, "--config", "{root}/sweep.yaml"),
        ("sweep.yaml", "'vqvae'", "'classifier'"),
        lambda root: yaml_of(root, "family: vqvae"),
    ),
    Case(
        "file with an unknown key",
        (*BASE, "--config", "{root}/sweep.yaml"),
        ("sweep.yaml", "'varry'", "did you mean 'vary'"),
        lambda root: yaml_of(root, "varry: {}"),
    ),
]


@pytest.mark.parametrize("case", MISTAKES, ids=lambda case: case.name)
def test_a_mistake_gives_one_line_and_leaves_the_store(case: Case, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case.spoil(root)
    argv = [word.replace("{root}", str(root)).replace("{data}", str(root / "data")) for word in case.argv]
    before = digest(root / "store")
    require_one_line(argv, case.says, capsys)
    assert digest(root / "store") == before


def test_a_sweep_in_an_object_store_is_the_same(s3: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = run((*SWEEP, "--store", f"{s3}/store"), root, capsys)
    here = run((*SWEEP, "--store", str(tmp_path / "local")), root, capsys)
    assert there["trials"] == here["trials"]
    assert not run((*SWEEP, "--store", f"{s3}/store"), root, capsys)["made"]
    store = Store(f"{s3}/store")
    store.resolve(there["name"]).verify()
    assert storage.list_files(store.place("runs")) == []
