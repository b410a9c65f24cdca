"""Registered models in a real MLflow: versions, the champion and its history, kills between any two calls, the commands, a real server."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from components import storage
from components.errors import UserError
from components.families.model_folder import COMMIT
from pipelines.cli import main
from pipelines.registry import Promotion, Registry
from pipelines.store import Store
from pipelines.tracking_server import connect
from pipelines.training import find_model
from tests.pipelines.mlflow_state import Killed, copied_world, copy_database, kill_after, runs_of
from tests.pipelines.world import require_one_line

START_SECONDS = 120


@pytest.fixture
def store(first_world: Path, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    store = copied_world(first_world, database, tmp_path)
    monkeypatch.setenv("RAYMILL_STORE", store.url)
    return store


@pytest.fixture
def three(store: Store) -> Registry:
    """Three versions of `digits`: classifier, vqvae, prior; the families do not matter here."""
    registry = Registry(None, store)
    for stage in ("classifier", "vqvae", "prior"):
        registry.register("digits", store.resolve(stage), key=f"run {stage}")
    return registry


def moves(registry: Registry) -> list[tuple[str, int, int | None, str]]:
    return [(each.kind[0], each.version, each.before, each.reason) for each in registry.history("digits")]


def champion(registry: Registry) -> int | None:
    found = registry.champion("digits")
    return None if found is None else found.version


def test_a_version_points_to_its_artifact_and_run(store: Store) -> None:
    registry, artifact = Registry(None, store), store.resolve("classifier")
    assert registry.champion("digits") is None
    assert (registry.names(), registry.versions("digits"), registry.history("digits")) == ([], [], [])
    made = registry.register("digits", artifact, key="a", tags={"schedule": "nightly http://u:planted@h"})
    assert (made.name, made.version, made.artifact, made.fingerprint) == ("digits", 1, artifact.url, artifact.fingerprint)
    assert made.tags["schedule"] == "nightly http://h"
    run = connect(registry.url).get_run(made.run_id)
    assert run.data.tags["raymill.artifact"] == artifact.name
    source = connect(registry.url).get_model_version("digits", "1").source
    assert sorted(os.listdir(source)) == ["config.json", "model.safetensors"]
    assert registry.names() == ["digits"]


def test_registering_is_idempotent_by_key(store: Store) -> None:
    registry, artifact = Registry(None, store), store.resolve("classifier")
    first = registry.register("digits", artifact, key="a")
    assert registry.register("digits", artifact, key="a", tags={"other": "x"}) == first
    assert registry.register("digits", artifact, key="b").version == 2
    with pytest.raises(UserError, match="'a' registered version 1 of 'digits' with artifact"):
        registry.register("digits", store.resolve("vqvae"), key="a")
    assert [each.version for each in registry.versions("digits")] == [1, 2]


def test_threads_that_register_and_promote_at_once_make_no_double(store: Store) -> None:
    artifact = store.resolve("classifier")

    def both(_: int) -> None:
        registry = Registry(None, store)
        version = registry.register("digits", artifact, key="a").version
        registry.promote("digits", version, reason="", by="")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(both, range(4)))
    registry = Registry(None, store)
    assert len(registry.versions("digits")) == len(registry.history("digits")) == len(runs_of(registry.url)) == 1


def test_promotions_can_be_read_afterwards(three: Registry) -> None:
    assert three.promote("digits", 2, reason="first", by="anna").version == 2
    three.promote("digits", 3, reason="better, see http://u:planted@h", by="schedule nightly")
    three.promote("digits", 3, reason="again", by="anna")
    assert moves(three) == [("p", 2, None, "first"), ("p", 3, 2, "better, see http://h")]
    assert [each.by for each in three.history("digits")] == ["anna", "schedule nightly"]
    assert all(each.at.startswith("20") and each.done for each in three.history("digits"))
    assert champion(three) == 3


def test_rollback_goes_back_one_champion_each_time_and_then_has_none(three: Registry) -> None:
    for version in (1, 2, 3):
        three.promote("digits", version, reason="", by="")
    assert three.rollback("digits", "slow").version == 2
    assert three.rollback("digits", "wrong").version == 1
    with pytest.raises(UserError, match="no champion before 1; there is nothing to go back to"):
        three.rollback("digits", "more")
    assert moves(three)[3:] == [("r", 2, 3, "slow"), ("r", 1, 2, "wrong")]
    three.promote("digits", 3, reason="", by="")
    assert three.rollback("digits", "").version == 1


def test_a_champion_set_by_hand_in_mlflow_counts(three: Registry) -> None:
    three.promote("digits", 1, reason="", by="")
    connect(three.url).set_registered_model_alias("digits", "champion", "2")
    assert champion(three) == 2
    three.promote("digits", 3, reason="", by="")
    assert moves(three)[-1] == ("p", 3, 2, "")
    assert [three.rollback("digits", "").version for _ in range(2)] == [2, 1]
    connect(three.url).set_registered_model_alias("digits", "champion", "3")
    assert three.rollback("digits", "").version == 1


def test_killed_after_any_call_the_same_call_goes_on(store: Store, database: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Three versions are registered and promoted and the last is gone back from; each of these is killed after each of its calls."""
    calls: list[Callable[[Registry], object]] = []
    for number, stage in enumerate(("classifier", "vqvae", "prior"), start=1):
        artifact = store.resolve(stage)
        calls.append(lambda registry, artifact=artifact, stage=stage: registry.register("digits", artifact, key=stage))
        calls.append(lambda registry, number=number: registry.promote("digits", number, reason=f"number {number}", by="test"))
    calls.append(lambda registry: registry.rollback("digits", "back", by="test"))
    place = tmp_path / "played.db"
    url = f"sqlite:///{place}"

    def played(call: Callable[[Registry], object], before: Path, last: int) -> tuple[Any, int]:
        copy_database(before, place)
        with monkeypatch.context() as patch:
            counted = kill_after(patch, last)
            with contextlib.suppress(Killed):
                call(Registry(url, store))
            made = counted()
        found = Registry(url, store)
        found.history("digits")  # a reader finds no broken state
        if last:
            call(found)
        history = [replace(each, at="") for each in found.history("digits")]
        versions = [(each.version, each.artifact, each.tags) for each in found.versions("digits")]
        return (history, versions, champion(found), sorted(runs_of(url))), made

    state, kills = database, 0
    for call in calls:
        whole, made = played(call, state, 0)
        after = tmp_path / f"after{calls.index(call)}.db"
        copy_database(place, after)
        ends = made + (call is not calls[-1])  # a rollback whose last call was made is over: the next one goes back further
        for last in range(1, ends):
            assert played(call, state, last)[0] == whole, f"call {calls.index(call)} killed after {last}"
        state, kills = after, kills + ends - 1
    assert whole[0][-1] == Promotion(2, 3, "rollback", "back", "test", "")
    assert (len(whole[0]), len(whole[1]), whole[2]) == (4, 3, 2)
    assert kills > 50


