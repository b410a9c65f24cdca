"""Folders and data sets of people become data sets of aligned faces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.data.columns import Column
from components.data.dataset import Dataset
from components.data.write import write_dataset
from components.errors import UserError
from components.faces.aligned import aligned_columns, aligned_rows, dataset_pictures, folder_pictures
from components.faces.aligner import Aligner, FaceConfig
from tests.faces.samples import CROPS, shots

WALL = np.full((112, 112), 130, np.uint8)


def aligner(channels: int = 1) -> Aligner:
    return Aligner(FaceConfig(detector=CROPS), (64, 64), channels)


def write_people(root: Path, count: int = 3, each: int = 2) -> Path:
    for person, pictures in enumerate(shots(count, each)):
        folder = root / f"person-{person}"
        folder.mkdir(parents=True)
        for number, picture in enumerate(pictures):
            Image.fromarray(picture).save(folder / f"{number}.{('png', 'pgm')[number % 2]}")
    return root


def test_a_folder_of_people_becomes_a_data_set(tmp_path: Path) -> None:
    names, pictures = folder_pictures(str(write_people(tmp_path / "people")))
    done: list[tuple[int, int]] = []
    rows = aligned_rows(pictures, aligner(), on_progress=lambda *progress: done.append(progress))
    write_dataset(str(tmp_path / "data"), {"train": rows}, aligned_columns(aligner()), names)
    dataset = Dataset.open(str(tmp_path / "data"))
    assert dataset.class_names == ("person-0", "person-1", "person-2")
    found = dataset.take(np.arange(6))
    assert found["label"].tolist() == [0, 0, 1, 1, 2, 2]
    assert found["image"].shape == (6, 1, 64, 64)
    assert done == [(i, 6) for i in range(1, 7)]
    direct = aligner().only(shots(3, 2)[1][0], "direct").image.numpy()
    np.testing.assert_array_equal(found["image"][2], direct)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_data_set_of_larger_pictures_becomes_one_of_faces(channels: int, tmp_path: Path) -> None:
    images = np.stack([picture for person in shots(2, 2) for picture in person])[:, None].repeat(channels, 1)
    columns = {"image": Column(dtype="uint8", shape=images.shape[1:]), "label": Column(dtype="int64")}
    write_dataset(str(tmp_path / "big"), {"train": [{"image": images, "label": np.array([1, 1, 0, 0])}]}, columns, ("a", "b"))
    pictures = dataset_pictures(Dataset.open(str(tmp_path / "big")))
    (block,) = aligned_rows(pictures, aligner(channels))
    assert block["label"].tolist() == [1, 1, 0, 0]
    np.testing.assert_array_equal(block["image"][3, 0], aligner().only(images[3, 0], "direct").image[0].numpy())


def test_a_faceless_picture_is_an_error_or_left_out(tmp_path: Path) -> None:
    people = write_people(tmp_path / "people")
    Image.fromarray(WALL).save(people / "person-1" / "wall.png")
    _, pictures = folder_pictures(str(people))
    with pytest.raises(UserError, match=r"person-1/wall\.png shows no face"):
        list(aligned_rows(pictures, aligner()))
    (block,) = aligned_rows(pictures, aligner(), missing="skip")
    assert block["label"].tolist() == [0, 0, 1, 1, 2, 2]


def test_a_person_without_any_face_is_an_error_that_commits_nothing(tmp_path: Path) -> None:
    people = write_people(tmp_path / "people")
    (people / "zoe").mkdir()
    Image.fromarray(WALL).save(people / "zoe" / "wall.png")
    names, pictures = folder_pictures(str(people))
    with pytest.raises(UserError, match=r"zoe/wall\.png shows a face"):
        write_dataset(
            str(tmp_path / "data"), {"train": aligned_rows(pictures, aligner(), missing="skip")}, aligned_columns(aligner()), names
        )
    with pytest.raises(UserError):
        Dataset.open(str(tmp_path / "data"))


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        folder_pictures(str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds nothing"):
        folder_pictures(str(tmp_path / "empty"))
    people = write_people(tmp_path / "people")
    (people / "yan").mkdir()
    (people / "yan" / "notes.txt").write_text("no picture")
    with pytest.raises(UserError, match=r"people/yan holds no pictures"):
        folder_pictures(str(people))
    (people / "stray.png").write_bytes((people / "person-0" / "0.png").read_bytes())
    with pytest.raises(UserError, match=r"stray\.png lies beside"):
        folder_pictures(str(people))
