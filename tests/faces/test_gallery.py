"""Galleries: who is enrolled is found again, what is damaged or foreign is refused, and a failure loses nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from components import storage
from components.errors import UserError
from components.faces.aligner import FaceConfig
from components.faces.gallery import METADATA, Gallery, GalleryHeader, Match, read_gallery, write_gallery

DIM = 5
HEADER = GalleryHeader(model="0123456789abcdef", embedding_dim=DIM, threshold=0.6, false_accept_rate=0.001)


def vectors(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)


def three_people() -> Gallery:
    return Gallery.empty(HEADER).enrol({"Ana": vectors(3, 1), "Böb": vectors(1, 2), "李": vectors(2, 3)})


def test_an_embedding_is_the_normalised_mean_of_normalised_ones() -> None:
    pictures = vectors(3, 1)
    units = pictures / np.linalg.norm(pictures, axis=1, keepdims=True)
    mean = units.mean(0)
    gallery = Gallery.empty(HEADER).enrol({"Ana": pictures * np.array([[1], [50], [0.02]], np.float32)})
    np.testing.assert_allclose(gallery.embeddings[0], mean / np.linalg.norm(mean), atol=1e-6)
    assert gallery.pictures == (3,)


def test_identify_is_the_most_similar_person_from_the_threshold_on() -> None:
    header = HEADER.model_copy(update={"embedding_dim": 2})
    gallery = Gallery.empty(header).enrol({"east": np.array([[1.0, 0.0]]), "north": np.array([[0.0, 2.0]])})
    assert gallery.identify(np.array([3.0, 4.0], np.float32)) == Match("north", pytest.approx(0.8))
    assert gallery.identify(np.array([0.6, -0.8], np.float32)) == Match("east", pytest.approx(0.6))
    assert gallery.identify(np.array([0.59, -0.8], np.float32)) == Match(None, pytest.approx(0.59 / np.hypot(0.59, 0.8)))
    assert gallery.identify(np.array([1.0, 1.0], np.float32)).name == "east"  # of equals the first
    assert Gallery.empty(header).identify(np.array([1.0, 0.0])) == Match(None, -1.0)


def test_verify_accepts_from_the_threshold_on() -> None:
    header = HEADER.model_copy(update={"embedding_dim": 2, "threshold": 1.0})
    gallery = Gallery.empty(header).enrol({"east": np.array([[1.0, 0.0]])})
    yes, no = gallery.verify("east", np.array([7.0, 0.0])), gallery.verify("east", np.array([1.0, 0.1]))
    assert (yes.accepted, yes.score, yes.threshold) == (True, 1.0, 1.0)
    assert not no.accepted
    assert gallery.with_threshold(0.99).verify("east", np.array([1.0, 0.1])).accepted
    assert gallery.with_threshold(0.99).header.false_accept_rate is None
    with pytest.raises(UserError, match=r"'Esat'.*did you mean 'east'"):
        gallery.verify("Esat", np.array([1.0, 0.0]))


def test_people_are_added_and_replaced_only_when_asked() -> None:
    gallery = three_people()
    more = gallery.enrol({"Dan": vectors(1, 4)})
    assert more.names == ("Ana", "Böb", "李", "Dan")
    np.testing.assert_array_equal(more.embeddings[:3], gallery.embeddings)
    with pytest.raises(UserError, match="'Böb' is in the gallery already"):
        gallery.enrol({"Eve": vectors(1, 5), "Böb": vectors(4, 6)})
    anew = gallery.enrol({"Böb": vectors(4, 6)}, replace=True)
    assert sorted(zip(anew.names, anew.pictures, strict=True)) == [("Ana", 3), ("Böb", 4), ("李", 2)]
    np.testing.assert_array_equal(anew.embeddings[anew.names.index("Böb")], Gallery.empty(HEADER).enrol({"x": vectors(4, 6)}).embeddings[0])
    assert gallery.names == ("Ana", "Böb", "李")


@pytest.mark.parametrize("gallery", [three_people(), Gallery.empty(HEADER)], ids=["people", "empty"])
def test_a_gallery_is_read_as_written(gallery: Gallery, tmp_path: Path) -> None:
    url = str(tmp_path / "new" / "people.arrow")
    write_gallery(gallery, url)
    found = read_gallery(url, HEADER.model)
    assert (found.header, found.names, found.pictures) == (gallery.header, gallery.names, gallery.pictures)
    np.testing.assert_array_equal(found.embeddings, gallery.embeddings)
    write_gallery(found, url + "2")
    assert Path(url).read_bytes() == Path(url + "2").read_bytes()


def test_any_arrow_library_reads_it(tmp_path: Path) -> None:
    gallery = three_people()
    write_gallery(gallery, str(tmp_path / "people.arrow"))
    table = pa.ipc.open_file(tmp_path / "people.arrow").read_all()
    assert table.column_names == ["name", "embedding", "pictures"]
    np.testing.assert_array_equal(np.stack(table["embedding"].to_pylist()), gallery.embeddings)
    assert b"0123456789abcdef" in table.schema.metadata[METADATA]


def test_the_options_of_faces_come_back(tmp_path: Path) -> None:
    faces = FaceConfig.parse({"detector": {"padding": 20}, "border": "zeros"}, "test")
    write_gallery(Gallery.empty(HEADER.model_copy(update={"faces": faces})), str(tmp_path / "g"))
    assert read_gallery(str(tmp_path / "g")).header.faces == faces


def test_a_gallery_of_another_model_is_refused_with_both(tmp_path: Path) -> None:
    write_gallery(three_people(), str(tmp_path / "g"))
    with pytest.raises(UserError, match="0123456789abcdef, this is the model fedcba9876543210"):
        read_gallery(str(tmp_path / "g"), "fedcba9876543210")


def not_a_gallery(file: Path) -> None:
    with pa.ipc.new_file(str(file), pa.schema([("name", pa.string())])):
        pass


def other_columns(file: Path) -> None:
    table = pa.ipc.open_file(file.read_bytes()).read_all()
    renamed = table.rename_columns(["who", "embedding", "pictures"]).replace_schema_metadata(table.schema.metadata)
    with pa.ipc.new_file(str(file), renamed.schema) as writer:
        writer.write_table(renamed)


def other_version(file: Path) -> None:
    table = pa.ipc.open_file(file.read_bytes()).read_all()
    header = table.schema.metadata[METADATA].replace(b'"version":1', b'"version":2')
    with pa.ipc.new_file(str(file), table.schema.with_metadata({METADATA: header})) as writer:
        writer.write_table(table)


def flipped(place: bytes) -> Callable[[Path], None]:
    """Changes a bit at every place with these bytes: Arrow writes a schema twice."""

    def flip(file: Path) -> None:
        data = file.read_bytes()
        assert place in data
        file.write_bytes(data.replace(place, bytes([place[0] ^ 1]) + place[1:]))

    return flip


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda file: file.write_text("hello"), "no readable gallery"),
        (lambda file: file.write_bytes(b""), "no readable gallery"),
        (lambda file: file.write_bytes(file.read_bytes()[:-200]), "no readable gallery"),
        (not_a_gallery, "an Arrow file but no gallery"),
        (other_columns, "other columns"),
        (other_version, "no readable gallery.*version"),
        (flipped(three_people().embeddings[1].tobytes()), "was altered"),
        (flipped(b"Ana"), "was altered"),
        (flipped(b'6,"false_accept'), "was altered"),
        (lambda file: file.unlink(), "no such file"),
    ],
)
def test_damaged_and_foreign_files_are_refused(spoil: Callable[[Path], object], says: str, tmp_path: Path) -> None:
    file = tmp_path / "people.arrow"
    write_gallery(three_people(), str(file))
    spoil(file)
    with pytest.raises(UserError, match=says) as caught:
        read_gallery(str(file))
    assert str(file) in str(caught.value)


def test_every_flipped_byte_is_noticed_or_harmless(tmp_path: Path) -> None:
    file = tmp_path / "people.arrow"
    gallery = three_people()
    write_gallery(gallery, str(file))
    whole = file.read_bytes()
    for place in range(0, len(whole), 7):
        data = bytearray(whole)
        data[place] ^= 0x10
        file.write_bytes(data)
        try:
            found = read_gallery(str(file), HEADER.model)
        except UserError:
            continue
        assert (found.header, found.names, found.pictures) == (gallery.header, gallery.names, gallery.pictures)
        np.testing.assert_array_equal(found.embeddings, gallery.embeddings)


def test_a_failed_write_leaves_the_gallery_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path / "people.arrow")
    write_gallery(three_people(), url)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(storage.os, "fsync", full)
        with pytest.raises(UserError, match="disk is full"):
            write_gallery(three_people().enrol({"Dan": vectors(1, 4)}), url)
    assert read_gallery(url).names == three_people().names
    assert [file.name for file in tmp_path.iterdir()] == ["people.arrow"]


def test_on_s3(s3: str) -> None:
    url = storage.join(s3, "galleries", "people.arrow")
    write_gallery(three_people(), url)
    assert read_gallery(url, HEADER.model).names == three_people().names
