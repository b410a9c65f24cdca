"""Planted fake secrets against real commands: none of them is in anything that Raymill writes or says, whether a command ends well or not.

What Ray itself keeps of them is searched in `tests/clusters/test_access.py`.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import gzip
import io
import json
import logging
import shutil
import tempfile
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from clusters.code_package import staged
from clusters.metrics import MetricsHub, serve_metrics
from components import storage
from components.training.record import read_metrics
from pipelines import training
from pipelines.cli import main
from pipelines.console import Console
from pipelines.store import Store
from pipelines.watching import JOB, Watched
from tests.pipelines.schedule.retraining_world import STEPS, add_pictures
from tests.pipelines.schedule.retraining_world import TINY as TINY_RUN
from tests.pipelines.world import LOCAL, TINY, TRAIN, write_folders
from tests.planted import Planted
from tests.s3 import BUCKET, S3Server

ROOT = Path(__file__).parent.parent
VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_PASSWORD", "WANDB_API_KEY")
PLAIN = ("AWS_ACCESS_KEY_ID", "MLFLOW_TRACKING_USERNAME")
PROFILE_ID, PROFILE_SECRET = "key id of a profile", "secret of a profile"
PASSWORD, USER, SIGNATURE = "password of a URL", "user of a URL", "signature of a URL"
GONE = "127.0.0.1:1"  # nothing answers there
RATE = ("--vary", "train.optimizer.lr=log: [1e-4, 1e-1]")


@dataclass
class World:
    """Where the commands work, and all that they have said."""

    root: Path
    planted: Planted
    s3: str
    said: dict[str, str] = field(default_factory=dict)  # command -> stdout and stderr

    def run(self, *argv: str, expected: int = 0) -> str:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(list(argv))
        said = out.getvalue() + err.getvalue()
        self.said[" ".join(argv)] = said
        assert code == expected, f"{' '.join(argv)}\n{said}"
        return said

    def crash(self, *arguments: object, **named: object) -> None:
        """Fails as a library might, with secrets in its message and in its warning."""
        text = f"{self.planted['WANDB_API_KEY']} {self.planted['AWS_SECRET_ACCESS_KEY']} at https://{self.url}host/x"
        logging.getLogger("library").warning("cannot use %s", text)
        raise RuntimeError(text)

    @property
    def url(self) -> str:
        """User and password as they begin a URL."""
        return f"{self.planted[USER]}:{self.planted[PASSWORD]}@"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Everything has been run: with credentials in the environment or a profile, well and badly."""
    root = tmp_path_factory.mktemp("secrets")
    planted = Planted(*VARIABLES, PROFILE_SECRET, in_urls=(*PLAIN, PROFILE_ID, PASSWORD, USER, SIGNATURE))
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.environment |= {name: planted[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    with pytest.MonkeyPatch.context() as patch:
        for name in (*VARIABLES, *PLAIN):
            patch.setenv(name, planted[name])
        for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "MLFLOW_TRACKING_URI", "RAYMILL_STORE"):
            patch.delenv(name, raising=False)
        for name, value in {**server.environment, "RAYMILL_STORAGE_PATIENCE": "0.1"}.items():
            patch.setenv(name, value)
        patch.chdir(root)
        (root / "temporary").mkdir()
        patch.setattr(tempfile, "tempdir", str(root / "temporary"))
        server.start()
        server.make_bucket(BUCKET)
        made = World(root, planted, f"s3://{BUCKET}/secrets")
        try:
            _run_well(made)
            _run_on_s3(made)
            _run_a_schedule(made)
            _run_badly(made, patch)
            _fail_on_s3(made, patch)
            yield made
        finally:
            server.stop()


def _run_well(world: World) -> None:
    write_folders(world.root / "pictures")
    world.run("prepare", "pictures", "data", *LOCAL)
    world.run("train", "classifier", "data", *TINY["classifier"], *TRAIN, "--track", "store", "--verbose")
    world.run("train", "vqvae", "data", *TINY["vqvae"], *TRAIN, "--json")
    world.run("sweep", "classifier", "data", *TINY["classifier"], *TRAIN, "--trials", "2", *RATE)
    world.run("run", "model", "data=pictures", "model.model.widths=[4]", "model.model.feature_dim=4", "model.train.steps=60", *LOCAL)
    world.run("evaluate", "classifier", "data")
    world.run("report", "sweep", "--out", "sweep.html")
    world.run("register", "digits", "classifier")
    world.run("promote", "digits", "1", "--reason", f"better than http://{world.url}host/?X-Amz-Signature={world.planted[SIGNATURE]}")
    world.run("models", "digits", "--json")
    world.run("list", "--json")


def _run_on_s3(world: World) -> None:
    world.run("prepare", "pictures", f"{world.s3}/data", *LOCAL)
    argv = ["train", "classifier", f"{world.s3}/data", *TINY["classifier"], *TRAIN, "--store", f"{world.s3}/store"]
    world.run(*argv, "--track", f"sqlite:///{world.root}/mlflow-of-s3.db")
    world.run("report", "classifier", "--store", f"{world.s3}/store", "--out", f"{world.s3}/page.html")
    world.run("verify", "classifier", "--store", f"{world.s3}/store")
    (world.root / "credentials").write_text(
        f"[raymill]\naws_access_key_id = {world.planted['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key = {world.planted['AWS_SECRET_ACCESS_KEY']}\n"
        f"[other]\naws_access_key_id = {world.planted[PROFILE_ID]}\naws_secret_access_key = {world.planted[PROFILE_SECRET]}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(world.root / "credentials"))
        patch.setenv("AWS_PROFILE", "raymill")
        world.run("list", "--store", f"{world.s3}/store", "--verbose")
        patch.setenv("AWS_PROFILE", "other")
        assert "403" in world.run("list", "--store", f"{world.s3}/store", "--verbose", expected=2)
        patch.setenv("AWS_PROFILE", "none-such")
        world.run("list", "--store", f"{world.s3}/store", "--verbose", expected=2)
    (world.root / "credentials").unlink()


def _run_a_schedule(world: World) -> None:
    add_pictures(world.root / "daily", 0, 60)
    values = {
        "name": "nightly",
        "source": "daily",
        "set": {**TINY_RUN, STEPS: 3},
        "workers": 0,
        "trigger": {"new_data": True},
        "gate": {"block_rows": 4},
    }
    for name, more in (("nightly", {}), ("leaking", {"tracking": f"http://{world.url}{GONE}"})):
        (world.root / "schedule.yaml").write_text(yaml.safe_dump(values | {"name": name} | more))
        world.run("schedule", "add", "schedule.yaml", expected=2 if more else 0)
    (world.root / "schedule.yaml").unlink()
    world.run("schedule", "run", "nightly", "--run-id", "first")
    world.run("schedule", "page", "nightly")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.schedule.retrain.retrain", world.crash)
        world.run("schedule", "run", "nightly", "--run-id", "second", expected=1)
    world.run("schedule", "show", "nightly", "--json")
    shutil.copy(ROOT / "clusters/examples/cpu/cluster.yaml", world.root / "cluster.yaml")
    world.run("cluster", "render", "cluster.yaml", "--", "run", "tokens", f"data={world.s3}/pictures")


def _run_badly(world: World, patch: pytest.MonkeyPatch) -> None:
    signed = f"https://host/x.npz?X-Amz-Credential=a&X-Amz-Signature={world.planted[SIGNATURE]}"
    sums = "images.checksums={x.npz: " + "0" * 64 + "}"
    for url in (f"https://{world.url}{GONE}/x.npz", f"s3://{world.url}bucket/pictures", signed):
        for options in ((), ("--verbose",), ("--json",)):
            world.run("run", "model", f"data={url}", sums, *LOCAL, *options, expected=2)
        world.run("train", "classifier", url, *TRAIN, expected=2)
        world.run("prepare", url, "out", sums.removeprefix("images."), *LOCAL, expected=2)
        world.run("submit", "--cluster", f"http://{GONE}", "--", "run", "model", f"data={url}", expected=2)
        world.run("cluster", "render", "cluster.yaml", "--", "run", "model", f"data={url}", expected=2)
    for place in (f"s3://{world.url}bucket/store", f"ftp://{world.url}host/store"):
        world.run("list", "--store", place, "--verbose", expected=2)
        world.run("report", "classifier", "--out", place, expected=2)
    for name in ("WANDB_API_KEY", f"A={world.planted['RAY_AUTH_TOKEN']}", f"A=http://{world.url}host"):
        world.run("submit", "--cluster", f"http://{GONE}", "--env", name, "--", "list", expected=2)
    world.run("submit", "--cluster", f"http://{world.url}{GONE}", "--", "list", expected=2)
    world.run("jobs", "--cluster", f"http://{world.url}{GONE}", expected=2)
    patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    world.run("models", "--track", f"http://{world.url}{GONE}", "--verbose", expected=2)
    patch.setenv("MLFLOW_TRACKING_URI", f"http://{world.url}{GONE}")
    argv = ("train", "classifier", "data", *TINY["classifier"], *TRAIN, "train.seed=4", "--verbose")
    world.run(*argv)  # training is worth more than its log
    patch.delenv("MLFLOW_TRACKING_URI")
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(training, "train_model", world.crash)
        for options in ((), ("--json", "--verbose")):
            world.run("train", "classifier", "data", *TRAIN, "train.seed=5", *options, expected=1)


def _fail_on_s3(world: World, patch: pytest.MonkeyPatch) -> None:
    argv = ("list", "--store", f"{world.s3}/store", "--verbose")
    for name, other in (("AWS_SECRET_ACCESS_KEY", PROFILE_SECRET), ("AWS_ACCESS_KEY_ID", PROFILE_ID)):
        with pytest.MonkeyPatch.context() as wrong:
            wrong.setenv(name, world.planted[other])
            assert "403" in world.run(*argv, expected=2)
    with pytest.MonkeyPatch.context() as wrong:
        wrong.setenv("AWS_SESSION_TOKEN", world.planted["AWS_SESSION_TOKEN"])
        wrong.setenv("AWS_ENDPOINT_URL_S3", f"http://{GONE}")
        world.run(*argv, expected=2)
        wrong.setenv("AWS_ENDPOINT_URL_S3", f"http://{world.url}{GONE}")
        world.run(*argv, expected=2)
        world.run("prepare", "pictures", f"{world.s3}/elsewhere", *LOCAL, expected=2)


def test_no_file_holds_a_secret(world: World) -> None:
    for name in ("store/artifacts", "store/mlflow.db", "store/schedules/nightly/runs/first", "data", "manifests/rayjob.yaml", "sweep.html"):
        assert (world.root / name).exists(), name
    assert list((world.root / "temporary").rglob("*.log")), "the crashes and the warnings are in log files"
    assert world.planted.found_below(world.root) == {}


def test_no_object_holds_a_secret(world: World) -> None:
    objects = storage.list_files(f"s3://{BUCKET}")
    assert len(objects) >= 8
    assert any(name.endswith("/artifact.json") for name in objects)
    for name in objects:
        assert world.planted.found(name) == world.planted.found(storage.read_bytes(f"s3://{BUCKET}/{name}")) == set(), name


def test_no_command_says_a_secret(world: World) -> None:
    assert len(world.said) > 50
    assert {said: world.planted.found(text) for said, text in world.said.items() if world.planted.found(text)} == {}


def test_the_place_of_a_secret_is_told(world: World) -> None:
    """What is hidden is the secret alone: the rest of the message says what to do."""
    said = next(text for command, text in world.said.items() if command.startswith(f"list --store s3://{world.url}"))
    assert said.startswith("raymill: storage: 's3://bucket/store' was given with credentials; set AWS_ACCESS_KEY_ID and ")
    said = next(text for command, text in world.said.items() if command.endswith("train.seed=5"))
    assert said.startswith("raymill: RuntimeError: <WANDB_API_KEY> <AWS_SECRET_ACCESS_KEY> at https://host/x; details in ")
    log = Path(said.strip().rpartition(" ")[2]).read_text()
    assert "WARNING library: cannot use <WANDB_API_KEY>" in log
    assert "in crash" in log


def test_the_code_package_holds_no_secret(world: World) -> None:
    planted = world.root / "checkout"
    for folder in ("components", "clusters", "pipelines"):
        (planted / folder).mkdir(parents=True)
        for name in (".env", "credentials", "key.pem", "notes.txt", "mlruns.db"):
            (planted / folder / name).write_text(world.planted["WANDB_API_KEY"])
    shutil.copy(ROOT / "pyproject.toml", planted)
    (planted / "pipelines/cli.py").write_text("")
    with staged(planted) as folders:
        assert world.planted.found_below(Path(folders[0]).parent) == {}
    shutil.rmtree(planted)


def test_metrics_hold_no_secret(world: World) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(JOB, json.dumps({"metadata": {"job_submission_id": "nightly"}}))
        watched, artifact = Watched(Console(quiet=True), "train"), Store("store").resolve("classifier")
    watched.begins("classifier")
    for row in read_metrics(artifact.url):
        watched.reports("classifier", row)
    hub = MetricsHub()
    hub.run_json(watched.state().model_dump_json())
    with serve_metrics(hub, port=0) as url, urllib.request.urlopen(url) as answer:
        text = answer.read()
    assert b'run="nightly"' in text
    assert world.planted.found(text) == set()


@pytest.mark.parametrize(
    "write",
    [
        lambda secret: secret.encode(),
        lambda secret: f"x={urllib.parse.quote(secret, safe='')}&y".encode(),
        lambda secret: json.dumps({"a": f"b{secret}"}).encode(),
        lambda secret: base64.b64encode(f"user:{secret}".encode()),
        lambda secret: base64.urlsafe_b64encode(f"anna:{secret}".encode()),
        lambda secret: secret.encode().hex().encode(),
        lambda secret: gzip.compress(secret.encode()),
        lambda secret: _zipped(secret),
    ],
)
def test_the_search_finds_what_is_there(world: World, tmp_path: Path, write) -> None:
    (tmp_path / ".below").mkdir()
    (tmp_path / ".below" / "file").write_bytes(write(world.planted["RAY_AUTH_TOKEN"]))
    assert world.planted.found_below(tmp_path) == {str(tmp_path / ".below" / "file"): {"RAY_AUTH_TOKEN"}}


def _zipped(text: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inside", text)
    return buffer.getvalue()


UNPICKLING = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}  # modules that run what they load
ALLOWED = {"components/faces/weights.py": {"torch.load"}}  # weights_only=True, of a wheel whose checksum is known


def test_nothing_from_outside_is_unpickled_or_run() -> None:
    """Calls that make objects or code of bytes, by file; NumPy refuses pickles by itself since 1.16."""
    found: dict[str, set[str]] = {}
    for folder in ("components", "clusters", "pipelines"):
        for file in (ROOT / folder).rglob("*.py"):
            if names := set(_risky(ast.parse(file.read_text()))):
                found[str(file.relative_to(ROOT))] = names
    assert found == ALLOWED
    assert set(_risky(ast.parse("import pickle\nfrom joblib import load\nyaml.load(x)\neval(y)\nnp.load(z, allow_pickle=True)"))) == {
        *("pickle", "joblib", "yaml.load", "eval", "allow_pickle")
    }


def _risky(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from ({name.split(".")[0] for name in names} & UNPICKLING)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            yield from ({called} & {"torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec", "pandas.read_pickle"})
            yield from (key.arg for key in node.keywords if key.arg == "allow_pickle" and ast.unparse(key.value) != "False")
