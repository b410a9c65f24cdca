"""The whole way from a picture to a comparison, with a model that looks at pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from components.errors import UserError
from components.faces.aligner import FaceConfig, in_channels
from components.faces.system import FaceSystem, similarity
from tests.faces.pixel_model import PixelModel
from tests.faces.samples import CROPS, crops, portrait, shots

CONFIG = FaceConfig(detector=CROPS)


def two_faces() -> np.ndarray:
    """(120, 260) grey with a large and a small face."""
    canvas = np.full((170, 330), 110, np.uint8)
    large, small = crops(1, 128)[0, 0].numpy(), crops(2, 80)[1, 0].numpy()
    canvas[20 : 20 + 128, 20 : 20 + 128] = large
    canvas[40 : 40 + 80, 210 : 210 + 80] = small
    return canvas


def test_pictures_of_one_person_are_alike_and_those_of_others_are_not() -> None:
    system = FaceSystem(PixelModel(), CONFIG)
    seen = [[system.only(picture, "picture") for picture in person] for person in shots(5, 2)]
    genuine = [similarity(a, b) for a, b in seen]
    impostor = [similarity(seen[i][0], seen[j][1]) for i in range(5) for j in range(5) if i != j]
    assert min(genuine) > 0.9 > max(impostor)


def test_the_model_gets_what_it_was_built_for() -> None:
    for channels, size, picture in ((1, 56, portrait()), (3, 112, portrait()), (3, 32, portrait()[:, :, 0])):
        model = PixelModel((size, size), channels)
        FaceSystem(model).only(picture, "portrait")
        (images,) = model.seen
        assert images.shape == (1, channels, size, size)
        assert 0 <= images.min() < 0.2 < 0.6 < images.max() <= 1


def test_every_face_of_a_picture_is_embedded() -> None:
    found = FaceSystem(PixelModel(), FaceConfig()).faces(two_faces())
    assert len(found) == 2
    alone = FaceSystem(PixelModel(), FaceConfig()).only(np.pad(crops(1, 128)[0, 0].numpy(), 20, constant_values=110), "alone")
    assert max(similarity(alone, face) for face in found) > 0.98 > 0.9 > min(similarity(alone, face) for face in found)


def test_several_faces_are_an_error_or_the_largest() -> None:
    system = FaceSystem(PixelModel(), FaceConfig())
    with pytest.raises(UserError, match=r"group\.png shows 2 faces, expected one"):
        system.only(two_faces(), "group.png")
    left, _, right, _ = system.only(two_faces(), "group.png", several="largest").face.box
    assert left < 84 < right


def test_no_face_is_an_error_that_names_the_picture() -> None:
    system = FaceSystem(PixelModel(), FaceConfig())
    assert system.faces(np.zeros((90, 90), np.uint8)) == []
    with pytest.raises(UserError, match=r"wall\.png shows no face"):
        system.only(np.zeros((90, 90), np.uint8), "wall.png")


def test_thresholds_are_the_given_one_or_the_models() -> None:
    assert FaceSystem(PixelModel()).threshold() == (0.9, 0.01)
    assert FaceSystem(PixelModel()).threshold(0.4) == (0.4, None)
    with pytest.raises(UserError, match="no threshold of its own"):
        FaceSystem(PixelModel(threshold=None, rate=None)).threshold()
    with pytest.raises(UserError, match=r"1\.5 is no cosine"):
        FaceSystem(PixelModel()).threshold(1.5)


def test_models_of_oblong_pictures_are_refused() -> None:
    with pytest.raises(UserError, match="112 x 96"):
        FaceSystem(PixelModel((112, 96)))


def test_grey_is_luma_and_colour_of_grey_is_grey() -> None:
    image = torch.tensor([[[255, 0, 0, 255]], [[0, 255, 0, 255]], [[0, 0, 255, 255]]], dtype=torch.uint8)
    assert in_channels(image, 1).flatten().tolist() == [76, 150, 29, 255]
    assert torch.equal(in_channels(image, 3), image)
    assert torch.equal(in_channels(image[:1], 3), image[:1].repeat(3, 1, 1))
