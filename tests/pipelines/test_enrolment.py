"""Enrolling, identifying, checking a claim and comparing, from folders of pictures, with a model on disk; and each mistake's one line."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from components.config import Config
from components.errors import UserError
from components.faces.gallery import Gallery, read_gallery
from components.families import catalogue
from components.families.classifier import Classifier
from components.families.contract import Family
from components.families.model_folder import save_model
from pipelines import enrolment
from pipelines.enrolment import check_claim, compare, enroll, identify
from tests.faces.samples import crops, shots

PADDED = ("detector.padding=30",)


class PixelConfig(Config):
    image_size: tuple[int, int] = (56, 56)
    image_channels: int = 1
    threshold: float | None = 0.9
    false_accept_rate: float | None = 0.01


class Pixels(Family):
    """Projections of small pictures of the inner face: tells apart what looks different, without training."""

    Config = PixelConfig

    def __init__(self, config: PixelConfig) -> None:
        super().__init__(config)
        self.projection = nn.Parameter(torch.randn(196, 64, generator=torch.Generator().manual_seed(0)))

    def embed(self, images: Tensor) -> Tensor:
        small = F.adaptive_avg_pool2d(images[..., 12:44, 12:44], 14).flatten(1)
        return F.normalize((small - small.mean(1, keepdim=True)) @ self.projection)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, people with two pictures each, other pictures of them and of a stranger, and pictures without a face and with two."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(catalogue.FAMILIES, "pixels", Pixels)
    save_model(Pixels(PixelConfig()), "model")
    for person, pictures in enumerate(shots(4, 3)):
        name = ("ana", "bo", "cy", "stranger")[person]
        for number, picture in enumerate(pictures):
            known = name != "stranger" and number < 2
            file = Path("people" if known else "asked") / (f"{name}/{number}.png" if known else f"{name}-{number}.jpg")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(file)
    Path("odd").mkdir()
    Image.fromarray(np.full((120, 120), 90, np.uint8)).save("odd/wall.png")
    Image.fromarray(np.hstack([np.pad(face.numpy(), 20, constant_values=110) for face in crops(2)[:, 0]])).save("odd/pair.png")
    Path("odd/broken.png").write_bytes(Path("people/ana/0.png").read_bytes()[:900])
    return tmp_path


def test_who_is_enrolled_is_told_from_strangers(world: Path) -> None:
    enrolled = enroll("model", "people", "gallery.arrow", PADDED)
    assert enrolled.values["enrolled"] == {"ana": 2, "bo": 2, "cy": 2}
    assert (enrolled.values["threshold"], enrolled.values["false_accept_rate"]) == (0.9, 0.01)
    found = identify("model", "gallery.arrow", "asked")
    names = {Path(picture["picture"]).stem: [face["name"] for face in picture["faces"]] for picture in found.values["pictures"]}
    assert names == {"ana-2": ["ana"], "bo-2": ["bo"], "cy-2": ["cy"], "stranger-0": [None], "stranger-1": [None], "stranger-2": [None]}
    assert found.lines[0].startswith("asked/ana-2.jpg: ana (0.9")
    assert found.lines[-1].startswith("asked/stranger-2.jpg: unknown (")
    json.dumps(found.values)


def test_a_picture_can_show_nobody_or_several(world: Path) -> None:
    enroll("model", "people", "gallery.arrow", PADDED)
    nobody, pair = (
        identify("model", "gallery.arrow", f"odd/{name}.png", ["detector.padding=0"], threshold=0.8) for name in ("wall", "pair")
    )
    assert nobody.values["pictures"][0]["faces"] == []
    assert nobody.lines == ["odd/wall.png: no face"]
    boxes = sorted((face["box"], face["name"]) for face in pair.values["pictures"][0]["faces"])
    assert [name for _, name in boxes] == ["ana", "bo"]


def test_a_threshold_decides(world: Path) -> None:
    enroll("model", "people", "gallery.arrow", PADDED)
    strict = identify("model", "gallery.arrow", "asked/ana-2.jpg", threshold=0.9999)
    assert strict.values["pictures"][0]["faces"][0]["name"] is None
    assert compare("model", "asked/ana-2.jpg", "asked/stranger-0.jpg", PADDED, threshold=-1.0).values["same"]
    assert read_gallery("gallery.arrow").header.threshold == 0.9


def test_claims_are_checked(world: Path) -> None:
    enroll("model", "people", "gallery.arrow", PADDED)
    assert check_claim("model", "gallery.arrow", "bo", "asked/bo-2.jpg").values["accepted"]
    lie = check_claim("model", "gallery.arrow", "bo", "asked/ana-2.jpg")
    assert not lie.values["accepted"]
    assert lie.lines[0].startswith("asked/ana-2.jpg: is not bo (cosine ")


def test_two_pictures_are_compared(world: Path) -> None:
    same = compare("model", "people/cy/0.png", "asked/cy-2.jpg", PADDED)
    other = compare("model", "people/cy/0.png", "asked/bo-2.jpg", PADDED)
    assert same.values["same"]
    assert same.values["score"] > 0.9
    assert same.lines[0].startswith("the same person (cosine 0.9")
    assert not other.values["same"]
    assert other.lines[0].startswith("different people (")


def test_people_are_added_to_a_gallery(world: Path) -> None:
    enroll("model", "people", "gallery.arrow", PADDED)
    Path("more/dan").mkdir(parents=True)
    shutil.copy("asked/stranger-0.jpg", "more/dan")
    answer = enroll("model", "more", "gallery.arrow")  # options of faces are those of the gallery
    assert answer.values["people"] == 4
    assert identify("model", "gallery.arrow", "asked/stranger-2.jpg").values["pictures"][0]["faces"][0]["name"] == "dan"
    before = Path("gallery.arrow").read_bytes()
    assert enroll("model", "more", "gallery.arrow", replace=True).values["people"] == 4
    assert Path("gallery.arrow").read_bytes() == before


def test_who_enrols_at_once_loses_nobody(world: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second begins to write while the first is between reading the gallery and writing it."""
    gallery = f"{s3}/gallery.arrow"
    enroll("model", "people", gallery, PADDED)
    for number, name in enumerate(("dan", "eve")):
        Path(f"more-{name}/{name}").mkdir(parents=True)
        shutil.copy(f"asked/stranger-{number}.jpg", f"more-{name}/{name}")
    second = threading.Thread(target=enroll, args=("model", "more-eve", gallery))
    write = enrolment.write_gallery

    def write_late(people: Gallery, url: str) -> None:
        if second.ident is None:
            second.start()
            second.join(3.0)  # without the lease it ends within
        write(people, url)

    monkeypatch.setattr(enrolment, "write_gallery", write_late)
    enroll("model", "more-dan", gallery)
    second.join()
    assert {"dan", "eve"} <= set(read_gallery(gallery).names)


