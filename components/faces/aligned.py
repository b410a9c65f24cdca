"""A whole collection of pictures of people as rows of a data set of aligned faces.

    names, pictures = folder_pictures("people")  # people/NAME/*.jpg
    aligner = Aligner(FaceConfig(), (112, 112), 1)
    write_dataset("data/people", {"train": aligned_rows(pictures, aligner)}, aligned_columns(aligner), names)

Every row is a function of its picture and the aligner alone (`align_picture`), so workers can make any of them in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from components import storage
from components.data.arrow import LABEL, Rows
from components.data.columns import Column
from components.data.dataset import Dataset
from components.data.pictures import SUFFIXES, decode
from components.data.sources.reader import IMAGE
from components.errors import UserError
from components.faces.aligner import Aligner, Several

ROWS_PER_BLOCK = 256
Missing = Literal["error", "skip"]


@dataclass(frozen=True)
class PersonPicture:
    """A picture of a person: where it is, the number of the person, and how its pixels (H, W) or (H, W, 3) are read."""

    place: str
    label: int
    read: Callable[[], np.ndarray]


def folder_pictures(url: str) -> tuple[tuple[str, ...], list[PersonPicture]]:
    """The names of the people in `url`, sorted, and the pictures `url/NAME/*` of each.

    Raises UserError when there are no people, a person has no pictures, or a picture belongs to nobody.
    """
    names = tuple(name for name in storage.list_names(url) if not name.startswith((".", "_")))
    if not names:
        problem = "holds nothing" if storage.exists(url) else "does not exist"
        raise UserError(f"{url} {problem}; give a folder with a folder of pictures for each person")
    pictures: list[PersonPicture] = []
    for label, name in enumerate(names):
        folder = storage.join(url, name)
        if storage.size(folder) is not None:
            raise UserError(f"{folder} lies beside the people's folders; move it into the folder of a person")
        files = picture_files(folder)
        if not files:
            raise UserError(f"{folder} holds no pictures; add PNG, JPEG or PGM pictures of this person, or remove the folder")
        pictures += [PersonPicture(file, label, partial(read_picture, file)) for file in files]
    return names, pictures


def dataset_pictures(dataset: Dataset) -> list[PersonPicture]:
    """The rows of a split as pictures, in their order; raises UserError when it has no pictures or labels."""
    missing = {IMAGE, LABEL} - set(dataset.shape.columns)
    if missing:
        raise UserError(f"the data set {dataset.url} has no column {min(missing)!r}; prepare it from labelled pictures")
    place = f"{dataset.url}, split {dataset.split}, row"
    return [PersonPicture(f"{place} {row},", label, partial(_pixels, dataset, row)) for row, label in enumerate(_labels(dataset))]


def picture_files(url: str) -> list[str]:
    """The picture files below a folder, sorted; [] when there are none."""
    return [storage.join(url, file) for file in storage.list_files(url) if file.lower().endswith(SUFFIXES)]


def read_picture(url: str) -> np.ndarray:
    """Pixels (H, W) or (H, W, 3), uint8, of a picture file; raises UserError naming it when it is missing or damaged."""
    return decode(storage.read_bytes(url), url)


def align_picture(picture: PersonPicture, aligner: Aligner, several: Several = "error", missing: Missing = "error") -> np.ndarray | None:
    """The picture's aligned face, uint8 (C, size, size); None when it shows none and `missing` is "skip"."""
    found = aligner.faces(picture.read())
    if not found and missing == "skip":
        return None
    return aligner.choose(found, picture.place, several).image.numpy()


def aligned_columns(aligner: Aligner) -> dict[str, Column]:
    """The columns of a data set of its aligned faces."""
    return {IMAGE: Column(dtype="uint8", shape=aligner.shape), LABEL: Column(dtype="int64")}


def aligned_rows(
    pictures: Sequence[PersonPicture],
    aligner: Aligner,
    several: Several = "error",
    missing: Missing = "error",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Rows]:
    """Blocks of rows in the order of the pictures, for `write_dataset`; progress counts pictures.

    Raises UserError naming a picture without a face (unless `missing` is "skip"), with several (unless `several` is "largest"), and, at the
    end, a person without any face left.
    """
    images: list[np.ndarray] = []
    labels: list[int] = []
    shown: set[int] = set()
    for done, picture in enumerate(pictures, 1):
        image = align_picture(picture, aligner, several, missing)
        if image is not None:
            images.append(image)
            labels.append(picture.label)
            shown.add(picture.label)
        on_progress(done, len(pictures))
        if len(images) == ROWS_PER_BLOCK or (images and done == len(pictures)):
            yield {IMAGE: np.stack(images), LABEL: np.array(labels, np.int64)}
            images, labels = [], []
    faceless = next((picture for picture in pictures if picture.label not in shown), None)
    if faceless is not None:
        raise UserError(f"no picture of the person of {faceless.place} shows a face; add others, or remove this person")


def _labels(dataset: Dataset) -> list[int]:
    rows = np.arange(dataset.num_rows)
    grouped, places = dataset.gather(rows, {LABEL: np.empty(len(rows), np.int64)})
    return grouped[LABEL][places].tolist()


def _pixels(dataset: Dataset, row: int) -> np.ndarray:
    image = dataset.take(np.array([row]))[IMAGE][0]
    return image[0] if len(image) == 1 else np.moveaxis(image, 0, 2)
