"""Chinese characters as identities: each character is a class, the faces of many fonts are its pictures.

Characters and faces of the test split are both unseen in training, so that what is measured is whether two pictures show one character.
The fonts are those of Debian packages. Smallest use: `fetch("glyphs", "data/glyphs", GlyphsConfig())`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import features
from pydantic import Field, field_validator

from components.config import Config
from components.data.arrow import LABEL, Rows
from components.data.collections.collection import Fetched, OnProgress
from components.data.collections.faces import FACES, Face
from components.data.collections.rendering import Pen, tells_apart
from components.data.columns import Column
from components.data.write import write_dataset
from components.errors import UserError
from components.seeds import derive_seed

ROWS_PER_BLOCK = 1024
CodePoint = Annotated[int, Field(ge=0, lt=0x110000)]


class GlyphsConfig(Config):
    """How many characters, how large, and from which fonts."""

    characters: int = Field(10_240, ge=2, description="characters to train on: those that most faces have")
    test_characters: int = Field(1_000, ge=2, description="characters of the test split, drawn from those that all its faces have")
    size: int = Field(32, ge=8, le=256, description="height and width of a picture in pixels")
    least_pictures: int = Field(6, ge=2, description="faces that a character to train on is in, at least")
    block: tuple[CodePoint, CodePoint] = Field((0x4E00, 0x9FFF), description="first and last code point; CJK Unified Ideographs")
    fonts: str = Field("/usr/share/fonts", description="folder with the font files, at any depth")
    seed: int = Field(0, ge=0, description="decides which characters are tested")

    @field_validator("block")
    @classmethod
    def _is_ascending(cls, value: tuple[int, int]) -> tuple[int, int]:
        if value[0] > value[1]:
            raise ValueError("the first code point of the block lies after the last")
        return value


@dataclass(frozen=True)
class Drawn:
    """Pictures (N, S, S) uint8, which characters they show (N,), as code points, and in which faces (N,), by number."""

    images: np.ndarray
    characters: np.ndarray
    faces: np.ndarray


def fetch_glyphs(out: str, config: GlyphsConfig, on_progress: OnProgress, faces: tuple[Face, ...] = FACES) -> Fetched:
    """Draws the data set `out`: split `train` with labels 0..C-1, split `test` with labels from C on, columns `image` and `label`.

    The same fonts, FreeType and config give the same bytes. Raises UserError when fonts are missing or have too few characters.
    """
    train, test = draw_glyphs(config, on_progress, faces)
    drawn = {"train": train, "test": test}
    alphabet = np.concatenate([np.unique(found.characters) for found in drawn.values()])  # by label
    columns = {"image": Column(dtype="uint8", shape=(1, config.size, config.size)), LABEL: Column(dtype="int64")}
    splits = {split: _blocks(found, alphabet) for split, found in drawn.items()}
    options = config.model_dump(mode="json", exclude={"fonts"})
    drawn_by = {"faces": [face.name for face in faces], "freetype": features.version("freetype2")}
    made_by = {"collection": "glyphs", "config": options, **drawn_by}
    write_dataset(out, splits, columns, tuple(map(chr, alphabet.tolist())), made_by)
    pictures = {split: len(found.characters) for split, found in drawn.items()}
    return Fetched(out, "dataset", pictures, {split: len(np.unique(found.characters)) for split, found in drawn.items()})


def draw_glyphs(config: GlyphsConfig, on_progress: OnProgress, faces: tuple[Face, ...] = FACES) -> tuple[Drawn, Drawn]:
    """(training, test) pictures, by character and then by face; no character and no face is in both."""
    files = find_fonts(Path(config.fonts).expanduser(), faces)
    drawn: dict[str, list[Drawn]] = {"train": [], "test": []}
    for number, face in enumerate(faces):
        on_progress(number, len(faces))
        drawn[face.role].append(_draw_face(files[face.file], face.index, number, config))
    on_progress(len(faces), len(faces))
    tested = _choose_tested(drawn["test"], config)
    return _only(drawn["train"], _choose_trained(drawn["train"], tested, config)), _only(drawn["test"], tested)


def find_fonts(folder: Path, faces: tuple[Face, ...]) -> dict[str, str]:
    """Paths of the faces' files below `folder`, by name; raises UserError with the packages to install where some are missing."""
    wanted = {face.file: face.package for face in faces}
    found: dict[str, str] = {}
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(wanted.keys() & set(names)):
            found.setdefault(name, os.path.join(parent, name))
    packages = sorted({package for file, package in wanted.items() if file not in found})
    if packages:
        raise UserError(
            f"glyphs: {len(wanted) - len(found)} of {len(wanted)} font files are not below {folder}; install them with: "
            f"apt-get install --no-install-recommends {' '.join(packages)}; or name their folder with fonts=PATH"
        )
    return found


