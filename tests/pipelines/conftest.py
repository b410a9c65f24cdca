"""The world of the command line tests, made once and copied for each test to spoil."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest

from tests.pipelines import recognition_world
from tests.pipelines.mlflow_state import empty_database
from tests.pipelines.world import add_generators, build


@pytest.fixture(scope="session")
def first_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with contextlib.redirect_stdout(None):
        return build(tmp_path_factory.mktemp("world"))


@pytest.fixture
def root(first_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the world to spoil; what a command writes here and there, it writes below it."""
    shutil.copytree(first_world, tmp_path / "world")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYMILL_STORE", str(tmp_path / "world" / "store"))
    return tmp_path / "world"


@pytest.fixture(scope="session")
def first_studio(first_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("studio") / "world"
    shutil.copytree(first_world, root)
    with contextlib.redirect_stdout(None):
        return add_generators(root)


@pytest.fixture
def studio(first_studio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the world with models that make pictures."""
    shutil.copytree(first_studio, tmp_path / "world")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYMILL_STORE", str(tmp_path / "world" / "store"))
    return tmp_path / "world"


@pytest.fixture(scope="session")
def first_faces_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with contextlib.redirect_stdout(None):
        return recognition_world.build(tmp_path_factory.mktemp("faces"))


@pytest.fixture
def faces_world(first_faces_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the world of faces to spoil; commands run in it."""
    shutil.copytree(first_faces_world, tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    monkeypatch.delenv("RAYMILL_STORE", raising=False)
    return tmp_path / "world"


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with nothing in it, to copy."""
    return empty_database(tmp_path_factory.mktemp("mlflow"))
