"""Data sets on disk: readable by plain pyarrow, gathered exactly, and every shard that is not as the index says is named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from components import storage
from components.data.arrow import encode
from components.data.columns import Column
from components.data.dataset import Dataset
from components.data.index import read_whole_index
from components.data.write import write_dataset
from components.errors import UserError
from tests.data.samples import COLUMNS, make, random_rows


def test_rows_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    rows = random_rows(100)
    make(str(tmp_path), rows, rows_per_shard=16)
    dataset = Dataset.open(str(tmp_path))
    assert dataset.num_rows == 100
    assert dataset.shape.columns == COLUMNS
    assert dataset.splits == ("train",)
    for asked in (np.random.default_rng(1).permutation(100), np.array([99, 0, 0, 50, 16, 15]), np.arange(0), np.arange(100)):
        taken = dataset.take(asked)
        for name, values in rows.items():
            assert taken[name].dtype == values.dtype
            assert (taken[name] == values[asked]).all()


def test_taken_rows_are_copies(tmp_path: Path) -> None:
    rows = random_rows(10)
    make(str(tmp_path), rows)
    dataset = Dataset.open(str(tmp_path))
    dataset.take(np.arange(10))["image"][:] = 0
    assert (dataset.take(np.arange(10))["image"] == rows["image"]).all()


def test_shards_are_plain_arrow_tensors_and_map_without_a_copy(tmp_path: Path) -> None:
    rows = random_rows(20)
    index = make(str(tmp_path), rows, rows_per_shard=20)
    (entry,) = index.splits["train"]
    before = pa.total_allocated_bytes()
    table = pa.ipc.open_file(pa.memory_map(str(tmp_path / entry.file))).read_all()
    assert pa.total_allocated_bytes() == before
    assert table["image"].type == pa.fixed_shape_tensor(pa.uint8(), (3, 4, 5))
    assert (table["image"].combine_chunks().to_numpy_ndarray() == rows["image"]).all()
    assert table["label"].to_pylist() == rows["label"].tolist()


def test_equal_rows_give_equal_bytes_however_they_arrive(tmp_path: Path) -> None:
    rows = random_rows(50)
    parts = [{name: values[a:b] for name, values in rows.items()} for a, b in ((0, 7), (7, 7), (7, 41), (41, 50))]
    one = write_dataset(str(tmp_path / "one"), {"train": [rows]}, COLUMNS, rows_per_shard=16)
    many = write_dataset(str(tmp_path / "many"), {"train": iter(parts)}, COLUMNS, rows_per_shard=16)
    assert one == many
    assert one.fingerprint == many.fingerprint
    assert storage.list_files(str(tmp_path / "one")) == storage.list_files(str(tmp_path / "many"))
    assert [entry.rows for entry in one.splits["train"]] == [16, 16, 16, 2]
    for entry in one.splits["train"]:
        assert storage.sha256_file(str(tmp_path / "many" / entry.file)) == entry.sha256


def test_statistics_are_those_of_all_rows(tmp_path: Path) -> None:
    rows = random_rows(75)
    statistics = make(str(tmp_path), rows, rows_per_shard=16).statistics["train"]
    assert statistics.rows == 75
    assert statistics.rows_by_class == tuple(np.bincount(rows["label"], minlength=4))
    image = rows["image"].astype(np.float64)
    assert statistics.columns["image"].mean == pytest.approx(image.mean(axis=(0, 2, 3)), rel=1e-12)
    assert statistics.columns["image"].std == pytest.approx(image.std(axis=(0, 2, 3)), rel=1e-9)
    assert statistics.columns["weight"].mean == pytest.approx([rows["weight"].mean(dtype=np.float64)], rel=1e-9)
    assert "label" not in statistics.columns


def test_the_fingerprint_follows_the_content_only(tmp_path: Path) -> None:
    rows = random_rows(20)
    one, same = make(str(tmp_path / "1"), rows), make(str(tmp_path / "2"), rows)
    renamed = write_dataset(str(tmp_path / "3"), {"train": [rows]}, COLUMNS, ("w", "x", "y", "z"), {}, 16)
    other_maker = write_dataset(str(tmp_path / "4"), {"train": [rows]}, COLUMNS, ("a", "b", "c", "d"), {"made": "elsewhere"}, 16)
    rows["weight"][3, 1] += 1
    changed = make(str(tmp_path / "5"), rows)
    assert one.fingerprint == same.fingerprint == other_maker.fingerprint
    assert len({one.fingerprint, renamed.fingerprint, changed.fingerprint}) == 3


def test_the_index_is_the_commit(tmp_path: Path) -> None:
    make(str(tmp_path), random_rows(20))
    (tmp_path / "index.json").unlink()
    with pytest.raises(UserError, match=r"is no data set: it has no index\.json"):
        Dataset.open(str(tmp_path))


def test_an_unknown_split_gets_the_nearest_name(tmp_path: Path) -> None:
    make(str(tmp_path), random_rows(20), random_rows(5))
    with pytest.raises(UserError, match=r"no split 'trian'; did you mean 'train'\?"):
        Dataset.open(str(tmp_path), "trian")


def _alter_index(change: Callable[[dict], object]) -> Callable[[Path, Path], None]:
    def damage(folder: Path, _: Path) -> None:
        values = json.loads((folder / "index.json").read_text())
        change(values)
        (folder / "index.json").write_text(json.dumps(values))

    return damage


def _replace_by_foreign(_: Path, shard: Path) -> None:
    data = encode({"image": Column(dtype="uint8", shape=(2,))}, {"image": np.zeros((16, 2), np.uint8)})
    shard.write_bytes(data.ljust(shard.stat().st_size, b"\0"))


DAMAGES: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "missing shard": (lambda folder, shard: shard.unlink(), r"shard .*\.arrow is missing; the index expects \d+ bytes with sha256"),
    "truncated shard": (
        lambda folder, shard: shard.write_bytes(shard.read_bytes()[:-100]),
        r"shard .*\.arrow has \d+ bytes with sha256 \w{64}, its index says \d+ with sha256 \w{64}; it was cut short",
    ),
    "overwritten shard": (
        lambda folder, shard: shard.write_bytes(b"\0" * shard.stat().st_size),
        r"shard .*\.arrow is no readable Arrow IPC file",
    ),
    "foreign shard": (_replace_by_foreign, r"shard .*\.arrow (has the columns|is no readable Arrow)"),
    "another version": (_alter_index(lambda v: v.update(format_version=99)), "has format_version 99, this Raymill reads 1"),
    "no version": (_alter_index(lambda v: v.pop("format_version")), "has format_version None"),
    "unknown key": (_alter_index(lambda v: v.update(shards=3)), "unknown key 'shards'"),
    "bad type": (_alter_index(lambda v: v["columns"]["label"].update(dtype="str")), r"columns\.label\.dtype='str' is not valid"),
    "path outside": (_alter_index(lambda v: v["splits"]["train"][0].update(file="../x.arrow")), r"'\.\./x\.arrow' is not a plain name"),
    "more rows": (_alter_index(lambda v: v["splits"]["train"][0].update(rows=17)), "has 16 rows, its index says 17"),
    "other columns": (
        _alter_index(lambda v: v["columns"]["image"].update(shape=[3, 5, 4])),
        r"shard .*\.arrow has the columns .* its index says",
    ),
    "no object": (lambda folder, _: (folder / "index.json").write_text("[1]"), "holds list, expected an object"),
    "no JSON": (lambda folder, _: (folder / "index.json").write_text('{"format'), "it is not valid JSON"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    index = make(str(tmp_path), random_rows(40), rows_per_shard=16)
    change, message = DAMAGES[damage]
    change(tmp_path, tmp_path / index.splits["train"][0].file)
    with pytest.raises(UserError, match=message) as caught:
        Dataset.open(str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_index_round_trip(tmp_path: Path) -> None:
    index = make(str(tmp_path), random_rows(40), random_rows(3))
    assert read_whole_index(str(tmp_path)) == index
    (entry, *_) = index.splits["test"]
    assert hashlib.sha256((tmp_path / entry.file).read_bytes()).hexdigest() == entry.sha256
