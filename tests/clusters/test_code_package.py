"""What of a checkout travels with a job, and what stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clusters.code_package import FOLDERS, VERSION, code_files, installed_version, own_checkout, require_version, staged
from components.errors import UserError

ROOT = Path(__file__).parent.parent.parent
PYPROJECT = '[project]\nname = "raymill"\n[tool.setuptools.package-data]\n"*" = ["*.html", "presets/*.yaml"]\n'


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for folder in FOLDERS:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    return tmp_path


def plant(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("planted")


def test_only_what_is_installed_travels(checkout: Path) -> None:
    plant(checkout, "pipelines/presets/tokens.yaml", "components/report/page.html", "components/data/reader.py")
    plant(checkout, ".env", "data/x.arrow", "store/artifacts/a/model.safetensors", "secret.py", "datasets/d.py", "benchmarks/b.py")
    plant(
        checkout, "components/.env", "components/key.pem", "clusters/values.yaml", "clusters/.hidden/a.py", "pipelines/weights.safetensors"
    )
    plant(checkout, "components/__pycache__/a.py", "components/credentials", "pipelines/notes.txt")
    os.symlink(checkout / "secret.py", checkout / "components" / "linked.py")
    files = {str(file) for file in code_files(checkout)}
    modules = {f"{folder}/__init__.py" for folder in FOLDERS}
    assert files == modules | {"pipelines/presets/tokens.yaml", "components/report/page.html", "components/data/reader.py"}
    with staged(checkout) as folders:
        there = {str(file.relative_to(Path(folders[0]).parent)) for folder in folders for file in Path(folder).rglob("*") if file.is_file()}
        assert there == files
    assert not Path(folders[0]).exists()


def test_the_package_of_this_checkout_is_small_and_whole() -> None:
    files = code_files(ROOT)
    assert {"pipelines/cli.py", "pipelines/presets/tokens.yaml", "components/report/page.html"} <= {str(file) for file in files}
    assert sum((ROOT / file).stat().st_size for file in files) < 6e6
    assert own_checkout() == ROOT


def test_a_folder_that_is_no_checkout(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no checkout of Raymill"):
        code_files(tmp_path)


def test_a_node_with_another_version_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VERSION, installed_version())
    require_version()
    monkeypatch.setenv(VERSION, "99.0")
    with pytest.raises(UserError, match=r"submitted with 99\.0"):
        require_version()
