"""A small world for tests of recognition from the command line: aligned faces, a trained and a calibrated model, and pictures of people.

The faces are crops of scikit-image; 16 people are trained on, 6 others are tested, and others still are enrolled.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from components.data.columns import Column
from components.data.write import write_dataset
from components.faces.aligner import Aligner, FaceConfig
from pipelines.cli import main
from tests.faces.samples import CROPS, crops, portrait, shots
from tests.pipelines.world import LOCAL

SIDE = 48
TINY = ("model.widths=[8,16]", "model.depths=[1,1]", "model.embedding_dim=16", "model.loss=softmax")
STEPS = ("train.steps=20", "train.batch_size=32", "train.optimizer.lr=1e-2", *LOCAL)
PADDED = "detector.padding=30"
TRAINED, TESTED, ENROLLED = 16, 6, ("ana", "bo", "cy")


def build(root: Path) -> Path:
    """Makes the world below `root` with the command line itself."""
    people = shots(TRAINED + TESTED + len(ENROLLED) + 1, 3)
    aligner = Aligner(FaceConfig(detector=CROPS), (SIDE, SIDE), 1)
    for number, pictures in enumerate(people[: TRAINED + TESTED]):
        split = "train" if number < TRAINED else "test"
        for shot, picture in enumerate(pictures):
            save(root / "faces" / split / f"p{number:02d}" / f"{shot}.png", aligner.only(picture, "shot").image[0].numpy())
    for name, pictures in zip((*ENROLLED, "stranger"), people[TRAINED + TESTED :], strict=True):
        for shot, picture in enumerate(pictures):
            known = name != "stranger" and shot < 2
            save(root / (f"people/{name}/{shot}.png" if known else f"asked/{name}-{shot}.png"), picture)
    save(root / "odd" / "wall.png", np.full((120, 120), 90, np.uint8))
    save(root / "odd" / "pair.png", np.hstack([np.pad(face.numpy(), 20, constant_values=110) for face in crops(2)[:, 0]]))
    save(root / "odd" / "astronaut.png", portrait())
    (root / "odd" / "broken.png").write_bytes((root / "people" / "bo" / "0.png").read_bytes()[:900])
    data, store, model = (str(root / name) for name in ("data", "store", "model"))
    say = ("--store", store, "--json")
    assert main(["prepare", str(root / "faces"), data, *LOCAL, "--json"]) == 0
    assert main(["train", "recognition", data, *TINY, *STEPS, *say]) == 0
    assert main(["faces", "calibrate", "recognition", data, model, "--split", "test", "--far", "0.01", *say]) == 0
    assert main(["faces", "enroll", model, str(root / "people"), str(root / "team.arrow"), PADDED, *say]) == 0
    return root


def save(file: Path, picture: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(file)


def write_people(folder: Path, size: tuple[int, int] = (SIDE, SIDE), channels: int = 1, **labels: list[int]) -> Path:
    """A data set whose splits have these labels, of classes a, b, c, ..."""
    column = Column(dtype="uint8", shape=(channels, *size))
    random = np.random.default_rng(0)
    splits = {
        split: [{"image": random.integers(0, 255, (len(found), *column.shape)).astype(np.uint8), "label": np.array(found, np.int64)}]
        for split, found in labels.items()
    }
    names = tuple("abcdefghij"[: max(label for found in labels.values() for label in found) + 1])
    write_dataset(str(folder), splits, {"image": column, "label": Column(dtype="int64")}, names)
    return folder
