"""Writes small sources of every kind, by other means than the project's readers: struct, Pillow, pyarrow, numpy, tarfile."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def pictures(count: int, seed: int = 0, shape: tuple[int, ...] = (6, 5)) -> np.ndarray:
    """Random pixels (count, *shape) uint8; the first ones are told apart by eye in an error: none is alike."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def labels(count: int, seed: int = 0, classes: int = 3) -> np.ndarray:
    values = np.random.default_rng(seed + 1).integers(0, classes, count)
    values[:classes] = np.arange(classes)[:count]
    return values


def write(place: Path, data: bytes) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)
    return place


def idx_bytes(values: np.ndarray) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 0x08, values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


def write_idx(folder: Path, name: str, count: int, seed: int = 0, compressed: bool = True) -> tuple[np.ndarray, np.ndarray]:
    images, classes = pictures(count, seed), labels(count, seed)
    for kind, dimensions, values in (("images", 3, images), ("labels", 1, classes)):
        data = idx_bytes(values)
        suffix = ".gz" if compressed else ""
        write(folder / f"{name}-{kind}-idx{dimensions}-ubyte{suffix}", gzip.compress(data, mtime=0) if compressed else data)
    return images, classes


def encoded(pixels: np.ndarray, suffix: str = ".png", **options: object) -> bytes:
    sink = io.BytesIO()
    formats = {".png": "PNG", ".jpg": "JPEG", ".pgm": "PPM", ".ppm": "PPM", ".gif": "GIF"}
    Image.fromarray(pixels).save(sink, formats[suffix], **options)
    return sink.getvalue()


def write_pictures(folder: Path, classes: tuple[str, ...], each: int, seed: int = 0, suffix: str = ".png") -> dict[str, np.ndarray]:
    """`each` pictures a class; returns pixels by relative path."""
    written = {}
    for number, name in enumerate(classes):
        for index, pixels in enumerate(pictures(each, 100 * seed + number)):
            path = f"{name}/{index:04d}{suffix}"
            write(folder / path, encoded(pixels, suffix))
            written[path] = pixels
    return written


def write_parquet(place: Path, **columns: object) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table({name: values if isinstance(values, pa.Array) else pa.array(values) for name, values in columns.items()}), place
    )
    return place


def tar_bytes(members: dict[str, bytes], compressed: bool = False) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz" if compressed else "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def write_tar(place: Path, count: int, seed: int = 0, label: str = "cls") -> tuple[np.ndarray, np.ndarray]:
    images, classes = pictures(count, seed), labels(count, seed)
    members = {}
    for index, (pixels, value) in enumerate(zip(images, classes, strict=True)):
        members[f"part/{index:05d}.png"] = encoded(pixels)
        members[f"part/{index:05d}.{label}"] = str(value).encode() if label == "cls" else json.dumps({"label": int(value)}).encode()
    write(place, tar_bytes(members, compressed=place.suffix in (".gz", ".tgz")))
    return images, classes
