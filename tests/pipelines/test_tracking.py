"""Models as MLflow runs, in a real SQLite database: what they hold, once each, whatever is killed or down, without secrets or chatter."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from components.errors import UserError
from components.redaction import redacted
from pipelines.cli import main
from pipelines.store import Recipe, Store
from pipelines.tracking import Tracker, Tracking, log_lineage
from pipelines.tracking_server import connect, tracking_url
from tests.pipelines.mlflow_state import Killed, copied_world, copy_database, kill_after, publish, runs_of
from tests.pipelines.world import LOCAL, TINY, TRAIN, png, require_one_line
from tests.small_data import shipped_images

ROOT = Path(__file__).parents[2]
SWEEP = ("sweep", "classifier", "{data}", *TINY["classifier"], "train.steps=3", "train.batch_size=16", *LOCAL, "--trials", "2")
RATE = ("--vary", "train.optimizer.lr=log: [1e-4, 1e-1]")


@pytest.fixture
def store(first_world: Path, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return copied_world(first_world, database, tmp_path)


def url_of(store: Store) -> str:
    return tracking_url(None, store)


def test_a_run_holds_settings_curves_scores_data_and_lineage(store: Store) -> None:
    prior = store.resolve("prior")
    runs = log_lineage(store, prior)
    found = runs_of(url_of(store))
    assert list(found) == list(runs) == [prior.name]
    run, told = found[prior.name], json.loads(Path(prior.path("run.json")).read_text())
    assert (run["experiment"], run["status"], run["name"]) == ("prior", "FINISHED", prior.name)
    assert run["params"]["train.optimizer.lr"] == str(told["job"]["train"]["optimizer"]["lr"])
    assert run["params"]["model.layers"] == "1"
    assert run["params"]["model.code_count"] == "16"
    rows = [json.loads(line) for file in sorted(Path(prior.url, "metrics").iterdir()) for line in file.read_text().splitlines()]
    for name in ("loss.prior", "bits_per_code", "samples_per_second"):
        assert [(step, value) for step, value, _ in run["curves"][name]] == [(row["step"], row[name]) for row in rows if name in row]
    started, ended = run["times"]
    assert (ended - started) / 1000 == pytest.approx(prior.manifest.seconds, abs=0.01)
    for _, _, time in run["curves"]["loss.prior"]:
        assert started <= time <= ended
    assert [value for _, value, _ in run["curves"]["score.bits_per_code"]] == [told["scores"]["bits_per_code"]]
    tags = {name.removeprefix("raymill."): value for name, value in run["tags"].items()}
    assert (tags["fingerprint"], tags["artifact"], tags["url"]) == (prior.fingerprint, prior.name, prior.url)
    assert tags["input.data"] == tags["data_fingerprint"] == prior.manifest.inputs["data"]
    assert tags["command"] == prior.manifest.command
    assert {"version.raymill", "version.ray", "version.torch"} <= set(tags)
    assert run["data"] == [("codes", prior.manifest.inputs["data"], json.dumps({"url": told["job"]["data"]}))]
    assert run["files"] == ["scores.json"]


def test_training_with_track_logs_once_and_says_nothing_more(
    root: Path, database: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    argv = ["train", "classifier", str(root / "data"), *TINY["classifier"], *TRAIN, "train.seed=5", "--track", "store"]
    capfd.readouterr()
    assert main(argv) == 0
    out, err = capfd.readouterr()
    assert re.fullmatch(r"classifier: made in \d+\.\d s, classifier-[0-9a-f]{16}\n", err)
    name = out.partition(":")[0]
    url = f"sqlite:///{root / 'store' / 'mlflow.db'}"
    first = runs_of(url)
    assert list(first) == [name]
    assert main(argv) == 0
    assert runs_of(url) == first
    assert {path.name for path in tmp_path.iterdir()} == {"world", "runs"}, "MLflow leaves nothing where the command runs"


def test_every_trial_of_a_sweep_is_a_run(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main([word.replace("{data}", str(root / "data")) for word in (*SWEEP, *RATE, "--track", "store", "--json")]) == 0
    answer = json.loads(capsys.readouterr().out)
    found = runs_of(f"sqlite:///{root / 'store' / 'mlflow.db'}")
    assert set(found) == {trial["artifact"] for trial in answer["trials"]}
    rates = {float(run["params"]["train.optimizer.lr"]) for run in found.values()}
    assert rates == {trial["values"]["train.optimizer.lr"] for trial in answer["trials"]}


def test_pictures_lie_in_the_runs_of_the_models_they_show(store: Store) -> None:
    prior = store.resolve("prior")
    images, _ = shipped_images("train", 1)
    recipe = Recipe(stage="samples", version=1, config={}, inputs={"prior": prior.fingerprint, "codes": "0" * 16})
    drawn = publish(store, recipe, {"samples.png": png(images[0, 0]), "more/of.png": png(images[0, 0]), "samples.safetensors": b"x"})
    log_lineage(store, drawn)
    expected = sorted([f"{drawn.name}/samples.png", f"{drawn.name}/more/of.png", "scores.json"])
    assert runs_of(url_of(store))[prior.name]["files"] == expected
    logged = list(Path(store.place("mlflow")).rglob("samples.png"))
    assert [file.read_bytes() for file in logged] == [Path(drawn.path("samples.png")).read_bytes()]


def test_an_artifact_without_models_is_refused(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    made = publish(store, Recipe(stage="words", version=1, config={}, inputs={}), {"words.txt": b"x"})
    argv = ["track", made.name, "--store", store.url, "--track", "store"]
    require_one_line(argv, (f"artifact {made.name} holds no model", "raymill train"), capsys)


def test_killed_after_any_call_it_is_completed_and_never_doubled(
    store: Store, database: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    vqvae, url = store.resolve("vqvae"), f"sqlite:///{tmp_path / 'played.db'}"

    def logged(last: int) -> tuple[dict[str, Any], int]:
        copy_database(database, tmp_path / "played.db")
        with monkeypatch.context() as patch:
            patch.setattr("pipelines.tracking.METRICS_AT_ONCE", 7)
            calls = kill_after(patch, last)
            try:
                Tracking(url, store).log_model(vqvae)
            except Killed:
                patch.undo()
                assert runs_of(url).get(vqvae.name, {}).get("status") in (None, "RUNNING", "FINISHED")
                Tracking(url, store).log_model(vqvae)
            return runs_of(url), calls()

    whole, calls = logged(0)
    assert calls > 8
    for last in range(1, calls + 1):
        assert logged(last)[0] == whole, f"killed after call {last}"


def test_a_server_that_is_down_is_told_in_one_line_and_the_model_is_made(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers there
        url = f"http://anna:planted-password@127.0.0.1:{listener.getsockname()[1]}"
        capsys.readouterr()
        assert main(["train", "classifier", str(root / "data"), *TINY["classifier"], *TRAIN, "train.seed=6", "--track", url]) == 0
    out, err = capsys.readouterr()
    name = out.partition(":")[0]
    assert err.splitlines()[-1].startswith(f"raymill: not logged: {name} (MLflow at http://127.0.0.1")
    assert f"raymill track {name} --track http://127.0.0.1" in err
    assert "planted" not in out + err
    assert main(["track", name, "--track", "store"]) == 0
    assert set(runs_of(f"sqlite:///{root / 'store' / 'mlflow.db'}")) == {name}


def test_what_waits_for_a_server_goes_when_it_is_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        begins = reports = waits = ends = lambda self, *arguments: None

    calls: list[str] = []
    log = Tracking.log

    def sometimes(self: Tracking, artifact: Any) -> dict[str, str]:
        calls.append(artifact.manifest.stage)
        if len(calls) == 1:
            raise UserError("down")
        return log(self, artifact)

    monkeypatch.setattr(Tracking, "log", sometimes)
    tracker = Tracker(Silent(), store)
    for stage in ("vqvae", "prior"):
        tracker.ends(stage, store.resolve(stage), True)
    assert tracker.close() is None
    assert calls == ["vqvae", "vqvae", "prior"]
    assert len(runs_of(url_of(store))) == 2


def test_processes_that_log_at_once_make_no_double(store: Store, database: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'fresh' / 'mlflow.db'}"  # which all of them want to make
    program = [sys.executable, "-m", "pipelines.cli", "track", "--store", store.url, "--track", url]
    processes = [subprocess.Popen([*program, name], cwd=ROOT, stderr=subprocess.PIPE) for name in ("vqvae", "vqvae", "prior")]
    problems = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], problems
    found = runs_of(url)
    assert {run["experiment"] for run in found.values()} == {"vqvae", "prior"}
    assert all(run["status"] == "FINISHED" for run in found.values())
    assert {path.name for path in (tmp_path / "fresh").iterdir()} == {"mlflow.db", "mlflow"}


def test_no_secret_gets_into_mlflow(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "SOME_OTHER_VARIABLE"):
        monkeypatch.setenv(name, f"planted-{name}")
    place = Path(store.resolve("vqvae").url)
    manifest = json.loads((place / "artifact.json").read_text())
    manifest["command"] += " --with x=https://anna:planted-1@host/x?X-Amz-Signature=planted-2 planted-AWS_SECRET_ACCESS_KEY"
    manifest["sources"] = {"data": "https://anna:planted-3@host/data"}
    (place / "artifact.json").write_text(json.dumps(manifest))
    run = json.loads((place / "run.json").read_text())
    run["job"]["data"] = "https://anna:planted-4@host/data"
    run["config"]["weights"] = "https://anna:planted-5@host/planted-RAY_AUTH_TOKEN"
    (place / "run.json").write_text(json.dumps(run))
    log_lineage(store, store.resolve("vqvae"))
    tags = runs_of(url_of(store))[store.resolve("vqvae").name]["tags"]
    assert "https://host/x?X-Amz-Signature=<hidden> <AWS_SECRET_ACCESS_KEY>" in tags["raymill.command"]
    files = [Path(store.place("mlflow.db")), *(file for file in Path(store.place("mlflow")).rglob("*") if file.is_file())]
    assert len(files) > 1
    for file in files:
        assert b"planted" not in file.read_bytes(), file


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("http://user:password@host:5000/x", "http://host:5000/x"),
        ("see https://h/a?sig=abc&x=1 and mail@host", "see https://h/a?sig=<hidden>&x=1 and mail@host"),
        ("https://h/a?access_token=abc", "https://h/a?access_token=<hidden>"),
        ("model.num_codes=512 token=3", "model.num_codes=512 token=3"),
    ],
)
def test_redaction(text: str, clean: str) -> None:
    assert redacted(text) == clean


def test_neither_network_nor_chatter(store: Store) -> None:
    program = f"""