def test_another_promotion_takes_the_place_of_one_that_never_was(three: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    three.promote("digits", 1, reason="", by="")
    monkeypatch.setattr(three, "_client", client := DeafToAliases(three._client))
    with pytest.raises(Killed):
        three.promote("digits", 2, reason="never", by="")
    assert champion(three) == 1
    client.deaf = False
    three.promote("digits", 3, reason="instead", by="")
    assert moves(three) == [("p", 1, None, ""), ("p", 3, 1, "instead")]


class DeafToAliases:
    """A client whose process dies before it sets an alias."""

    def __init__(self, client: Any) -> None:
        self._client, self.deaf = client, True

    def __getattr__(self, name: str) -> Any:
        if self.deaf and name == "set_registered_model_alias":
            raise Killed(name)
        return getattr(self._client, name)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def swap(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(next(folder.parent.glob("vqvae-*")), folder)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: flip(folder / "model" / "model.safetensors"), "was altered"),
        (lambda folder: (folder / "run.json").unlink(), "no such file"),
        (shutil.rmtree, "no such file"),
        (swap, "register the model again"),
    ],
)
def test_an_artifact_that_is_not_whole_is_not_promoted(three: Registry, spoil: Callable[[Path], None], says: str) -> None:
    three.promote("digits", 2, reason="", by="")
    folder = Path(three.versions("digits")[0].artifact)
    spoil(folder)
    with pytest.raises(UserError, match=says):
        three.promote("digits", 1, reason="", by="")
    assert (champion(three), len(moves(three))) == (2, 1)


