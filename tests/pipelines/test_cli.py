"""The command line: answers, exit codes, help, presets and overrides, and what it does not import."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from components.config import Config
from components.errors import UserError
from components.families.catalogue import FAMILIES
from pipelines import catalogue
from pipelines.cli import app, main
from pipelines.console import Console, Pace
from pipelines.faces import FACES
from pipelines.settings import Training, configure, family_preset, read_presets, take_preset
from pipelines.source import Source
from pipelines.stage import Pipeline, Task, stage
from pipelines.store import Artifact
from pipelines.tokens import TOKENS, TokensConfig

COMMANDS = (
    "list",
    "fetch",
    "prepare",
    "train",
    "sweep",
    "run",
    "sample",
    "evaluate",
    "export",
    "report",
    "verify",
    "submit",
    "jobs",
    "logs",
    "stop",
    "track",
    "register",
    "models",
    "promote",
    "rollback",
)


class WordsConfig(Config):
    data: str = ""
    words: Config = Config()


class Upper(Config):
    again: int = 1
    fail: str = ""


class ShoutsConfig(Config):
    data: str = ""
    shouts: Upper = Upper()


@stage(version=1)
def shouts(data: Source, task: Task[Upper]) -> None:
    if task.config.fail == "user":
        raise UserError("shouts.fail=user was asked for;\n choose another")
    if task.config.fail == "ours":
        raise KeyError("a mistake of ours")
    print("something that a library prints")
    task.report({"step": 1, "steps": 2, "loss": 0.5, "samples_per_second": 10.0})
    (task.draft.folder / "out.txt").write_text(Path(data.url).read_text().upper() * task.config.again)


PRESETS = {"quick": {}, "base": {"shouts": {"again": 2}}, "full": {"shouts": {"again": 3}}}


@pytest.fixture
def argv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`run shouts` on a small file, in this process."""
    pipeline = Pipeline("shouts", "for tests", ShoutsConfig, [shouts], PRESETS)
    monkeypatch.setitem(catalogue.PIPELINES, "shouts", lambda: pipeline)
    (tmp_path / "data.txt").write_text("abc")
    return ["run", "shouts", f"data={tmp_path / 'data.txt'}", "--store", str(tmp_path / "store"), "--workers", "0"]