def _draw_face(file: str, index: int, number: int, config: GlyphsConfig) -> Drawn:
    """All characters of the block that face `number` can tell apart."""
    pen = Pen(file, index, config.size, range(config.block[0], config.block[1] + 1))
    images = pen.draw(pen.characters)
    good = tells_apart(images)
    return Drawn(images[good], np.array(pen.characters, np.int64)[good], np.full(good.sum(), number))


def _only(drawn: list[Drawn], chosen: np.ndarray) -> Drawn:
    """The pictures of the chosen characters, by character and then by face."""
    kept = [np.isin(face.characters, chosen) for face in drawn]
    characters = np.concatenate([face.characters[keep] for face, keep in zip(drawn, kept, strict=True)])
    order = np.argsort(characters, kind="stable")
    images = np.concatenate([face.images[keep] for face, keep in zip(drawn, kept, strict=True)])
    faces = np.concatenate([face.faces[keep] for face, keep in zip(drawn, kept, strict=True)])
    return Drawn(images[order], characters[order], faces[order])


def _coverage(drawn: list[Drawn]) -> tuple[np.ndarray, np.ndarray]:
    """Distinct characters, ascending, and in how many faces each is."""
    return np.unique(np.concatenate([face.characters for face in drawn]), return_counts=True)


def _blocks(drawn: Drawn, alphabet: np.ndarray) -> Iterator[Rows]:
    """The rows of a split; the label of a character is its place in the alphabet."""
    order = np.argsort(alphabet)
    labels = order[np.searchsorted(alphabet, drawn.characters, sorter=order)].astype(np.int64)
    for first in range(0, len(labels), ROWS_PER_BLOCK):
        part = slice(first, first + ROWS_PER_BLOCK)
        yield {"image": drawn.images[part, None], LABEL: labels[part]}


def _choose_tested(drawn: list[Drawn], config: GlyphsConfig) -> np.ndarray:
    characters, counts = _coverage(drawn)
    everywhere = characters[counts == len(drawn)]
    if len(everywhere) < config.test_characters:
        raise UserError(
            f"glyphs: test_characters={config.test_characters}, but only {len(everywhere)} are in all {len(drawn)} faces for testing; "
            "ask for fewer"
        )
    return np.sort(everywhere[np.argsort(_words(everywhere, config.seed), kind="stable")][: config.test_characters])


def _choose_trained(drawn: list[Drawn], tested: np.ndarray, config: GlyphsConfig) -> np.ndarray:
    characters, counts = _coverage(drawn)
    fit = ~np.isin(characters, tested) & (counts >= config.least_pictures)
    characters, counts = characters[fit], counts[fit]
    if len(characters) < config.characters:
        raise UserError(
            f"glyphs: characters={config.characters}, but only {len(characters)} that are not tested are in at least "
            f"{config.least_pictures} faces for training; ask for fewer, or lower least_pictures"
        )
    return np.sort(characters[np.lexsort((_words(characters, config.seed), -counts))][: config.characters])


def _words(characters: np.ndarray, seed: int) -> np.ndarray:
    """A pseudo-random number for each character, the same whatever other characters there are."""
    return np.array([derive_seed("glyph", seed, int(character)) for character in characters], np.int64)
