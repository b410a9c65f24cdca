"""Scores of generated pictures: checks E1 to E3 through a judge, parts that add up, and what cannot be scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from sklearn.metrics.pairwise import polynomial_kernel
from torch import Tensor, nn

from components.config import Config
from components.data.dataset import Dataset
from components.errors import UserError
from components.evaluation import generation
from components.evaluation.baselines import class_gaussians
from components.evaluation.frechet import Moments, frechet_distance
from components.evaluation.generation import Reference, Tally, features_of, score_samples
from components.evaluation.reference_points import point_scores
from components.families.classifier import Classifier, ClassifierConfig
from components.families.contract import Family, OptimizerConfig, Phase
from components.families.flow import Flow, FlowConfig, FlowSampler
from components.families.model_folder import load_model
from components.networks.continuous_flow import ContinuousFlow
from components.training.config import TrainConfig
from components.training.job import TrainingJob, execute
from components.training.outlet import Outlet
from tests.small_data import shipped_images, write_images

FEATURES = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("pictures"), train=2000, test=1000)


@pytest.fixture(scope="module")
def judge(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """A classifier that has learnt something."""
    run = str(tmp_path_factory.mktemp("judge"))
    train = TrainConfig(steps=80, batch_size=64, checkpoint_every=1000, optimizer=OptimizerConfig(lr=1e-2))
    model = {"widths": (8, 16), "feature_dim": FEATURES}
    execute(TrainingJob(family="classifier", model=model, train=train, data=str(data), run=run), Outlet())
    found = load_model(f"{run}/model")
    assert isinstance(found, Classifier)
    return found


@pytest.fixture(scope="module")
def reference(judge: Classifier, data: Path) -> Reference:
    return Reference.of(judge, Dataset.open(str(data)))


def pictures(part: str, rows: int) -> Tensor:
    return torch.from_numpy(shipped_images(part, rows)[0].copy())


def test_scores_are_those_of_scipy_and_scikit_learn(judge: Classifier, reference: Reference) -> None:
    """E1 and E2, from the pictures on."""
    images = pictures("t10k", 300)
    with torch.no_grad():
        a, b = (judge.features(part.float() / 255).double().numpy() for part in (images, pictures("train", 2000)))
        labels = judge.logits(images.float() / 255).argmax(1).numpy()
    found = Tally.of(judge, images).scores(reference)
    root = np.sqrt(scipy.linalg.eigvals(np.cov(a.T) @ np.cov(b.T)).real.clip(min=0)).sum()  # its trace: dead features make it singular
    distance = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T)) - 2 * root
    assert found["fd"] == pytest.approx(distance, rel=1e-6)
    kernels = [polynomial_kernel(x, y, degree=3, gamma=1 / FEATURES, coef0=1) for x, y in ((a, a), (b, b), (a, b))]
    within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in kernels[:2]]
    assert found["kid"] == pytest.approx(sum(within) - 2 * kernels[2].mean(), abs=1e-8 * abs(within[0]))
    assert found["label_entropy"] == pytest.approx(scipy.stats.entropy(np.bincount(labels), base=2), rel=1e-12)
    assert found["samples"] == 300


def test_parts_of_different_workers_add_up(judge: Classifier, reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures("t10k", 310)
    whole = Tally.of(judge, images)
    parts = Tally.of(judge, images[:40]) + Tally.of(judge, images[40:296]) + Tally.of(judge, images[296:])
    assert torch.equal(parts.features, whole.features)
    assert torch.equal(parts.labels, whole.labels)
    assert parts.scores(reference) == pytest.approx(whole.scores(reference), rel=1e-9)
    monkeypatch.setattr(generation, "KERNEL_ROWS", 100)
    few = Tally.of(judge, images[:40]) + Tally.of(judge, images[40:296])
    assert torch.equal(few.features, whole.features[:100])
    assert few.moments.count == 296


def test_numbers_between_0_and_1_are_the_same_pictures(judge: Classifier) -> None:
    images = pictures("t10k", 20)
    assert torch.equal(features_of(judge, images), features_of(judge, images.float() / 255))


def test_a_reference_keeps_moments_of_all_rows_and_features_of_some(judge: Classifier, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "KERNEL_ROWS", 300)
    found = Reference.of(judge, Dataset.open(str(data)))
    features = features_of(judge, pictures("train", 2000))
    np.testing.assert_allclose(found.moments.covariance, np.cov(features.double().numpy().T), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.features, features[::7], rtol=1e-5, atol=1e-5)
    again = Reference.from_bytes(found.to_bytes())
    assert again.own_similarity == found.own_similarity
    assert Tally.of(judge, pictures("t10k", 50)).scores(again) == Tally.of(judge, pictures("t10k", 50)).scores(found)
    with pytest.raises(ValueError, match="no reference"):
        Reference.from_bytes(found.to_bytes()[:-9])


def test_real_pictures_are_near_nearer_the_more_there_are_and_better_than_what_is_drawn(
    judge: Classifier, reference: Reference, data: Path
) -> None:
    """E3."""
    few, many = (Tally.of(judge, pictures("t10k", rows)).scores(reference)["fd"] for rows in (60, 1000))
    points = point_scores(judge, reference, Dataset.open(str(data)), Dataset.open(str(data), "test"), 1000)
    assert points["real held-out pictures"]["fd"] == many < few
    assert many < points["class Gaussians"]["fd"] < points["noise"]["fd"]
    assert points["noise"]["label_entropy"] < points["real held-out pictures"]["label_entropy"] <= np.log2(10)


def test_two_draws_of_one_generator_differ_little(judge: Classifier, reference: Reference) -> None:
    """E3 at 10,000 samples."""
    images, labels = shipped_images("train", 2000)
    real = torch.from_numpy(images.copy()).float() / 255
    drawn = class_gaussians(real, torch.from_numpy(labels), 20_000, torch.Generator().manual_seed(1))
    halves = (Moments.of(torch.cat([features_of(judge, part) for part in half.split(500)])) for half in drawn.split(10_000))
    first, second = (frechet_distance(half, reference.moments) for half in halves)
    assert abs(first - second) < 0.05 * first


class Grey(Config):
    level: float = 0.5


class Painter(Family):
    """Paints rows of one grey, a little lighter from row to row; its network is asked twice for each."""

    Sampler = Grey
    phases = (Phase("painter", ("network",)),)
    sample_shape = (1, 28, 28)

    def __init__(self) -> None:
        super().__init__(Grey())
        self.network = nn.Identity()

    def sample(self, count: int, seed: int, sampler: Config, first: int = 0) -> Tensor:
        assert isinstance(sampler, Grey)
        rows = torch.arange(first, first + count) / 1e5
        return self.network(self.network(torch.ones(count, 1, 28, 28))) * sampler.level + rows[:, None, None, None]

    def evaluations(self, sampler: Config) -> None:
        return None


def test_samples_are_drawn_in_parts_and_evaluations_counted(
    judge: Classifier, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, levels = Painter(), Grey(level=0.25)
    whole = score_samples(model, judge, reference, 50, 0, levels, shown=20)
    monkeypatch.setattr(generation, "CHUNK", 16)
    parts = score_samples(model, judge, reference, 50, 0, levels, shown=20)
    assert parts.scores == pytest.approx(whole.scores, rel=1e-6)
    assert torch.equal(parts.pictures, whole.pictures)
    assert parts.pictures.shape == (20, 1, 28, 28)
    assert parts.evaluations == 2
    assert parts.images_per_second > 0
    assert not model.network._forward_pre_hooks


def test_of_a_continuous_flow_what_its_field_is_asked_counts(judge: Classifier, reference: Reference) -> None:
    network = {"kind": "continuous", "widths": (4,), "test_solver": {"rtol": 1e-2, "atol": 1e-2}}
    model = Flow(FlowConfig.parse({"network": network}, "test")).eval()
    calls: list[int] = []
    assert isinstance(model.network, ContinuousFlow)
    model.network.field.register_forward_hook(lambda *call: calls.append(1))
    found = score_samples(model, judge, reference, 50, 0, FlowSampler(batch_size=50), shown=0)
    assert found.evaluations == len(calls) > 1


def test_what_cannot_be_scored_is_told(judge: Classifier, reference: Reference, data: Path) -> None:
    with pytest.raises(UserError, match=r"samples: 16 pictures, and the judge has 16 features"):
        score_samples(Painter(), judge, reference, FEATURES, 0, Grey(), 0)
    with pytest.raises(UserError, match="sample 0 is not finite"):
        score_samples(Painter(), judge, reference, 40, 0, Grey.model_construct(level=float("nan")), 0)
    with pytest.raises(UserError, match="image_size"):
        Reference.of(Classifier(ClassifierConfig(image_size=(32, 32), widths=(4,), feature_dim=4)), Dataset.open(str(data)))
    wide = Classifier(ClassifierConfig(widths=(4,), feature_dim=2000))
    with pytest.raises(UserError, match=r"split train of .* has 2000 pictures, and the judge has 2000 features"):
        Reference.of(wide, Dataset.open(str(data)))
