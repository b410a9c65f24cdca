"""Folds of identities: everybody is held out once, nobody is on both sides, and every picture stays with its identity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from clusters.preprocess import prepare
from components.data.columns import Column, DataShape
from components.data.dataset import Dataset
from components.data.identities import IdentityFold, identity_folds, split_identities
from components.data.index import read_index
from components.data.prepare_config import PrepareConfig
from components.data.write import write_dataset
from components.errors import UserError
from tests.data.collected import orl_or_skip

COLUMNS = {"image": Column(dtype="uint8", shape=(1, 2, 4)), "label": Column(dtype="int64")}
NAMES = tuple("abcdefghijkl")


def make(url: Path, labels: np.ndarray, test_labels: np.ndarray, names: tuple[str, ...] = NAMES) -> str:
    """A data set of pictures that say in their first pixels who they show and which row they are."""
    splits = {}
    for number, (split, found) in enumerate((("train", labels), ("test", test_labels))):
        images = np.zeros((len(found), 1, 2, 4), np.uint8)
        images[:, 0, 0, 0], images[:, 0, 0, 1], images[:, 0, 0, 2] = found, number, np.arange(len(found))
        splits[split] = [{"image": images, "label": found.astype(np.int64)}]
    write_dataset(str(url), splits, COLUMNS, names, rows_per_shard=7)
    return str(url)


def rows(url: str | Path, split: str) -> dict[str, np.ndarray]:
    dataset = Dataset.open(str(url), split)
    return dataset.take(np.arange(dataset.num_rows))


@pytest.fixture
def people(tmp_path: Path) -> str:
    """Twelve identities of 2 to 9 pictures, in no order, over two splits; number 4 has none."""
    random = np.random.default_rng(0)
    labels = random.permutation(np.repeat(np.arange(12), [2, 3, 9, 4, 0, 5, 2, 2, 7, 3, 6, 4]))
    return make(tmp_path / "people", labels[:30], labels[30:])


@pytest.mark.parametrize(("count", "folds"), [(4, 2), (40, 5), (41, 5), (44, 5), (1000, 7)])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_identity_is_held_out_once(count: int, folds: int, seed: int) -> None:
    rows_by_class = [3, 0] * count  # every second class has nobody
    held_out = identity_folds(rows_by_class, folds, seed)
    assert sorted(label for fold in held_out for label in fold) == list(range(0, 2 * count, 2))
    assert all(list(fold) == sorted(fold) for fold in held_out)
    sizes = [len(fold) for fold in held_out]
    assert max(sizes) - min(sizes) <= 1
    assert held_out == identity_folds(rows_by_class, folds, seed)
    assert count == 4 or held_out != identity_folds(rows_by_class, folds, seed + 1)


@pytest.mark.parametrize("development", [0, 3])
def test_a_fold_has_every_picture_once_and_knows_who_it_shows(tmp_path: Path, people: str, development: int) -> None:
    before = np.concatenate([rows(people, split)["image"] for split in ("train", "test")])
    tested: list[str] = []
    for fold in range(3):
        out = tmp_path / f"fold-{fold}"
        index = split_identities(people, str(out), IdentityFold(fold=fold, folds=3, development=development))
        splits = ["train", "validation", "test"] if development else ["train", "test"]
        assert set(index.splits) == set(splits)
        after = {split: rows(out, split) for split in splits}
        pictures = np.concatenate([found["image"] for found in after.values()])
        assert sorted(map(bytes, pictures)) == sorted(map(bytes, before))
        labels = [np.unique(found["label"]) for found in after.values()]
        assert np.concatenate(labels).tolist() == list(range(11))  # train from 0, then the others; nobody twice, no hole
        for found in after.values():
            assert (np.diff(found["label"]) >= 0).all()
            for image, label in zip(found["image"], found["label"], strict=True):
                assert index.class_names[label] == NAMES[image[0, 0, 0]]
        if development:
            assert len(labels[1]) == 3
        names = index.class_names[: len(labels[0])]
        assert list(names) == sorted(names)
        tested += index.class_names[labels[-1][0] :]
    assert sorted(tested) == [name for name in NAMES if name != "e"]


def test_who_is_held_out_does_not_depend_on_development(tmp_path: Path, people: str) -> None:
    tested = []
    for development in (0, 4):
        out = tmp_path / str(development)
        index = split_identities(people, str(out), IdentityFold(folds=3, development=development))
        tested.append({index.class_names[label] for label in np.unique(rows(out, "test")["label"])})
    assert tested[0] == tested[1]


def test_the_same_fold_has_the_same_fingerprint(tmp_path: Path, people: str) -> None:
    folds = [IdentityFold(folds=3, fold=fold, seed=seed) for fold, seed in ((0, 0), (0, 0), (1, 0), (0, 1))]
    prints = [split_identities(people, str(tmp_path / str(n)), fold).fingerprint for n, fold in enumerate(folds)]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


@pytest.mark.parametrize(
    ("rows_by_class", "folds", "message"),
    [
        ([5], 2, r"1 identities are too few for folds=2: .*; add identities$"),
        ([5, 5, 5], 5, r"3 identities are too few for folds=5"),
        ([5] * 9, 5, r"9 identities are too few for folds=5: .* or give folds=4 or fewer"),
        ([], 2, r"0 identities are too few"),
        ([2, 3, 1, 4], 2, r"identity 2 has a single picture"),
    ],
)
def test_identities_that_make_no_pairs(rows_by_class: list[int], folds: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        identity_folds(rows_by_class, folds, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fold": 5}, r"fold=5 is not one of folds=5"),
        ({"folds": 1}, r"folds=1 is not valid"),
        ({"development": 1}, r"development=1 makes no pairs of different identities"),
    ],
)
def test_folds_that_cannot_be(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        IdentityFold.parse(options, "test")


def test_data_that_cannot_be_split(tmp_path: Path, people: str) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(UserError, match=r"people: 11 identities are too few for folds=6: .*folds=5 or fewer"):
        split_identities(people, out, IdentityFold(folds=6))
    with pytest.raises(UserError, match=r"development=6 of 7 training identities leaves fewer than 2 .*give 5 or fewer"):
        split_identities(people, out, IdentityFold(folds=3, development=6))
    with pytest.raises(UserError, match=r"people is a data set already"):
        split_identities(people, people, IdentityFold(folds=3))
    with pytest.raises(UserError, match=r"nobody does not say for every row which identity it shows"):
        split_identities(make(tmp_path / "nobody", np.arange(9), np.arange(9), names=()), out, IdentityFold(folds=3))
    with pytest.raises(UserError, match=r"some does not say for every row"):
        split_identities(make(tmp_path / "some", np.arange(9), np.arange(9), names=("a", "b")), out, IdentityFold(folds=3))
    assert not Path(out).exists()


def test_a_shape_tells_the_rows_of_each_class(people: str) -> None:
    shape = read_index(people).shape
    for split, counts in shape.rows_by_class.items():
        assert counts == tuple(np.bincount(rows(people, split)["label"], minlength=12))
    assert sum(counts[4] for counts in shape.rows_by_class.values()) == 0
    assert DataShape.parse(shape.to_json(), "test") == shape


def test_rows_by_class_are_no_part_of_the_fingerprint(tmp_path: Path) -> None:
    """The fingerprint of these rows is the one they had before shapes told the rows of each class."""
    found = {"image": np.arange(48, dtype=np.uint8).reshape(6, 1, 2, 4), "label": np.array([0, 1, 1, 0, 3, 3])}
    splits = {"train": [found], "test": [{name: values[:2] for name, values in found.items()}]}
    index = write_dataset(str(tmp_path), splits, COLUMNS, ("a", "b", "c", "d"))
    assert index.fingerprint == "86a803d23c7753ce"
    assert index.model_copy(update={"statistics": {}}).fingerprint == index.fingerprint


def test_orl_in_five_folds(tmp_path: Path) -> None:
    """Eight unseen people a fold: 1,800 genuine and 14,000 impostor pairs, for which raw pixels have an equal error rate of 17.6 %."""
    prepare(str(orl_or_skip(tmp_path / "faces")), str(tmp_path / "orl"), PrepareConfig())
    genuine, likeness = [], []
    for fold in range(5):
        out = tmp_path / f"fold-{fold}"
        index = split_identities(str(tmp_path / "orl"), str(out), IdentityFold(fold=fold, folds=5, development=4))
        assert [index.num_rows(split) for split in ("train", "validation", "test")] == [280, 40, 80]
        test = rows(out, "test")
        flat = test["image"].reshape(80, -1).astype(np.float64)
        flat /= np.linalg.norm(flat, axis=1, keepdims=True)
        one, two = np.triu_indices(80, 1)
        genuine.append(test["label"][one] == test["label"][two])
        likeness.append((flat @ flat.T)[one, two])
    same = np.concatenate(genuine)
    assert (same.sum(), (~same).sum()) == (1_800, 14_000)
    false, true, _ = roc_curve(same, np.concatenate(likeness))
    assert false[np.argmin(np.abs(1 - true - false))] == pytest.approx(0.176, abs=0.01)
