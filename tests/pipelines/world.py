"""A small world for tests of the command line: sources of several kinds, a data set, and a store with three trained models."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.cli import main
from tests.small_data import shipped_images, write_codes

LOCAL = ("--workers", "0")
TRAIN = ("train.steps=2", "train.batch_size=16", "--workers", "0")
TINY = {
    "classifier": ("model.widths=[4]", "model.feature_dim=4"),
    "vqvae": ("model.encoder_widths=[4,4]", "model.decoder_widths=[4,4]", "model.num_codes=16", "model.code_dim=4"),
    "prior": ("model.code_count=16", "model.layers=1", "model.heads=1", "model.width=8"),
}
UNET = "model.network={widths: [8, 8], attention: [false, false], blocks: 1, groups: 4, patch: 2}"


def idx(values: np.ndarray) -> bytes:
    """The IDX file (LeCun's format) of uint8 values."""
    return gzip.compress(struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.astype(np.uint8).tobytes())


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write_idx(folder: Path) -> Path:
    """48 training and 16 test pictures as IDX files."""
    folder.mkdir(parents=True)
    for part, rows in (("train", 48), ("t10k", 16)):
        images, labels = shipped_images(part, rows)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(images[:, 0]))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
    return folder


def write_folders(folder: Path) -> Path:
    """Twenty pictures of two classes, a folder each."""
    images, _ = shipped_images("train", 20)
    for place, image in enumerate(images[:, 0]):
        file = folder / ("left", "right")[place % 2] / f"{place:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(image))
    return folder


def write_tar(file: Path, name: str) -> Path:
    """A WebDataset tar of twelve pictures with labels, and one more member called `name`."""
    images, labels = shipped_images("train", 12)
    with tarfile.open(file, "w") as archive:
        for place, (image, label) in enumerate(zip(images[:, 0], labels, strict=True)):
            for member, data in ((f"{place:03d}.png", png(image)), (f"{place:03d}.cls", str(label).encode())):
                _add(archive, member, data)
        _add(archive, name, b"0")
    return file


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def write_npz(file: Path, **arrays: np.ndarray) -> Path:
    np.savez(file, **arrays)
    return file


def build(root: Path) -> Path:
    """Makes the world below `root` with the command line itself."""
    write_idx(root / "idx")
    write_folders(root / "folders")
    write_codes(root / "codes", train=32, test=8)
    assert main(["prepare", str(root / "idx"), str(root / "data"), "--workers", "0", "--json"]) == 0
    for family, options in TINY.items():
        data = root / ("codes" if family == "prior" else "data")
        assert main(["train", family, str(data), *options, *TRAIN, "--store", str(root / "store"), "--json"]) == 0
    return root


def add_generators(root: Path) -> Path:
    """Trains what makes pictures in the world below `root`: a prior with its tokenizer, and a diffusion."""
    options = (*TRAIN, "--store", str(root / "store"), "--json")
    assert main(["train", "prior", str(root / "codes"), *TINY["prior"], "train.seed=1", "--with", "tokenizer=vqvae", *options]) == 0
    assert main(["train", "diffusion", str(root / "data"), UNET, "model.levels=8", *options]) == 0
    return root


def digest(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below, and every folder, by path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def require_one_line(argv: list[str], says: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    code = main(argv)
    out, err = capsys.readouterr()
    assert code == 2, err
    assert err.count("\n") == 1, err
    assert err.startswith("raymill: ")
    assert "Traceback" not in err
    for text in says:
        assert text in err
    assert out == ""
