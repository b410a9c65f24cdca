"""The paired bootstrap beside SciPy's, its coverage, and block scores beside the scores of the whole split."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from components.data.dataset import Dataset
from components.errors import UserError
from components.evaluation import paired
from components.evaluation.paired import Interval, Sums, block_scores, paired_bootstrap
from components.evaluation.scoring import evaluate
from components.families.classifier import Classifier, ClassifierConfig
from components.families.contract import Family
from components.families.prior import Prior
from components.families.recognition import Recognition
from components.families.vqvae import VQVAE


def scored(generator: np.random.Generator, blocks: int, gain: float = 0.0) -> tuple[Sums, Sums]:
    """Two models' sums and counts on blocks of unequal size, correlated as models are that find the same rows hard."""
    counts = generator.integers(1, 9, blocks).astype(float)
    hard = generator.normal(0, 1, blocks)
    champion = counts * (3 + hard + generator.normal(0, 0.3, blocks))
    candidate = counts * (3 + gain + hard + generator.normal(0, 0.3, blocks))
    return (candidate, counts), (champion, counts)


def difference(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray, axis: int = -1) -> np.ndarray:
    return a.sum(axis) / b.sum(axis) - c.sum(axis) / d.sum(axis)


def test_equals_scipys_percentile_interval_of_the_same_draws_and_is_near_its_bca() -> None:
    candidate, champion = scored(np.random.default_rng(1), 90, gain=0.1)
    found = paired_bootstrap(candidate, champion, resamples=3000, confidence=0.9, seed=7)
    options = {"paired": True, "vectorized": True, "n_resamples": 3000, "confidence_level": 0.9}
    same = stats.bootstrap((*candidate, *champion), difference, method="percentile", rng=np.random.default_rng(7), **options)
    assert (found.low, found.high) == pytest.approx(tuple(same.confidence_interval), abs=1e-12)
    assert found.difference == pytest.approx(float(difference(*candidate, *champion)), abs=1e-12)
    better = stats.bootstrap((*candidate, *champion), difference, method="BCa", rng=np.random.default_rng(8), **options)
    width = found.high - found.low
    assert (found.low, found.high) == pytest.approx(tuple(better.confidence_interval), abs=0.1 * width)
    assert found.blocks == 90


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(3)
    intervals = [paired_bootstrap(*scored(generator, 60, gain=0.2), resamples=400, confidence=0.9, seed=seed) for seed in range(300)]
    covered = np.mean([interval.low <= 0.2 <= interval.high for interval in intervals])
    assert 0.84 < covered < 0.95  # 300 trials of 0.9: four standard errors are 0.07; the percentile interval is a little short at 60 blocks
    wrongly = np.mean([interval.surpasses(0.2, "max") for interval in intervals])  # one side: 0.05
    assert wrongly < 0.11


def test_pairing_makes_the_interval_much_shorter_than_two_separate_ones() -> None:
    candidate, champion = scored(np.random.default_rng(5), 200)
    joint = paired_bootstrap(candidate, champion, resamples=1000, confidence=0.95, seed=0)
    shuffled = np.random.default_rng(0).permutation(200)
    apart = paired_bootstrap(candidate, (champion[0][shuffled], champion[1][shuffled]), resamples=1000, confidence=0.95, seed=0)
    assert 2 * (joint.high - joint.low) < apart.high - apart.low


def test_deterministic_by_seed_and_by_how_much_is_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = scored(np.random.default_rng(1), 50)
    settings = {"resamples": 500, "confidence": 0.95}
    first = paired_bootstrap(*pair, **settings, seed=1)
    assert paired_bootstrap(*pair, **settings, seed=1) == first
    assert paired_bootstrap(*pair, **settings, seed=2) != first
    monkeypatch.setattr(paired, "DRAWN_AT_ONCE", 333)
    assert paired_bootstrap(*pair, **settings, seed=1) == first


