"""Small real data sets in Raymill's own format: shipped images at 28 x 28, and grids of codes that coarse grey levels make of them."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from components.data.write import write_dataset
from components.families.contract import Column

SHIPPED = Path(__file__).parent.parent / "datasets" / "fashion-mnist"
CODES = 16


def shipped_images(part: str, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `rows` images (rows, 1, 28, 28) uint8 and labels (rows,) int64 of the shipped set, read without Raymill."""
    images = np.frombuffer(gzip.decompress((SHIPPED / f"{part}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((SHIPPED / f"{part}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    return images.reshape(-1, 1, 28, 28)[:rows], labels[:rows].astype(np.int64)


def write_images(folder: Path, train: int = 600, test: int = 100) -> Path:
    return _write(folder, "image", Column(dtype="uint8", shape=(1, 28, 28)), lambda images: images, train, test)


def write_identities(folder: Path, train: int = 600, test: int = 300) -> Path:
    """Images whose classes 0 to 6 are trained on and 7 to 9 only tested on, as people are in recognition."""
    blocks = {}
    for split, part, rows, seen in (("train", "train", train, range(7)), ("test", "t10k", test, range(7, 10))):
        images, labels = shipped_images(part, rows)
        chosen = np.isin(labels, seen)
        blocks[split] = [{"image": images[chosen], "label": labels[chosen]}]
    columns = {"image": Column(dtype="uint8", shape=(1, 28, 28)), "label": Column(dtype="int64")}
    write_dataset(str(folder), blocks, columns, tuple(str(n) for n in range(10)), {"made": "for a test"})
    return folder


def write_codes(folder: Path, train: int = 600, test: int = 100) -> Path:
    """Codes in [0, 16): the mean grey of each 4 x 4 patch in sixteen levels, a 7 x 7 grid."""

    def patches(images: np.ndarray) -> np.ndarray:
        return (images.reshape(-1, 7, 4, 7, 4).mean(axis=(2, 4)) / 16).astype(np.int64).clip(0, CODES - 1)

    return _write(folder, "codes", Column(dtype="int64", shape=(7, 7)), patches, train, test)


def _write(folder: Path, name: str, column: Column, transform, train: int, test: int) -> Path:
    blocks = {}
    for split, part, rows in (("train", "train", train), ("test", "t10k", test)):
        images, labels = shipped_images(part, rows)
        blocks[split] = [{name: transform(images), "label": labels}]
    columns = {name: column, "label": Column(dtype="int64")}
    write_dataset(str(folder), blocks, columns, tuple(str(n) for n in range(10)), {"made": "for a test"})
    return folder