def test_mistakes_are_one_line(three: Registry, capsys: pytest.CaptureFixture[str], store: Store) -> None:
    data = Path(store.resolve("classifier").url)
    for argv, says in [
        (("promote", "digits", "7"), "model 'digits' has no version 7; it has 1, 2, 3"),
        (("promote", "digit", "1"), "no model 'digit' is registered at sqlite:///"),
        (("rollback", "digit"), "did you mean 'digits'?"),
        (("rollback", "digits"), "model 'digits' had no champion before any"),
        (("models", "numbers"), "no model 'numbers' is registered"),
        (("models", "a/b"), "'a/b' is no name for a registered model"),
        (("register", "o'hara", "classifier"), "is no name for a registered model"),
        (("register", "digits", "clasifier"), "did you mean 'classifier'?"),
        (("evaluate", "models:/digits@champion", str(data)), "'digits' has no champion"),
        (("evaluate", "models:/digit@champion", str(data)), "did you mean 'digits'?"),
        (("evaluate", "models:/digits", str(data)), "expected models:/NAME@champion or models:/NAME/VERSION"),
        (("sample", "models:/digits@best"), "expected models:/NAME@champion or models:/NAME/VERSION"),
        (("models", "--track", "mlflow.db"), "--track 'mlflow.db' is no MLflow server"),
        (("models", "--store", "s3://bucket/store"), "give --track (or MLFLOW_TRACKING_URI)"),
        (("register", "digits", "classifier", "--track", "http://127.0.0.1:9"), "registers no model of the local folder"),
    ]:
        require_one_line(list(argv), (says,), capsys)


def test_the_commands(store: Store, capsys: pytest.CaptureFixture[str], first_world: Path) -> None:
    def answer(*argv: str) -> Any:
        capsys.readouterr()
        assert main([*argv, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    assert answer("models") == {}
    assert answer("register", "digits", "classifier")["version"] == 1
    assert answer("register", "digits", "classifier")["version"] == 1
    assert answer("register", "digits", "vqvae")["version"] == 2
    answer("promote", "digits", "2")
    made = answer("promote", "digits", "1", "--reason", "it is a classifier")
    assert made["artifact"] == store.resolve("classifier").url
    told = answer("models", "digits")
    assert told["champion"] == made
    assert [each["version"] for each in told["versions"]] == [1, 2]
    assert [(each["version"], each["before"], each["reason"]) for each in told["history"]] == [(2, None, ""), (1, 2, "it is a classifier")]
    assert answer("models") == {"digits": made}
    data = str(first_world / "data")
    alone = answer("evaluate", "classifier", data)["scores"]
    assert answer("evaluate", "models:/digits@champion", data)["scores"] == alone
    assert answer("evaluate", "models:/digits/1", data)["scores"] == alone
    assert answer("rollback", "digits", "--reason", "just so")["version"] == 2
    assert find_model("models:/digits@champion", store) == store.resolve("vqvae").path("model")
    capsys.readouterr()
    assert main(["models", "digits"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "digits: 2 versions, champion 2"
    assert lines[-1].endswith(": just so")
    assert "back to 2 after 1" in lines[-1]
    assert main(["models"]) == 0
    assert "champion version 2" in capsys.readouterr().out


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A real MLflow server on this machine's loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = ["--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}", "--artifacts-destination", str(tmp_path / "server")]
    program = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *places]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with open(tmp_path / "server.log", "wb") as log:
        process = subprocess.Popen(program, stdout=log, stderr=log, env=environment, cwd=tmp_path)
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
        while True:
            assert process.poll() is None, (tmp_path / "server.log").read_text()
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < deadline, (tmp_path / "server.log").read_text()
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.slow
def test_a_real_server_and_a_store_on_s3(server: str, s3: str, first_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Store(str(first_world / "store"))
    for stage in ("classifier", "vqvae"):
        artifact = source.resolve(stage)
        storage.upload_folder(artifact.url, f"{s3}/store/artifacts/{artifact.name}", last="artifact.json")
    store = Store(f"{s3}/store", tracking=server)
    registry = Registry(None, store)
    for stage in ("classifier", "vqvae"):
        made = registry.register("digits", store.resolve(stage), key=stage)
        registry.promote("digits", made.version, reason=stage, by="test")
    assert registry.rollback("digits", "back").version == 1
    assert moves(registry) == [("p", 1, None, "classifier"), ("p", 2, 1, "vqvae"), ("r", 1, 2, "back")]
    found = runs_of(server)
    assert {run["status"] for run in found.values()} == {"FINISHED"}
    assert found[store.resolve("classifier").name]["files"] == ["scores.json"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    model = find_model("models:/digits@champion", Store("elsewhere"))
    assert model == store.resolve("classifier").path("model")
    assert storage.exists(storage.join(model, COMMIT))
