"""Every kind of source: its rows arrive unchanged, and what is malformed is one line that names the culprit."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from clusters.preprocess import prepare
from components.data.columns import Column
from components.data.dataset import Dataset
from components.data.prepare_config import PrepareConfig
from components.errors import UserError
from tests.data.sources import (
    encoded,
    idx_bytes,
    labels,
    pictures,
    tar_bytes,
    write,
    write_idx,
    write_parquet,
    write_pictures,
    write_tar,
)


def made(tmp_path: Path, source: Path, split: str = "train", **options: object) -> tuple[Dataset, dict[str, np.ndarray]]:
    prepare(str(source), str(tmp_path / "out"), PrepareConfig(**options))
    dataset = Dataset.open(str(tmp_path / "out"), split)
    return dataset, dataset.take(np.arange(dataset.num_rows))


def together(tmp_path: Path, source: Path, **options: object) -> dict[str, np.ndarray]:
    """Rows of both splits, for sources that have only one."""
    train, test = (made(tmp_path, source, split, **options)[1] for split in ("train", "test"))
    return {name: np.concatenate([train[name], test[name]]) for name in train}


def same_rows(found: dict[str, np.ndarray], images: np.ndarray, classes: np.ndarray) -> bool:
    """Whether the same (picture, label) pairs are there, in any order."""
    pairs = sorted((image.tobytes(), int(label)) for image, label in zip(found["image"], found["label"], strict=True))
    return pairs == sorted((image.tobytes(), int(label)) for image, label in zip(images, classes, strict=True))


@pytest.mark.parametrize("compressed", [True, False])
def test_idx_pairs_become_splits_in_their_order(tmp_path: Path, compressed: bool) -> None:
    source = tmp_path / "source"
    first = write_idx(source, "train", 40, 0, compressed)
    more = write_idx(source, "train-more", 12, 1, compressed)
    test = write_idx(source, "t10k", 10, 2, compressed)
    dataset, rows = made(tmp_path, source, rows_per_shard=16)
    assert dataset.shape.columns == {"image": Column(dtype="uint8", shape=(1, 6, 5)), "label": Column(dtype="int64")}
    assert dataset.class_names == ("0", "1", "2")
    assert (rows["image"][:, 0] == np.concatenate([first[0], more[0]])).all()
    assert (rows["label"] == np.concatenate([first[1], more[1]])).all()
    _, rows = made(tmp_path, source, "test")
    assert (rows["image"][:, 0] == test[0]).all()
    assert (rows["label"] == test[1]).all()


def test_the_shipped_images_are_those_of_the_files(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[2] / "datasets" / "fashion-mnist"
    dataset, rows = made(tmp_path, shipped, class_names=tuple("abcdefghij"))
    data = gzip.decompress((shipped / "train-images-idx3-ubyte.gz").read_bytes())
    assert dataset.num_rows == 16_000
    assert rows["image"].tobytes() == data[16:]
    assert dataset.class_names == tuple("abcdefghij")


@pytest.mark.parametrize("suffix", [".png", ".pgm", ".jpg"])
def test_folders_of_pictures_by_class(tmp_path: Path, suffix: str) -> None:
    written = write_pictures(tmp_path / "source", ("bag", "coat", "shoe"), 12, suffix=suffix)
    if suffix == ".jpg":  # lossy: the oracle is Pillow's own decoding
        written = {path: np.asarray(Image.open(tmp_path / "source" / path)) for path in written}
    found = together(tmp_path, tmp_path / "source")
    assert Dataset.open(str(tmp_path / "out")).class_names == ("bag", "coat", "shoe")
    classes = np.array([["bag", "coat", "shoe"].index(path.split("/")[0]) for path in written])
    assert same_rows(found, np.stack(list(written.values())), classes)


def test_folders_of_pictures_with_splits_above_the_classes(tmp_path: Path) -> None:
    train = write_pictures(tmp_path / "source" / "train", ("a", "b"), 5, seed=1)
    test = write_pictures(tmp_path / "source" / "test", ("a", "b"), 3, seed=2)
    _, rows = made(tmp_path, tmp_path / "source")
    assert same_rows(rows, np.stack(list(train.values())), np.array([path[0] == "b" for path in train]))
    _, rows = made(tmp_path, tmp_path / "source", "test")
    assert same_rows(rows, np.stack(list(test.values())), np.array([path[0] == "b" for path in test]))


def test_pictures_without_class_folders_are_unlabelled(tmp_path: Path) -> None:
    write_pictures(tmp_path / "source", (".",), 20)
    dataset, _ = made(tmp_path, tmp_path / "source")
    assert list(dataset.shape.columns) == ["image"]
    assert dataset.class_names == ()


def test_colour_grey_and_size(tmp_path: Path) -> None:
    grey, colour = pictures(1, 0, (9, 12))[0], pictures(1, 1, (20, 10, 3))[0]
    write(tmp_path / "source" / "a" / "grey.png", encoded(grey))
    write(tmp_path / "source" / "b" / "colour.png", encoded(colour))
    found = together(tmp_path, tmp_path / "source", size=8, channels=3)
    assert found["image"].shape[1:] == (3, 8, 8)
    # cut to the square in the middle, then scaled: the oracle states the two steps
    square = Image.fromarray(colour).resize((8, 8), Image.Resampling.BICUBIC, box=(0, 5, 10, 15))
    assert any((image == np.moveaxis(np.asarray(square), 2, 0)).all() for image in found["image"])
    stretched = together(tmp_path, tmp_path / "source", size=[8, 4], fit="stretch", channels=1)
    assert stretched["image"].shape[1:] == (1, 8, 4)
    expected = np.asarray(Image.fromarray(grey).resize((4, 8), Image.Resampling.BICUBIC))
    assert any((image[0] == expected).all() for image in stretched["image"])


def test_sixteen_bits_palettes_and_turned_photographs(tmp_path: Path) -> None:
    source = tmp_path / "source"
    deep = np.array([[0, 255, 256], [65_535, 32_768, 511]], np.uint16)
    write(source / "test" / "a" / "deep.pgm", b"P5 3 2 65535\n" + deep.astype(">u2").tobytes())
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned by 90 degrees
    photo = np.full((3, 2), 90, np.uint8)
    photo[0] = 200
    write(source / "train" / "a" / "photo.png", encoded(photo, exif=turned.tobytes()))
    _, rows = made(tmp_path, source)
    assert rows["image"].tolist() == [[np.rot90(photo, -1).tolist()]]
    _, rows = made(tmp_path, source, "test")
    assert rows["image"].tolist() == [[(deep >> 8).tolist()]]


@pytest.mark.parametrize(
    ("shape", "stored"),
    [((6, 5), (1, 6, 5)), ((6, 5, 1), (1, 6, 5)), ((6, 5, 3), (3, 6, 5)), ((3, 6, 5), (3, 6, 5)), ((1, 6, 5), (1, 6, 5))],
)
def test_npz_arrays_in_the_usual_shapes(tmp_path: Path, shape: tuple[int, ...], stored: tuple[int, ...]) -> None:
    images = pictures(20, 0, shape)
    (tmp_path / "source").mkdir()
    np.savez(tmp_path / "source" / "data.npz", x_train=images, y_train=labels(20)[:, None], x_test=images[:4], y_test=labels(4))
    dataset, rows = made(tmp_path, tmp_path / "source" / "data.npz")
    assert dataset.shape.columns["image"].shape == stored
    channels_last = len(shape) == 3 and shape[2] in (1, 3)
    expected = np.moveaxis(images, 3, 1) if channels_last else images.reshape(20, *stored)
    assert (rows["image"] == expected).all()
    assert (rows["label"] == labels(20)).all()


def test_npz_features_of_other_types(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(30, 2, 3))
    np.savez(tmp_path / "train.npz", features=features, codes=np.arange(30, dtype=np.uint16), flags=np.arange(30) % 2 == 0)
    np.savez(tmp_path / "test.npz", features=features, codes=np.arange(30, dtype=np.uint16), flags=np.arange(30) % 2 == 0)
    source = tmp_path / "source"
    source.mkdir()
    for name in ("train.npz", "test.npz"):
        (tmp_path / name).rename(source / name)
    dataset, rows = made(tmp_path, source)
    assert {name: column.dtype for name, column in dataset.shape.columns.items()} == {
        "codes": "uint16",
        "features": "float32",
        "flags": "uint8",
    }
    assert (rows["features"] == features.astype(np.float32)).all()
    dataset, _ = made(tmp_path, source, columns=["codes"])
    assert list(dataset.shape.columns) == ["codes"]


def test_parquet_with_pictures_numbers_and_lists(tmp_path: Path) -> None:
    count = 25
    images, classes = pictures(count), labels(count)
    weights = np.random.default_rng(0).normal(size=(count, 2)).astype(np.float32)
    columns = {
        "photo": [{"bytes": encoded(pixels), "path": f"{n}.png"} for n, pixels in enumerate(images)],
        "label": classes,
        "weights": pa.FixedSizeListArray.from_arrays(pa.array(weights.reshape(-1)), 2),
        "age": np.arange(count, dtype=np.int16),
    }
    for part in ("train", "test"):
        write_parquet(tmp_path / "source" / f"{part}-00000.parquet", **columns)
    dataset, rows = made(tmp_path, tmp_path / "source", rows_per_shard=10)
    assert list(dataset.shape.columns) == ["age", "image", "label", "weights"]
    assert (rows["image"][:, 0] == images).all()
    assert (rows["label"] == classes).all()
    assert (rows["weights"] == weights).all()
    assert rows["age"].dtype == np.int32


@pytest.mark.parametrize(("suffix", "label"), [(".tar", "cls"), (".tar.gz", "json"), (".tgz", "cls")])
def test_webdataset_tars(tmp_path: Path, suffix: str, label: str) -> None:
    images, classes = write_tar(tmp_path / "source" / f"train-000{suffix}", 20, 0, label)
    more = write_tar(tmp_path / "source" / f"train-001{suffix}", 7, 1, label)
    write_tar(tmp_path / "source" / f"test-000{suffix}", 5, 2, label)
    _, rows = made(tmp_path, tmp_path / "source", rows_per_shard=8)
    assert (rows["image"][:, 0] == np.concatenate([images, more[0]])).all()
    assert (rows["label"] == np.concatenate([classes, more[1]])).all()


def test_a_webdataset_writer_is_understood(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    images, classes = pictures(12), labels(12)
    (tmp_path / "source").mkdir()
    with webdataset.TarWriter(str(tmp_path / "source" / "train.tar")) as writer:
        for number, (pixels, label) in enumerate(zip(images, classes, strict=True)):
            writer.write({"__key__": f"{number:05d}", "png": encoded(pixels), "cls": int(label), "txt": "a caption"})
    found = together(tmp_path, tmp_path / "source", holdout=0.3)
    assert same_rows(found, images, classes)


def test_hidden_and_other_files_are_left_alone(tmp_path: Path) -> None:
    write_idx(tmp_path / "source", "train", 30)
    for name in ("LICENSE", "README.md", ".hidden-images-idx3-ubyte", "_x/data.npz", ".git/a.png"):
        write(tmp_path / "source" / name, b"x")
    dataset, _ = made(tmp_path, tmp_path / "source")
    assert len(dataset.shape.columns) == 2


def _tar(**members: bytes) -> Callable[[Path], None]:
    return lambda source: write(source / "x.tar", tar_bytes(members)) and None


def _odd_tar(member: tarfile.TarInfo) -> Callable[[Path], None]:
    def damage(source: Path) -> None:
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w") as archive:
            good = tarfile.TarInfo("0.png")
            good.size = len(PNG)
            archive.addfile(good, io.BytesIO(PNG))
            archive.addfile(member, io.BytesIO(b""))
        write(source / "x.tar", sink.getvalue())

    return damage


def _member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def _cut_tar(keep: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(source: Path) -> None:
        write_tar(source / "x.tar", 5)
        write(source / "x.tar", keep((source / "x.tar").read_bytes()))

    return damage


def _npz(**arrays: np.ndarray) -> Callable[[Path], None]:
    def damage(source: Path) -> None:
        source.mkdir()
        np.savez(source / "x.npz", allow_pickle=True, **arrays)

    return damage


def _idx(images: bytes, classes: bytes | None) -> Callable[[Path], None]:
    def damage(source: Path) -> None:
        write(source / "train-images-idx3-ubyte", images)
        if classes is not None:
            write(source / "train-labels-idx1-ubyte", classes)

    return damage


def _parquet(**columns: object) -> Callable[[Path], None]:
    return lambda source: write_parquet(source / "x.parquet", **columns) and None


def _files(**files: bytes) -> Callable[[Path], None]:
    def damage(source: Path) -> None:
        for name, data in files.items():
            write(source / name.replace("__", "/").replace("_dot_", "."), data)

    return damage


PNG = encoded(pictures(1)[0])
JPEG = encoded(pictures(1, 0, (40, 40))[0], ".jpg")
LARGE_PNG = encoded(pictures(1, 0, (8, 8))[0])
COLOUR_PNG = encoded(pictures(1, 0, (6, 5, 3))[0])
IMAGES, LABELS = idx_bytes(pictures(6)), idx_bytes(labels(6))
NAN = np.ones((40, 2))
NAN[33, 1] = np.nan

BAD_SOURCES: dict[str, tuple[Callable[[Path], object], dict, str]] = {
    "missing": (lambda source: None, {}, r"source .*/source does not exist"),
    "empty folder": (lambda source: source.mkdir(), {}, r"source .*/source holds no files"),
    "unknown kind": (_files(data_dot_csv=b"1,2"), {}, r"no file of a known kind \(there is data\.csv\); known: IDX"),
    "a pickle": (_files(data_dot_pkl=b"\x80\x04N."), {}, r"no file of a known kind \(there is data\.pkl\)"),
    "mixed kinds": (_files(a__x_dot_png=PNG, x_dot_tar=b""), {}, r"mixes kinds of files: a/x\.png \(pictures\), x\.tar \(tar\)"),
    "idx without labels": (_idx(IMAGES, None), {}, r"train-images-idx3-ubyte has no file of labels beside it"),
    "idx cut short": (_idx(IMAGES[:-9], LABELS), {}, r"train-images-idx3-ubyte has \d+ bytes, its header speaks of .*\(6, 6, 5\)"),
    "idx too long": (_idx(IMAGES + b"1", LABELS), {}, r"train-images-idx3-ubyte has \d+ bytes, its header speaks of"),
    "idx without a header": (_idx(b"\0\0", LABELS), {}, r"train-images-idx3-ubyte is no IDX file"),
    "idx of another format": (_idx(b"GIF89a....", LABELS), {}, r"train-images-idx3-ubyte is no IDX file"),
    "idx of floats": (_idx(struct.pack(">HBBI", 0, 0x0D, 1, 0), LABELS), {}, r"IDX type 0x0d, expected unsigned bytes"),
    "idx of vectors": (_idx(idx_bytes(pictures(6, 0, (4,))), LABELS), {}, r"array of shape \(6, 4\), expected 3 or 4 dimensions"),
    "idx with too few labels": (_idx(IMAGES, idx_bytes(labels(5))), {}, r"has 6 images, .*train-labels-idx1-ubyte has 5 labels"),
    "idx without rows": (_idx(idx_bytes(pictures(0)), idx_bytes(labels(0))), {}, r"has no rows in its idx files"),
    "idx gzip cut short": (
        _files(**{"t-images-idx3-ubyte_dot_gz": gzip.compress(IMAGES)[:-20], "t-labels-idx1-ubyte": LABELS}),
        {},
        r"t-images-idx3-ubyte\.gz is no whole gzip file",
    ),
    "idx label beyond the names": (_idx(IMAGES, LABELS), {"class_names": ["a", "b"]}, r"labels-idx1-ubyte has the label 2, .*2 names"),
    "pictures of several sizes": (_files(a__1_dot_png=PNG, a__2_dot_png=LARGE_PNG), {}, r"a/2\.png, row 0, is a picture of 8 x"),
    "pictures grey and colour": (_files(a__1_dot_png=PNG, a__2_dot_png=COLOUR_PNG), {}, r"a/2\.png.* 3 channels.*give channels="),
    "picture cut short": (_files(a__1_dot_png=PNG, a__2_dot_png=PNG[:-30]), {}, r"a/2\.png is no readable PNG"),
    "picture without its end": (_files(a__1_dot_png=PNG, a__2_dot_png=PNG[:-14]), {}, r"a/2\.png is no readable PNG"),
    "photograph cut short": (_files(a__1_dot_jpg=JPEG, a__2_dot_jpg=JPEG[:-90]), {}, r"a/2\.jpg is no readable PNG, JPEG"),
    "grey map cut short": (_files(a__1_dot_pgm=b"P5 3 2 255\n12345"), {}, r"a/1\.pgm is no readable PNG, JPEG or PGM"),
    "picture of another kind": (_files(a__1_dot_png=PNG, a__2_dot_jpg=b"<html>"), {}, r"a/2\.jpg is no readable PNG"),
    "empty picture": (_files(a__1_dot_png=b""), {}, r"a/1\.png is no readable PNG"),
    "a format that is not read": (_files(a__1_dot_png=PNG, a__2_dot_webp=b""), {}, r"a/2\.webp is a picture of a format that is not read"),
    "a gif that says png": (_files(a__1_dot_png=encoded(pictures(1)[0], ".gif")), {}, r"a/1\.png is no readable PNG"),
    "a picture beside the classes": (_files(a__1_dot_png=PNG, stray_dot_png=PNG), {}, r"stray\.png lies beside the class folders"),
    "a picture too large": (_files(a__1_dot_pgm=b"P5 99999 99999 255\n"), {}, r"a/1\.pgm (has 99999 x 99999 pixels|is no readable)"),
    "a single row": (_files(a__1_dot_png=PNG), {}, r"split 'test' would have no rows; change holdout or limit"),
    "only a test split": (_files(test__a__1_dot_png=PNG), {}, r"only the splits \['test'\], expected one for training"),
    "npz cut short": (_files(x_dot_npz=b"PK\x03\x04 nothing"), {}, r"x\.npz is no whole \.npz archive"),
    "npz with a pickle": (_npz(x=np.array([{}, 1], dtype=object)), {}, r"x\.npz cannot be used: it holds Python objects"),
    "npz of unequal rows": (_npz(x=pictures(5), y=labels(4)), {}, r"different numbers of rows: .*'image': 5"),
    "npz of a single value": (_npz(x=np.array(3)), {}, r"array 'x' is a single value"),
    "npz of text": (_npz(x=pictures(3), note=np.array(["a", "b", "c"])), {}, r"column 'note' holds <U1, expected numbers"),
    "npz with negative labels": (_npz(x=pictures(3), y=np.array([0, -1, 1])), {}, r"x\.npz: row 1 has the label -1"),
    "npz with huge labels": (_npz(x=pictures(3), y=np.array([0, 10**7, 1])), {}, r"x\.npz: row 1 has the label 10000000"),
    "npz with fractions for labels": (_npz(x=pictures(3), y=np.array([0.5, 1, 2])), {}, r"labels are float64"),
    "npz with NaN": (_npz(x=NAN), {"rows_per_shard": 16}, r"x\.npz: column 'image' has NaN or infinity in row 33"),
    "npz with infinity in float32": (_npz(x=np.full((9, 1), 1e300)), {}, r"x\.npz: column 'image' has NaN or infinity in row 0"),
    "npz with huge integers": (_npz(x=np.full((9, 1), 2**63, np.uint64)), {}, r"'image' has 9223372036854775808, which does not fit"),
    "npz with two images": (_npz(x=pictures(3), images=pictures(3)), {}, r"two arrays would be column 'image'"),
    "an unknown column": (_npz(features=NAN), {"columns": ["feature"]}, r"no array 'feature', .*did you mean 'features'\?"),
    "parquet cut short": (_files(x_dot_parquet=b"PAR1 nothing PAR1"), {}, r"x\.parquet is no whole Parquet file"),
    "parquet with text": (_parquet(label=[1, 2], note=["a", "b"]), {}, r"column 'note' is (large_)?string, expected pictures or numbers"),
    "parquet with missing values": (_parquet(age=[1, None, 3]), {}, r"x\.parquet: column 'age' has 1 missing"),
    "parquet with missing pictures": (_parquet(image=[PNG, None]), {}, r"x\.parquet: column 'image' has 1 missing"),
    "parquet with NaN": (_parquet(age=[1.0] * 20 + [float("nan")]), {}, r"x\.parquet: column 'age' has NaN or infinity in row 20"),
    "parquet with a broken picture": (_parquet(image=[PNG, PNG[:20]] * 9), {}, r"x\.parquet column 'image' row \d+ is no readable"),
    "parquet with a bad label": (_parquet(image=[PNG] * 3, label=[0, 1, -3]), {}, r"x\.parquet: row 2 has the label -3"),
    "tables that differ": (
        lambda source: (write_parquet(source / "a.parquet", age=[1]), write_parquet(source / "b.parquet", weight=[1.5])),
        {},
        r"b\.parquet has columns weight float32, .*a\.parquet has columns age int64",
    ),
    "tar that climbs out": (_odd_tar(_member("../../etc/passwd")), {}, r"x\.tar: member '\.\./\.\./etc/passwd' climbs out"),
    "tar with an absolute name": (_odd_tar(_member("/etc/passwd")), {}, r"x\.tar: member '/etc/passwd' climbs out"),
    "tar with a link": (_odd_tar(_member("1.png", tarfile.SYMTYPE, "/etc/passwd")), {}, r"x\.tar: member '1\.png' is a link or device"),
    "tar with a hard link": (_odd_tar(_member("1.png", tarfile.LNKTYPE, "0.png")), {}, r"x\.tar: member '1\.png' is a link or device"),
    "tar with a device": (_odd_tar(_member("1.png", tarfile.CHRTYPE)), {}, r"x\.tar: member '1\.png' is a link or device"),
    "tar cut within a member": (_cut_tar(lambda data: data[:700]), {}, r"x\.tar is no whole tar"),
    "tar cut within a header": (_cut_tar(lambda data: data[: 1024 + 100]), {}, r"x\.tar is no whole tar"),
    "tar cut between members": (_cut_tar(lambda data: data[:1024]), {}, r"x\.tar is no whole tar"),
    "tar with a damaged header": (_cut_tar(lambda data: data[:1024] + b"\xff" * 512 + data[1536:]), {}, r"x\.tar is no whole tar"),
    "tar of noise": (_files(x_dot_tar=b"\x07" * 2048), {}, r"x\.tar is no whole tar"),
    "tar that is empty": (_tar(), {}, r"has no rows in its tar files"),
    "tar without a picture": (_tar(**{"a.cls": b"1"}), {}, r"x\.tar: sample a has 0 pictures"),
    "tar with two pictures": (_tar(**{"a.png": PNG, "a.jpg": PNG}), {}, r"x\.tar: sample a has 2 pictures"),
    "tar with a word for a label": (_tar(**{"a.png": PNG, "a.cls": b"cat"}), {}, r"x\.tar: sample a has the label 'cat'"),
    "tar with a negative label": (_tar(**{"a.png": PNG, "a.json": b'{"label": -1}'}), {}, r"sample a has the label -1"),
    "tar with half the labels": (_tar(**{"a.png": PNG, "a.cls": b"1", "b.png": PNG}), {}, r"sample b: some samples have a label"),
    "tar with bad JSON": (_tar(**{"a.png": PNG, "a.json": b"{"}), {}, r"sample a\.json is no JSON"),
    "holdout beside a test split": (
        lambda source: (write_idx(source, "train", 5), write_idx(source, "t10k", 5)),
        {"holdout": 0.2},
        r"option holdout=0\.2 has no effect on source .*, which has a test split",
    ),
    "class names for folders": (_files(a__1_dot_png=PNG), {"class_names": ["a"]}, r"option class_names has no effect .* pictures files"),
    "class names without labels": (_npz(x=NAN), {"class_names": ["a"]}, r"option class_names has no effect: .*x\.npz has no column"),
    "columns for folders": (_files(a__1_dot_png=PNG), {"columns": ["image"]}, r"option columns has no effect"),
    "size without pictures": (_npz(x=np.ones((9, 2))), {"size": 8}, r"options size and channels have no effect"),
    "a file the checksums name": (
        _files(x_dot_npz=b""),
        {"checksums": {"y.npz": "0" * 64}},
        r"has no file 'y\.npz', which checksums names; did you mean 'x\.npz'\?",
    ),
    "a wrong checksum": (_idx(IMAGES, LABELS), {"checksums": {"train-images-idx3-ubyte": "0" * 64}}, r"has sha256 \w{64}, .* say 0{64}"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_bad_sources_are_named_in_one_line_and_leave_nothing(tmp_path: Path, case: str) -> None:
    make_source, options, message = BAD_SOURCES[case]
    make_source(tmp_path / "source")
    with pytest.raises(UserError, match=message) as caught:
        prepare(str(tmp_path / "source"), str(tmp_path / "out"), PrepareConfig(**options))
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "source") in str(caught.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sise": 8}, "unknown key 'sise'; did you mean 'size'"),
        ({"size": 0}, "size"),
        ({"size": [8, "x"]}, "size"),
        ({"fit": "crop"}, "fit has an effect only with size"),
        ({"channels": 2}, "channels=2 is not valid"),
        ({"holdout": 1.5}, "holdout=1.5 is not valid"),
        ({"limit": 0}, "limit=0 is not valid"),
        ({"checksums": {"a": "xyz"}}, "must be 64 hexadecimal digits"),
        ({"class_names": ["a", "a"]}, "class names must differ"),
    ],
)
def test_bad_options_are_named(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PrepareConfig.parse(values, "a test")


def test_the_config_survives_json() -> None:
    config = PrepareConfig(size=28, channels=1, checksums={"a": "0" * 64}, class_names=("a", "b"))
    assert PrepareConfig.parse(json.loads(json.dumps(config.to_json())), "a test") == config
