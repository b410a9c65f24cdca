"""Faces found where they are: in a portrait, in collages, and (when given) in all ORL pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from components.faces.align import MIRRORED
from components.faces.detect import DetectorConfig, Face, FaceDetector, crops, pyramid
from tests.faces.samples import CROPS, orl, portrait
from tests.faces.samples import crops as face_crops

# of the portrait, read off by eye
EYES_NOSE_MOUTH = np.array([[203, 103], [247, 105], [226, 128], [204, 139], [245, 142]])


def chw(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(pixels, 2, 0).copy())[None]


def test_the_portrait_has_one_face_with_its_landmarks() -> None:
    (face,) = FaceDetector().detect(chw(portrait()))[0]
    assert face.score > 0.99
    np.testing.assert_allclose(face.landmarks, EYES_NOSE_MOUTH, atol=6)
    left, top, right, bottom = face.box
    assert all(left < x < right and top < y < bottom for x, y in face.landmarks)
    assert 50 < right - left < 120
    assert 50 < bottom - top < 150


def test_no_face_is_a_normal_result() -> None:
    random = torch.randint(0, 256, (1, 3, 80, 60), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert FaceDetector().detect(torch.cat([torch.zeros_like(random), random])) == [[], []]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (11, 200), (20, 20)])
def test_pictures_too_small_for_a_face_have_none(height: int, width: int) -> None:
    assert FaceDetector().detect(torch.full((1, 1, height, width), 200, dtype=torch.uint8)) == [[]]


def test_grey_pictures_are_colour_pictures_of_grey() -> None:
    grey = chw(portrait())[:, :1, 40:240, 120:330]
    assert FaceDetector().detect(grey) == FaceDetector().detect(grey.repeat(1, 3, 1, 1))


def agree(found: list[Face], expected: list[Face], atol: float) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.box, other.box, atol=atol)
        np.testing.assert_allclose(one.landmarks, other.landmarks, atol=atol)


def test_a_batch_is_its_pictures_one_by_one() -> None:
    images = face_crops(6)
    images[2] = 0
    together = FaceDetector(CROPS).detect(images)
    assert [len(faces) for faces in together] == [1, 1, 0, 1, 1, 1]
    for image, faces in zip(images, together, strict=True):
        agree(FaceDetector(CROPS).detect(image[None])[0], faces, atol=1e-2)


def test_padding_does_not_move_faces() -> None:
    image = chw(portrait())[:, :, 40:240, 120:330]
    (plain,), (padded,) = FaceDetector().detect(image)[0], FaceDetector(DetectorConfig(padding=24)).detect(image)[0]
    np.testing.assert_allclose(plain.landmarks, padded.landmarks, atol=2)


def test_the_mirror_image_has_mirrored_landmarks() -> None:
    image = chw(portrait())[:, :, 40:240, 120:330]
    (plain,), (mirror,) = FaceDetector().detect(image)[0], FaceDetector().detect(image.flip(-1))[0]
    points = np.array(mirror.landmarks)[list(MIRRORED)]
    points[:, 0] = image.shape[-1] - 1 - points[:, 0]
    np.testing.assert_allclose(plain.landmarks, points, atol=4)


def test_small_faces_are_found_when_asked_for() -> None:
    image = torch.nn.functional.interpolate(chw(portrait()).float(), scale_factor=0.25, mode="area").to(torch.uint8)
    assert FaceDetector(DetectorConfig(min_face=80)).detect(image) == [[]]
    assert len(FaceDetector(DetectorConfig(min_face=15)).detect(image)[0]) == 1


def collage(faces: torch.Tensor, side: int) -> tuple[torch.Tensor, np.ndarray]:
    """Faces (N, 1, h, w) in the cells of a grid on grey ground, and their centres (N, 2)."""
    height, width = faces.shape[-2:]
    columns = 3
    canvas = torch.full((1, 1, side * -(-len(faces) // columns), side * columns), 110, dtype=torch.uint8)
    centres = []
    for i, face in enumerate(faces):
        top, left = side * (i // columns) + (side - height) // 2, side * (i % columns) + (side - width) // 2
        canvas[0, :, top : top + height, left : left + width] = face
        centres.append((left + width / 2, top + height / 2))
    return canvas, np.array(centres)


def count_found(faces: list[Face], centres: np.ndarray, reach: float) -> int:
    """How many centres have exactly one face whose landmarks' mean is near."""
    means = np.array([np.mean(face.landmarks, axis=0) for face in faces]).reshape(-1, 2)
    return sum(int((np.linalg.norm(means - centre, axis=1) < reach).sum() == 1) for centre in centres)


def test_several_faces_in_a_picture_are_each_found_once() -> None:
    canvas, centres = collage(face_crops(6), side=150)
    faces = FaceDetector().detect(canvas)[0]
    assert len(faces) == 6
    assert count_found(faces, centres, reach=30) == 6
    assert [face.score for face in faces] == sorted((face.score for face in faces), reverse=True)


def test_pyramid_goes_from_the_smallest_face_to_the_whole_picture() -> None:
    sizes = list(pyramid(240, 320, DetectorConfig(min_face=24, pyramid_factor=0.5)))
    assert sizes == [(120, 160), (60, 80), (30, 40), (15, 20)]
    assert list(pyramid(23, 500, DetectorConfig(min_face=24))) == []


def test_crops_average_what_a_box_frames_and_go_on_outside() -> None:
    image = torch.rand(3, 30, 40)
    boxes = torch.tensor([[4.0, 6.0, 16.0, 18.0], [-6.0, -6.0, 6.0, 6.0], [100.0, 100.0, 112.0, 112.0]])
    found = crops(image, boxes, 6)
    torch.testing.assert_close(found[0], torch.nn.functional.avg_pool2d(image[:, 6:18, 4:16], 2))
    torch.testing.assert_close(found[1][:, 3:, 3:], torch.nn.functional.avg_pool2d(image[:, :6, :6], 2))
    torch.testing.assert_close(found[1][:, :3, :3], image[:, :1, :1].expand(3, 3, 3))
    torch.testing.assert_close(found[2], image[:, -1:, -1:].expand(3, 6, 6))


ORL_LANDMARKS = np.array([[30.0, 52.5], [63.5, 52.8], [46.4, 70.7], [32.0, 86.6], [60.9, 87.0]])


@pytest.mark.parametrize(("people", "each"), [(20, 1), pytest.param(40, 10, marks=pytest.mark.slow)])
def test_every_orl_picture_has_one_face_in_its_place(people: int, each: int) -> None:
    detector, images = FaceDetector(DetectorConfig(padding=20)), orl(people, each)
    found = [faces for part in images.split(20) for faces in detector.detect(part)]
    assert {len(faces) for faces in found} == {1}
    mean = np.mean([faces[0].landmarks for faces in found], axis=0)
    np.testing.assert_allclose(mean, ORL_LANDMARKS, atol=1.5 if people == 40 else 3)


@pytest.mark.slow
def test_collages_of_orl_faces() -> None:
    images, detector, random = orl(40, 10), FaceDetector(), np.random.default_rng(0)
    found = people = false = 0
    for _ in range(100):
        chosen = random.choice(400, random.integers(2, 7), replace=False)
        canvas, centres = collage(images[chosen], side=150)
        faces = detector.detect(canvas)[0]
        hits = count_found(faces, centres, reach=30)
        found, people, false = found + hits, people + len(chosen), false + len(faces) - hits
    assert found / people >= 0.98
    assert false / 100 <= 0.05