import socket, sys
def refuse(self, address, *rest):
    raise AssertionError(f"connects to {{address}}")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = refuse
from pipelines.cli import main
sys.exit(main(["track", "vqvae", "--store", {store.url!r}, "--track", {f"sqlite:///{store.url}/other.db"!r}, "--verbose"]))
"""
    ours = ("PYTEST_CURRENT_TEST", "CI", "GITHUB_ACTIONS")  # with any of these MLflow's telemetry is off by itself
    environment = {name: value for name, value in os.environ.items() if name not in ours and not name.startswith("MLFLOW_")}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 model in sqlite:///")
    assert done.stderr == ""


def test_without_mlflow_everything_else_works_and_tracking_says_what_to_install(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name == "mlflow" or name.startswith("mlflow.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mlflow", None)  # type: ignore[arg-type]  # an import of it fails
    train = ["train", "classifier", str(root / "data"), *TINY["classifier"], *TRAIN, "train.seed=7"]
    says = ("MLflow", "pip install 'raymill[tracking]'")
    before = len(Store(str(root / "store")).artifacts())
    for argv in ([*train, "--track", "store"], ["track", "vqvae"], ["models"], ["evaluate", "models:/digits@champion", str(root / "data")]):
        require_one_line(argv, says, capsys)
    assert len(Store(str(root / "store")).artifacts()) == before, "told before anything is trained"
    assert main(train) == 0


def test_nothing_imports_mlflow_before_it_is_needed() -> None:
    modules = "pipelines.cli, pipelines.tracking, pipelines.registry, pipelines.registry_commands, pipelines.training"
    code = f"import sys, {modules}; print('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_database_that_was_killed_in_the_making_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda self, to: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            connect(url)
    assert not (tmp_path / "mlflow.db").exists()
    assert [path.suffix for path in tmp_path.iterdir()] == [".unfinished"]
    assert connect(url).search_runs(["0"]) == []
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


@pytest.mark.parametrize(
    ("given", "variable", "store", "expected"),
    [
        (None, None, "/a b/ö", "sqlite:////a b/ö/mlflow.db"),
        ("store", "http://other", "/s", "sqlite:////s/mlflow.db"),
        (None, "http://h:5000/", "s3://bucket/store", "http://h:5000"),
        ("https://h", "http://other", "/s", "https://h"),
        ("sqlite:////d/x.db", None, "s3://bucket/store", "sqlite:////d/x.db"),
        (None, None, "s3://bucket/store", "give --track (or MLFLOW_TRACKING_URI) the URL of an MLflow server"),
        ("mlflow.db", None, "/s", "--track 'mlflow.db' is no MLflow server"),
        ("postgresql://anna:planted@h/x", None, "/s", "--track 'postgresql://h/x' is no MLflow server"),
    ],
)
def test_which_url_is_meant(given: str | None, variable: str | None, store: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if variable is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    if expected.startswith(("sqlite", "http")):
        assert tracking_url(given, Store(store)) == expected
    else:
        with pytest.raises(UserError, match=re.escape(expected)):
            tracking_url(given, Store(store))


def test_a_relative_database_is_in_the_working_folder_and_odd_names_work(store: Store, tmp_path: Path) -> None:
    log_lineage(Store(store.url, tracking="sqlite:///my runs/ö.db"), store.resolve("vqvae"))
    assert len(runs_of(f"sqlite:///{tmp_path}/my runs/ö.db")) == 1
    assert list((tmp_path / "my runs" / "mlflow").rglob("scores.json"))
