"""The table of `README.md`: components know neither Ray nor the folders above them, clusters know components, pipelines know all."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {"components": {"ray", "clusters", "pipelines"}, "clusters": {"pipelines"}, "pipelines": set()}


def imported(file: Path) -> set[str]:
    """Top-level names of all that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("folder", sorted(FORBIDDEN))
def test_folders_import_downwards_only(folder: str) -> None:
    for file in (ROOT / folder).rglob("*.py"):
        wrong = imported(file) & FORBIDDEN[folder]
        assert not wrong, f"{file.relative_to(ROOT)} imports {sorted(wrong)}"


def test_ray_is_imported_in_clusters_alone() -> None:
    files = [file for file in (ROOT / "pipelines").rglob("*.py") if "ray" in imported(file)]
    assert not files


@pytest.mark.parametrize(
    ("module", "absent"),
    [("pipelines.cli", ["ray", "torch", "matplotlib"]), ("clusters.mailbox", ["torch", "ray"]), ("clusters.raylets", ["torch", "ray"])],
)
def test_quick_to_import(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