def test_galleries_outlive_a_new_threshold_of_the_model(world: Path) -> None:
    enroll("model", "people", "gallery.arrow", PADDED)
    shutil.rmtree("model")
    save_model(Pixels(PixelConfig(threshold=0.5)), "model")
    assert identify("model", "gallery.arrow", "asked/ana-2.jpg").values["threshold"] == 0.9


def no_threshold() -> None:
    shutil.rmtree("model")
    save_model(Pixels(PixelConfig(threshold=None, false_accept_rate=None)), "model")


def other_model() -> None:
    enroll("model", "people", "gallery.arrow", PADDED)
    shutil.rmtree("model")
    model = Pixels(PixelConfig())
    model.projection.data += 1
    save_model(model, "model")


def no_embeddings() -> None:
    shutil.rmtree("model")
    save_model(Classifier(Classifier.Config(num_classes=2)), "model")


def with_file(source: str, target: str) -> Callable[[], None]:
    def copy() -> None:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)

    return copy


def enrolled() -> None:
    enroll("model", "people", "gallery.arrow", PADDED)


def nothing() -> None:
    pass


MISTAKES: list[tuple[str, Callable[[], object], Callable[[], object], str]] = [
    ("no face", with_file("odd/wall.png", "people/bo/wall.png"), lambda: enrolled(), r"people/bo/wall\.png shows no face"),
    ("two faces", with_file("odd/pair.png", "people/bo/pair.png"), lambda: enrolled(), r"people/bo/pair\.png shows 2 faces"),
    ("broken", with_file("odd/broken.png", "people/bo/broken.png"), lambda: enrolled(), r"people/bo/broken\.png is no readable"),
    ("no pictures", with_file("model/config.json", "people/zoe/notes.json"), lambda: enrolled(), r"people/zoe holds no pictures"),
    ("stray", with_file("odd/pair.png", "people/pair.png"), lambda: enrolled(), r"people/pair\.png lies beside"),
    ("empty folder", lambda: Path("empty").mkdir(), lambda: enroll("model", "empty", "gallery.arrow"), "empty holds nothing"),
    ("no folder", nothing, lambda: enroll("model", "absent", "gallery.arrow"), "absent does not exist"),
    ("no threshold", no_threshold, lambda: enrolled(), "no threshold of its own"),
    ("no threshold to compare", no_threshold, lambda: compare("model", "people/bo/0.png", "people/bo/1.png", PADDED), "no threshold"),
    ("bad threshold", nothing, lambda: enroll("model", "people", "gallery.arrow", PADDED, threshold=2.0), "2.0 is no cosine"),
    ("other model", other_model, lambda: identify("model", "gallery.arrow", "asked"), "was made by the model .* this is the model"),
    ("other model enrols", other_model, lambda: enroll("model", "people", "gallery.arrow", replace=True), "was made by the model"),
    ("no embeddings", no_embeddings, lambda: enrolled(), "holds a Classifier, which makes no embeddings"),
    ("known already", enrolled, lambda: enrolled(), "gallery.arrow has 'ana' already"),
    ("other options", enrolled, lambda: enroll("model", "people", "gallery.arrow", ["border=zeros"]), "other options of faces"),
    ("other alignment", enrolled, lambda: identify("model", "gallery.arrow", "asked", ["border=zeros"]), "another alignment"),
    ("bad option", nothing, lambda: enroll("model", "people", "gallery.arrow", ["detector.pading=2"]), "pading"),
    ("no gallery", nothing, lambda: identify("model", "gallery.arrow", "asked"), "gallery.arrow"),
    ("foreign gallery", nothing, lambda: identify("model", "people/bo/0.png", "asked"), "no readable gallery"),
    ("nothing asked", enrolled, lambda: identify("model", "gallery.arrow", "absent"), "absent does not exist"),
    ("no pictures asked", enrolled, lambda: identify("model", "gallery.arrow", "model"), "model holds no PNG"),
    ("broken asked", enrolled, lambda: identify("model", "gallery.arrow", "odd/broken.png"), r"broken\.png is no readable"),
    ("not a picture", enrolled, lambda: identify("model", "gallery.arrow", "model/config.json"), r"config\.json is no readable"),
    ("unknown name", enrolled, lambda: check_claim("model", "gallery.arrow", "anna", "asked/bo-2.jpg"), "did you mean 'ana'"),
    ("wall compared", nothing, lambda: compare("model", "people/bo/0.png", "odd/wall.png", PADDED), r"odd/wall\.png shows no face"),
]


@pytest.mark.parametrize(("spoil", "call", "says"), [case[1:] for case in MISTAKES], ids=[case[0] for case in MISTAKES])
def test_mistakes_name_the_culprit_and_change_nothing(
    world: Path, spoil: Callable[[], object], call: Callable[[], object], says: str
) -> None:
    spoil()
    gallery = Path("gallery.arrow")
    before = gallery.read_bytes() if gallery.exists() else None
    with pytest.raises(UserError, match=says):
        call()
    assert (gallery.read_bytes() if gallery.exists() else None) == before