def test_memory_does_not_grow_with_resamples() -> None:
    pair = scored(np.random.default_rng(1), 2000)
    tracemalloc.start()
    paired_bootstrap(*pair, resamples=20_000, confidence=0.95, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 120e6  # drawn whole, the indices alone would take 320 MB


@pytest.mark.parametrize(
    ("interval", "margin", "best", "better"),
    [
        (Interval(0.2, 0.1, 0.3, 9), 0.0, "max", True),
        (Interval(0.2, 0.1, 0.3, 9), 0.1, "max", False),
        (Interval(0.2, -0.1, 0.3, 9), 0.0, "max", False),
        (Interval(0.2, 0.1, 0.3, 9), 0.0, "min", False),
        (Interval(-0.2, -0.3, -0.1, 9), 0.05, "min", True),
        (Interval(-0.2, -0.3, -0.1, 9), 0.1, "min", False),
    ],
)
def test_which_side_is_better(interval: Interval, margin: float, best: str, better: bool) -> None:
    assert interval.surpasses(margin, best) is better


def test_settings_out_of_range_are_refused() -> None:
    pair = scored(np.random.default_rng(1), 5)
    for settings in ({"resamples": 0, "confidence": 0.9}, {"resamples": 10, "confidence": 1.0}):
        with pytest.raises(UserError, match="not valid; expected"):
            paired_bootstrap(*pair, **settings, seed=0)


@pytest.fixture(scope="module")
def models(small_data_folders: dict[str, Path]) -> dict[type[Family], tuple[Family, Dataset]]:
    """Untrained models on the held-out split of data of their kind."""
    torch.manual_seed(0)
    found: dict[type[Family], tuple[Family, Dataset]] = {}
    for cls in (Classifier, VQVAE, Prior, Recognition):
        data = Dataset.open(str(small_data_folders[cls.proof.data]), "test")
        config = cls.fit(cls.Config.parse(dict(cls.proof.model), "proof"), data.shape)
        found[cls] = (cls(config), data)
    return found


@pytest.mark.parametrize("block_rows", [1, 7, 64])
@pytest.mark.parametrize("cls", [Classifier, VQVAE, Prior])
def test_blocks_add_up_to_the_scores_of_the_split(
    models: dict[type[Family], tuple[Family, Dataset]], cls: type[Family], block_rows: int
) -> None:
    model, data = models[cls]
    model.train()
    blocks = block_scores(model, data, block_rows)
    assert model.training
    whole = evaluate(model, data)
    assert cls.headline[0] in blocks
    for name, (sums, counts) in blocks.items():
        assert sums.shape == counts.shape == (-(-data.num_rows // block_rows),)
        assert sums.sum() / counts.sum() == pytest.approx(whole[name], rel=1e-5)


def test_rows_are_those_of_the_data_set_in_order(models: dict[type[Family], tuple[Family, Dataset]]) -> None:
    model, data = models[Classifier]
    rows = data.take(np.arange(data.num_rows))
    with torch.no_grad():
        right = model.eval().logits(torch.from_numpy(rows["image"]).float() / 255).argmax(1).numpy() == rows["label"]
    sums, counts = block_scores(model, data, 1)["accuracy"]
    assert np.array_equal(sums, right)
    assert (counts == 1).all()


def test_a_family_that_is_scored_by_pairs_is_refused(models: dict[type[Family], tuple[Family, Dataset]]) -> None:
    with pytest.raises(UserError, match="Recognition is scored by eer, over all rows"):
        block_scores(*models[Recognition], 8)


def test_too_few_blocks_and_foreign_data_are_refused(models: dict[type[Family], tuple[Family, Dataset]]) -> None:
    model, data = models[Classifier]
    with pytest.raises(UserError, match=r"100 rows, 1 of 100; expected two blocks or more"):
        block_scores(model, data, 100)
    with pytest.raises(UserError, match="block_rows=0 is not valid"):
        block_scores(model, data, 0)
    with pytest.raises(UserError, match="num_classes=3"):
        block_scores(Classifier(ClassifierConfig(num_classes=3, image_channels=1)), data, 10)