def test_a_run_says_what_it_made_and_a_second_that_there_is_nothing_to_do(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert "shouts: 1 artifact, 1 made now" in out
    assert re.fullmatch(r"shouts: made in \d\.\d s, shouts-[0-9a-f]{16}\n", err)
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert out == "shouts: 1 artifact, all there already; nothing to do\n"
    assert err == ""


def test_json_is_one_object_and_nothing_else_on_stdout(argv: list[str], capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([*argv, "--json"]) == 0
    out, err = capfd.readouterr()
    answer = json.loads(out)
    assert out.count("\n") == 1
    assert answer["made"] == ["shouts"]
    assert Path(answer["artifacts"]["shouts"]["url"], "out.txt").read_text() == "ABC"
    assert "something that a library prints" in err
    assert main([*argv, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["made"] == []


@pytest.mark.parametrize(
    ("options", "again"), [((), 1), (("--preset", "base"), 2), (("preset=full",), 3), (("preset=full", "shouts.again=7"), 7)]
)
def test_presets_and_overrides(argv: list[str], options: tuple[str, ...], again: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*argv, *options, "--json"]) == 0
    url = json.loads(capsys.readouterr().out)["artifacts"]["shouts"]["url"]
    assert Path(url, "out.txt").read_text() == "ABC" * again


def test_a_config_file_lies_between_preset_and_overrides(argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("shouts: {again: 5}")
    assert main([*argv, "--preset", "full", "--config", str(tmp_path / "config.yaml"), "--json"]) == 0
    first = json.loads(capsys.readouterr().out)["artifacts"]["shouts"]
    assert Path(first["url"], "out.txt").read_text() == "ABC" * 5
    manifest = json.loads(Path(first["url"], "artifact.json").read_text())
    assert manifest["command"].endswith(f"--preset full --config {tmp_path / 'config.yaml'}")
    assert "--workers" not in manifest["command"]


def test_a_mistake_of_the_user_is_one_line_and_exit_2(argv: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([*argv, "shouts.fail=user"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "raymill: shouts.fail=user was asked for; choose another\n")
    assert not (tmp_path / "store").exists()


def test_a_mistake_of_ours_is_one_line_with_the_place_of_the_traceback(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*argv, "shouts.fail=ours"]) == 1
    out, err = capsys.readouterr()
    log = re.fullmatch(r"raymill: KeyError: 'a mistake of ours'; details in (\S+)\n", err)
    assert log is not None
    assert "Traceback" in Path(log[1]).read_text()
    assert out == ""
    assert main([*argv, "shouts.fail=ours", "--verbose"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_failure_in_json_is_an_object_too(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*argv, "shouts.fail=user", "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": "shouts.fail=user was asked for; choose another", "exit": 2}
    assert err.count("\n") == 1


def test_an_interrupted_run_exits_130(argv: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "run", interrupt)
    assert main(argv) == 130
    assert "goes on where it stopped" in capsys.readouterr().err


def test_every_command_has_help_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    groups = [(("",), app), *(((f"{group.name} ",), group.typer_instance) for group in app.registered_groups)]
    commands = [before + (info.name or info.callback.__name__) for (before,), each in groups for info in each.registered_commands]
    assert {command for command in commands if " " not in command} == set(COMMANDS)
    for command in commands:
        assert main([*command.split(), "--help"]) == 0
        text = capsys.readouterr().out
        assert re.search(rf"^ +raymill {command} \S|^ +raymill {command}$", text, re.MULTILINE), command
        assert "--json" in text
    assert main([]) == 0
    assert "raymill run tokens" in capsys.readouterr().out


def test_list_knows_families_pipelines_and_artifacts(argv: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(argv) == 0
    capsys.readouterr()
    assert main(["list", "--store", str(tmp_path / "store"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {"vqvae", "vqgan", "prior", "classifier"} <= set(answer["families"])
    assert answer["pipelines"]["shouts"] == "for tests"
    assert [artifact["name"].split("-")[0] for artifact in answer["artifacts"]] == ["shouts"]


def test_neither_list_nor_a_run_with_nothing_to_do_imports_ray(argv: list[str], tmp_path: Path) -> None:
    program = f"""
import sys
from pipelines.cli import main
assert main(["list", "--store", {str(tmp_path)!r}]) == 0
from pipelines.settings import configure
from pipelines.source import SourceReader
from pipelines.store import Store
from pipelines.tokens import TOKENS
config = configure(TOKENS.config(data={argv[2].removeprefix("data=")!r}), TOKENS.presets["quick"], "quick", None, [])
assert len(TOKENS.plan(config, SourceReader(Store({str(tmp_path)!r})))) == 8
assert not [name for name in sys.modules if name == "ray" or name.startswith("ray.")]
assert "matplotlib" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


@pytest.mark.parametrize("preset", ["quick", "base", "full"])
@pytest.mark.parametrize("pipeline", [TOKENS, FACES])
def test_every_preset_of_the_shipped_pipelines_is_a_valid_config(pipeline: Pipeline, preset: str) -> None:
    config = configure(pipeline.config(), pipeline.presets[preset], preset, None, [])
    again = pipeline.config.parse(config.to_json(), "JSON")
    assert again == config


def test_every_family_has_presets() -> None:
    assert {name.partition(".")[0] for name in read_presets("families")} == set(FAMILIES)


def test_a_training_section_takes_its_familys_preset_and_changes_family_whole() -> None:
    quick = configure(TokensConfig(), TOKENS.presets["quick"], "quick", None, [])
    assert quick.tokenizer.to_json()["train"]["steps"] == family_preset(quick.tokenizer.family, "quick")["train"]["steps"]
    other = configure(TokensConfig(), TOKENS.presets["quick"], "quick", None, ["tokenizer.model.num_codes=256", "tokenizer.family=vqvae"])
    assert type(other.tokenizer.model).__name__ == "VQVAEConfig"
    assert other.tokenizer.train.steps == family_preset("vqvae", "quick")["train"]["steps"]


@pytest.mark.parametrize("preset", ["quick", "base", "full"])
@pytest.mark.parametrize("name", [name for name in read_presets("families") if "." in name])
def test_presets_of_kinds_are_settings(name: str, preset: str) -> None:
    family, _, kind = name.partition(".")
    config = configure(Training(family=family), family_preset(family, preset), preset, None, [f"model.network.kind={kind}"])
    assert config.to_json()["model"]["network"]["kind"] == kind
    assert config.train.steps == family_preset(name, preset)["train"]["steps"]


def test_another_kind_of_network_brings_its_own_preset(tmp_path: Path) -> None:
    """From the command line and from a file; what either says besides lies over it, and without a preset there is nothing to bring."""
    presets, family = read_presets("families"), Training(family="autoregressive")
    own, made = (presets[name]["quick"]["train"] for name in ("autoregressive", "autoregressive.made"))
    assert own["batch_size"] != made["batch_size"]
    values = family_preset("autoregressive", "quick")
    assert configure(family, values, "quick", None, []).train.batch_size == own["batch_size"]
    chosen = configure(family, values, "quick", None, ["train.log_every=7", "model.network.kind=made", "model.network.hidden=[5]"])
    assert (chosen.train.batch_size, chosen.train.log_every, chosen.model.to_json()["network"]["hidden"]) == (made["batch_size"], 7, [5])
    file = tmp_path / "config.yaml"
    file.write_text("{train: {log_every: 7}, model: {network: {kind: made, hidden: [5]}}}")
    assert configure(family, values, "quick", str(file), []) == chosen
    plain = configure(family, {}, None, None, ["model.network.kind=made"])
    assert plain.train == Training(family="autoregressive").train
    pipeline = catalogue.find_pipeline("model")
    section = configure(
        pipeline.config(), pipeline.presets["quick"], "quick", None, ["model.family=autoregressive", "model.model.network.kind=made"]
    )
    assert section.to_json()["model"]["train"]["batch_size"] == made["batch_size"]


@pytest.mark.parametrize(
    ("assignments", "problem"),
    [
        (["tokenizer.model.num_codes=512"], "num_codes=512 and prior.model.code_count=256 differ"),
        (["tokenizer.family=prior"], "tokenizer.family=prior cannot do that stage's work; choose vqvae or vqgan"),
        (["tokenizer.family=vqgn"], "unknown family 'vqgn'; did you mean 'vqgan'"),
        (["prior.model.layer=3"], "unknown key 'prior.model.layer'; did you mean 'layers'"),
        (["samples.sampler.label=3"], "the pipeline draws every class"),
    ],
)
def test_sections_that_do_not_go_together_are_refused_before_anything_runs(assignments: list[str], problem: str) -> None:
    with pytest.raises(UserError, match=re.escape(problem)):
        configure(TokensConfig(), TOKENS.presets["quick"], "quick", None, assignments)


def test_an_unknown_key_in_a_file_gets_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: {num_coeds: 3}")
    with pytest.raises(UserError, match="unknown key 'num_coeds'; did you mean 'num_codes'"):
        configure(Training(family="vqvae"), {}, None, str(tmp_path / "config.yaml"), [])


def test_presets_are_named_once() -> None:
    assert take_preset(None, ["a=1"]) == (None, ["a=1"])
    assert take_preset("full", ["preset=full", "a=1"]) == ("full", ["a=1"])
    with pytest.raises(UserError, match="full and quick are both asked for"):
        take_preset("full", ["preset=quick"])
    with pytest.raises(UserError, match="unknown preset 'ful'; did you mean 'full'"):
        take_preset("ful", [])


def test_lines_come_now_and_then_and_say_rate_and_time_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("pipelines.console.time.monotonic", lambda: now[0])
    console = Console()
    console.begins("tokenizer")
    for step in range(1, 61):
        now[0] += 1.0
        console.reports(
            "tokenizer", {"step": step, "steps": 100, "mse": 1.0, "loss.autoencoder": 0.25, "loss.rival": 2.0, "samples_per_second": 128.0}
        )
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "tokenizer: 21 of 100 (21%), loss 0.25, 128 samples/s, 1 min 19 s left",
        "tokenizer: 42 of 100 (42%), loss 0.25, 128 samples/s, 58 s left",
    ]


def test_a_quiet_console_says_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.console.LINE_SECONDS", -1.0)
    console = Console(quiet=True)
    console.begins("x")
    console.reports("x", {"step": 1})
    console.waits("x", "process 1")
    assert capsys.readouterr().err == ""


def test_pace_needs_two_steps_to_tell_the_time_left() -> None:
    pace = Pace()
    assert pace.place() == "under way"
    pace.see({"step": 5})
    assert (pace.place(), pace.seconds_left()) == ("5", None)


def test_a_waiting_run_says_for_whom(capsys: pytest.CaptureFixture[str]) -> None:
    Console().waits("prior", "process 7 on here")
    assert capsys.readouterr().err == "prior: process 7 on here is making it; waiting\n"


def test_an_artifact_says_when_it_asks_for_a_file_that_is_not_there(
    argv: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(argv) == 0
    from pipelines.store import Store

    artifact: Artifact = Store(str(tmp_path / "store")).resolve("shouts")
    with pytest.raises(AssertionError, match="holds no nothing"):
        artifact.path("nothing")
