"""Small data sets in Raymill's own format: shipped images at 28 x 28, grids of codes made of their grey levels, points of a ring."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np

from components.data.collections.faces import Face
from components.data.collections.glyphs import GlyphsConfig, fetch_glyphs
from components.data.write import write_dataset
from components.families.contract import Column

SHIPPED = Path(__file__).parent.parent / "datasets" / "fashion-mnist"
CODES = 16
RING = 8

Transform = Callable[[np.ndarray], np.ndarray]


def shipped_images(part: str, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `rows` images (rows, 1, 28, 28) uint8 and labels (rows,) int64 of the shipped set, read without Raymill."""
    images = np.frombuffer(gzip.decompress((SHIPPED / f"{part}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((SHIPPED / f"{part}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    return images.reshape(-1, 1, 28, 28)[:rows], labels[:rows].astype(np.int64)


def write_images(folder: Path, train: int = 600, test: int = 100) -> Path:
    return _write(folder, "image", Column(dtype="uint8", shape=(1, 28, 28)), lambda images: images, train, test)


def write_identities(folder: Path) -> Path:
    """Letters as identities, 150 to train on in ten styles of DejaVu and 30 others to test in four of STIX: fonts that Matplotlib ships."""
    styles = ("Sans", "Sans-Bold", "Sans-Oblique", "SansMono", "SansMono-Bold", "Serif", "Serif-Bold", "Serif-Italic")
    train = (Face(style, "fonts-dejavu-core", f"DejaVu{style}.ttf", 0, "train", "dejavu") for style in styles)
    test = (Face(style, "fonts-stix", f"STIXGeneral{style}.ttf", 0, "test", "stix") for style in ("", "Bol", "Italic", "BolIta"))
    config = GlyphsConfig(
        characters=150,
        test_characters=30,
        size=28,
        least_pictures=4,
        block=(0x21, 0x17F),
        fonts=str(Path(matplotlib.get_data_path()) / "fonts" / "ttf"),
    )
    fetch_glyphs(str(folder), config, lambda done, total: None, (*train, *test))
    return folder


def write_codes(folder: Path, train: int = 600, test: int = 100) -> Path:
    """Codes in [0, 16): the mean grey of each 4 x 4 patch in sixteen levels, a 7 x 7 grid."""

    def patches(images: np.ndarray) -> np.ndarray:
        return (images.reshape(-1, 7, 4, 7, 4).mean(axis=(2, 4)) / 16).astype(np.int64).clip(0, CODES - 1)

    return _write(folder, "codes", Column(dtype="int64", shape=(7, 7)), patches, train, test)


def ring_points(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (rows, 2) float32 of eight Gaussians of deviation 0.1 on the unit circle, and which one each is of (rows,) int64."""
    draws = np.random.default_rng(seed)
    labels = draws.integers(0, RING, rows)
    angles = labels * (2 * np.pi / RING)
    points = np.stack([np.cos(angles), np.sin(angles)], 1) + 0.1 * draws.standard_normal((rows, 2))
    return points.astype(np.float32), labels.astype(np.int64)


def write_points(folder: Path, train: int = 2000, test: int = 500) -> Path:
    blocks = {}
    for split, rows, seed in (("train", train, 0), ("test", test, 1)):
        points, labels = ring_points(rows, seed)
        blocks[split] = [{"point": points, "label": labels}]
    columns = {"point": Column(dtype="float32", shape=(2,)), "label": Column(dtype="int64")}
    write_dataset(str(folder), blocks, columns, tuple(str(n) for n in range(RING)), {"made": "for a test"})
    return folder


def _write(folder: Path, name: str, column: Column, transform: Transform, train: int, test: int) -> Path:
    blocks = {}
    for split, part, rows in (("train", "train", train), ("test", "t10k", test)):
        images, labels = shipped_images(part, rows)
        blocks[split] = [{name: transform(images), "label": labels}]
    columns = {name: column, "label": Column(dtype="int64")}
    write_dataset(str(folder), blocks, columns, tuple(str(n) for n in range(10)), {"made": "for a test"})
    return folder
