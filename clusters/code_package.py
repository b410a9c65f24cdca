"""Which code a job runs: a checkout's, sent along, or what the nodes have installed, when that is the submitter's version.

Sent along are Raymill's three folders, and of them only what an installation would hold.

Data, artifacts, keys and notes that lie beside the code or among it stay here: a file goes in when its name is one that
`pyproject.toml` installs, and no other does.
"""

from __future__ import annotations

import os
import shutil
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

from components.errors import UserError

FOLDERS = ("components", "clusters", "pipelines")
VERSION = "RAYMILL_VERSION"  # of the submitter, in the environment of a job that runs what its nodes have


def own_checkout() -> Path | None:
    """The checkout that this code runs from; None when it is installed."""
    root = Path(__file__).resolve().parent.parent
    return root if _is_checkout(root) else None


def code_files(root: Path) -> list[Path]:
    """The files of a checkout that travel, relative to `root`. Raises UserError when `root` is no checkout of Raymill."""
    if not _is_checkout(root):
        raise UserError(f"--code {root} is no checkout of Raymill; expected a folder with pyproject.toml and {', '.join(FOLDERS)}")
    patterns = ["*.py", *tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]]
    found = (
        file.relative_to(root) for folder in FOLDERS for file in (root / folder).rglob("*") if file.is_file() and not file.is_symlink()
    )
    return sorted(file for file in found if _is_plain(file) and any(file.match(pattern) for pattern in patterns))


@contextmanager
def staged(root: Path) -> Iterator[list[str]]:
    """The three folders as Ray's `py_modules` takes them, copied to where nothing else lies."""
    with TemporaryDirectory(prefix="raymill-code-") as scratch:
        for file in code_files(root):
            target = Path(scratch) / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / file, target)
        yield [str(Path(scratch) / folder) for folder in FOLDERS]


def installed_version() -> str:
    try:
        return version("raymill")
    except PackageNotFoundError:
        return "unknown"


def require_version() -> None:
    """In a job: raises UserError when this node's Raymill is not the submitter's."""
    asked, here = os.environ.get(VERSION), installed_version()
    if asked is not None and asked != here:
        raise UserError(
            f"the nodes have Raymill {here}, and the job was submitted with {asked}; give them that version, or submit with --code FOLDER"
        )


def _is_plain(file: Path) -> bool:
    return not any(part.startswith(".") or part == "__pycache__" for part in file.parts)


def _is_checkout(root: Path) -> bool:
    try:
        named = tomllib.loads((root / "pyproject.toml").read_text()).get("project", {}).get("name")
    except (OSError, ValueError):
        return False
    return named == "raymill" and all((root / folder).is_dir() for folder in FOLDERS)
