"""Verification scores against scikit-learn, brute force over thresholds, closed forms and hand-made cases."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score, roc_curve
from torch.nn import functional

from components.errors import UserError
from components.evaluation import verification
from components.evaluation.verification import (
    VerificationScores,
    area,
    equal_error_rate,
    open_set_rank1,
    pair_scores,
    pooled_pair_scores,
    pooled_verification_scores,
    roc,
    tar_at_far,
    ten_fold_accuracy,
    threshold_at_far,
    verification_scores,
)
from components.evaluation.verification_baselines import MAX_FITTED, pca_embeddings, pixel_embeddings

RATES = (0.0, 1e-3, 1e-2, 0.05, 0.3, 1.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def people(identities: int, pictures: int, noise: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit embeddings (N, 16) scattered around one direction for each identity."""
    labels = torch.arange(identities).repeat_interleave(pictures)
    centres = torch.randn(identities, 16, generator=generator(seed))
    scattered = centres[labels] + noise * torch.randn(len(labels), 16, generator=generator(seed + 1))
    return functional.normalize(scattered, dim=1), labels


def drawn(decimals: int | None, count: int = 3000) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of which a third is genuine, and higher; few decimals give ties."""
    genuine = torch.rand(count, generator=generator(1)) < 1 / 3
    scores = torch.randn(count, generator=generator(2)) + 1.5 * genuine
    return (scores if decimals is None else scores.round(decimals=decimals)), genuine


def gaussians(separation: float, count: int = 200_000) -> tuple[torch.Tensor, torch.Tensor]:
    genuine = torch.arange(2 * count) < count
    return torch.randn(2 * count, generator=generator(3), dtype=torch.float64) + separation * genuine, genuine


@pytest.mark.parametrize("decimals", [None, 2, 0])
def test_curve_and_area_equal_scikit_learns(decimals: int | None) -> None:
    scores, genuine = drawn(decimals)
    far, tar, thresholds = roc_curve(genuine, scores, drop_intermediate=False)
    curve = roc(scores, genuine)
    np.testing.assert_allclose(curve.far, far, rtol=0, atol=1e-15)
    np.testing.assert_allclose(curve.tar, tar, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(curve.thresholds, thresholds)
    assert area(curve) == pytest.approx(roc_auc_score(genuine, scores), abs=1e-12)


@pytest.mark.parametrize("decimals", [None, 1])
@pytest.mark.parametrize("far", RATES)
def test_tar_and_threshold_at_a_rate_equal_brute_force(decimals: int | None, far: float) -> None:
    scores, genuine = drawn(decimals, 600)
    candidates = [math.inf, *scores.unique().tolist()]
    allowed = [t for t in candidates if (scores[~genuine] >= t).double().mean() <= far]
    curve = roc(scores, genuine)
    assert tar_at_far(curve, far) == max((scores[genuine] >= t).double().mean().item() for t in allowed)
    assert threshold_at_far(curve, far) == min(allowed)


def test_a_rate_that_no_threshold_holds_accepts_nothing() -> None:
    curve = roc(torch.tensor([0.9, 0.8, 0.1]), torch.tensor([False, True, False]))
    assert (tar_at_far(curve, 0.1), threshold_at_far(curve, 0.1)) == (0.0, math.inf)
    assert (tar_at_far(curve, 0.5), threshold_at_far(curve, 0.5)) == (1.0, pytest.approx(0.8))
    with pytest.raises(UserError, match=r"false accept rate of 1\.5"):
        tar_at_far(curve, 1.5)


@pytest.mark.parametrize("decimals", [None, 1])
def test_equal_error_rate_lies_between_its_neighbours(decimals: int | None) -> None:
    scores, genuine = drawn(decimals)
    accepted = [(scores >= t).double() for t in scores.unique()]
    rates = [(a[~genuine].mean().item(), 1 - a[genuine].mean().item()) for a in accepted]  # FAR falls, FRR rises
    (low, below), *_ = sorted((far - frr, far) for far, frr in rates if far < frr)[::-1]
    (high, above), *_ = sorted((far - frr, far) for far, frr in rates if far >= frr)
    on_line = np.interp(0, [low, high], [below, above])
    assert equal_error_rate(roc(scores, genuine)) == pytest.approx(on_line, abs=1e-12)


def test_separated_equal_and_reversed_scores() -> None:
    genuine = torch.tensor([True, True, False, False, False])
    for scores, eer, auc in (([5.0, 4, 3, 2, 1], 0.0, 1.0), ([1.0] * 5, 0.5, 0.5), ([1.0, 2, 3, 4, 5], 1.0, 0.0)):
        curve = roc(torch.tensor(scores), genuine)
        assert equal_error_rate(curve) == eer
        assert area(curve) == auc


@pytest.mark.parametrize("separation", [0.5, 2.0])
def test_two_gaussians_have_their_closed_forms(separation: float) -> None:
    curve = roc(*gaussians(separation))
    assert equal_error_rate(curve) == pytest.approx(0.5 * math.erfc(separation / 2 / math.sqrt(2)), abs=0.004)
    assert area(curve) == pytest.approx(0.5 * math.erfc(-separation / 2), abs=0.004)


@pytest.mark.parametrize("scores", [[], [1.0, math.nan], [1.0, math.inf], [1.0, 2.0]])
def test_scores_without_use_are_errors(scores: list[float]) -> None:
    with pytest.raises(ValueError):
        roc(torch.tensor(scores), torch.ones(len(scores), dtype=torch.bool))


@pytest.mark.parametrize("rows", [3, 7, 1024])
def test_pairs_are_those_of_the_upper_triangle(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "ROWS", rows)
    embeddings, labels = people(5, 4, 0.5)
    labels = labels[torch.randperm(20, generator=generator())]
    scores, genuine = pair_scores(embeddings.requires_grad_(), labels)
    pairs = list(itertools.combinations(range(20), 2))
    unit = embeddings.detach().double()
    expected = [float(unit[i] @ unit[j]) for i, j in pairs]
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert genuine.tolist() == [bool(labels[i] == labels[j]) for i, j in pairs]


def test_forty_people_with_ten_pictures_give_the_known_counts() -> None:
    embeddings, labels = people(40, 10, 0.5)
    _, genuine = pair_scores(embeddings, labels)
    assert (int(genuine.sum()), int((~genuine).sum())) == (1_800, 78_000)
    _, genuine = pooled_pair_scores([(embeddings[rows], labels[rows]) for rows in (labels // 8 == fold for fold in range(5))])
    assert (int(genuine.sum()), int((~genuine).sum())) == (1_800, 14_000)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([4, 4, 4], "3 pictures are of 1 identity, which gives no impostor pair"),
        ([], "0 pictures are of 0 identit"),
        ([4, 5, 6, 7], r"each of 4 identities \(4, 5, 6, \.\.\.\) has one picture only"),
    ],
)
def test_pictures_without_both_kinds_of_pairs_are_named(labels: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pair_scores(torch.ones(len(labels), 2), torch.tensor(labels, dtype=torch.int64))


def test_too_many_pairs_and_broken_embeddings_are_named() -> None:
    labels = torch.arange(20_000) % 7
    for fold in ([(torch.ones(20_000, 1), labels)], [(torch.ones(12_000, 1), labels[:12_000])] * 2):
        with pytest.raises(UserError, match=r"pairs of pictures, at most 100,000,000"):
            pooled_pair_scores(fold)
    embeddings, labels = people(3, 2, 0.1)
    embeddings[4, 2] = math.nan
    with pytest.raises(UserError, match="embedding of picture 4 is not finite"):
        pair_scores(embeddings, labels)
    with pytest.raises(ValueError, match=r"\(6, 16\) with labels \(5,\)"):
        pair_scores(embeddings, labels[:5])
    with pytest.raises(UserError, match="no fold"):
        pooled_pair_scores([])


def test_ten_fold_accuracy_of_two_gaussians_is_the_closed_form() -> None:
    accuracy = ten_fold_accuracy(*gaussians(2.0, 20_000))
    assert accuracy.mean == pytest.approx(0.5 * math.erfc(-1 / math.sqrt(2)), abs=0.006)
    assert 0 < accuracy.std < 0.02


def test_ten_fold_accuracy_depends_on_the_seed_alone_and_balances_kinds() -> None:
    scores, genuine = drawn(None)
    assert ten_fold_accuracy(scores, genuine) == ten_fold_accuracy(scores, genuine, seed=0) != ten_fold_accuracy(scores, genuine, seed=1)
    rare = torch.arange(5000) < 50
    assert ten_fold_accuracy(torch.zeros(5000), rare).mean == 0.5  # unbalanced, rejecting all would be right 99 times in 100
    assert ten_fold_accuracy(rare.float(), rare).mean == 1.0


def test_ten_fold_accuracy_of_scores_that_know_nothing_is_not_above_chance() -> None:
    """Fitted to each fold of 2 + 2 pairs itself, thresholds would be right in (1 + 3 x 3/4 + 2 x 1/2) / 6 = .71 of them."""
    genuine = torch.arange(40) < 20
    means = [ten_fold_accuracy(torch.rand(40, generator=generator(seed)), genuine, seed=seed).mean for seed in range(200)]
    scores = [torch.rand(4, generator=generator(seed)) for seed in range(200)]
    leaking = [max(float(((s >= t) == genuine[[0, 1, 20, 21]]).double().mean()) for t in [*s.tolist(), 2.0]) for s in scores]
    assert np.mean(leaking) > 0.68
    assert np.mean(means) < 0.52


def test_a_fold_without_a_say_in_its_threshold_is_misjudged() -> None:
    """Two folds of one pair each kind: one of them lies at 10 and 9, the other at 1 and 0, so a threshold of the other is half wrong."""
    scores, genuine = torch.tensor([10.0, 1.0, 9.0, 0.0]), torch.tensor([True, True, False, False])
    results = {ten_fold_accuracy(scores, genuine, folds=2, seed=seed).mean for seed in range(20)}
    assert results == {0.5, 0.25}  # (10, 9) with (1, 0); and (10, 0) with (1, 9): fitted to themselves, the first would be 1.0


def test_too_few_pairs_for_the_folds_are_named() -> None:
    with pytest.raises(UserError, match="10 folds of 9 genuine and 20 impostor pairs"):
        ten_fold_accuracy(torch.zeros(29), torch.arange(29) < 9)
    with pytest.raises(UserError, match="1 folds"):
        ten_fold_accuracy(torch.zeros(29), torch.arange(29) < 9, folds=1)


def test_open_set_rates_of_a_case_made_by_hand() -> None:
    def at(*degrees: float) -> torch.Tensor:
        angles = torch.tensor(degrees).deg2rad()
        return torch.stack([angles.cos(), angles.sin()], 1)

    # Identity 3 is enrolled at -10 and 10 degrees, 5 at 90; each has three probes, one of 5 nearer to 3. Stranger 4 is at 30, 150 and 70.
    embeddings = at(-10, 90, 30, 10, 90, 5, 85, 150, 40, 35, 70, 58, 25)
    labels = torch.tensor([3, 5, 4, 3, 5, 3, 5, 4, 5, 3, 4, 5, 3])
    found = open_set_rank1(embeddings, labels, torch.tensor([4]), pictures=2, false_positive_rate=0.34)
    assert found.rank1 == pytest.approx(5 / 6)  # 40 degrees are nearer to 0 than to 90
    # Strangers are 30, 60 and 20 degrees from a template: one of three may pass, so within less than 30; probes at 35 and 58 are not.
    assert found.detection_rate == pytest.approx(3 / 6)
    assert (found.num_probes, found.num_stranger_probes) == (6, 3)
    assert math.cos(math.radians(30)) < found.threshold <= math.cos(math.radians(20)) + 1e-6
    strict = open_set_rank1(embeddings, labels, torch.tensor([4]), pictures=2, false_positive_rate=0.0)
    assert strict.detection_rate == pytest.approx(2 / 6)
    lax = open_set_rank1(embeddings, labels, torch.tensor([4]), pictures=2, false_positive_rate=1.0)
    assert lax.detection_rate == lax.rank1


@pytest.mark.parametrize(
    ("strangers", "pictures", "message"),
    [
        ([], 1, "3 identities to enrol and 0 pictures of strangers"),
        ([0, 1, 2], 1, "0 identities to enrol"),
        ([1], 4, "identity 0 has 4 pictures and 4 are enrolled"),
        ([1], 0, "pictures=0"),
        ([1, 9], 1, r"strangers \[9\] have no picture"),
    ],
)
def test_galleries_that_cannot_be_are_named(strangers: list[int], pictures: int, message: str) -> None:
    embeddings, labels = people(3, 4, 0.1)
    with pytest.raises(UserError, match=message):
        open_set_rank1(embeddings, labels, torch.tensor(strangers, dtype=torch.int64), pictures)


def test_scores_of_folds_are_those_of_their_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "ROWS", 17)
    folds = [people(8, 5, 1.0, seed) for seed in (10, 20)]
    pooled = pooled_verification_scores(folds)
    scores, genuine = (torch.cat(parts) for parts in zip(*(pair_scores(*fold) for fold in folds), strict=True))
    assert pooled.auc == pytest.approx(roc_auc_score(genuine, scores), abs=1e-12)
    assert (pooled.genuine_pairs, pooled.impostor_pairs) == (160, 1400)
    curve = roc(scores, genuine)
    assert pooled.tar_at == {"1e-2": tar_at_far(curve, 0.01), "1e-3": tar_at_far(curve, 0.001), "1e-4": tar_at_far(curve, 0.0)}
    assert pooled.eer == equal_error_rate(curve)
    assert set(zip(pooled.roc_far, pooled.roc_tar, strict=True)) <= set(zip(curve.far.tolist(), curve.tar.tolist(), strict=True))
    assert (pooled.roc_far[0], pooled.roc_far[-1]) == (pytest.approx(1 / 1400), 1.0)
    assert pooled.rank1 == pytest.approx(np.mean([verification_scores(*fold).rank1 for fold in folds]))
    assert VerificationScores.parse(pooled.to_json(), "here") == pooled


@pytest.mark.parametrize("rows", [7, 1024])
def test_rank1_equals_brute_force_and_leaves_out_people_with_one_picture(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "ROWS", rows)
    embeddings, labels = people(6, 6, 1.5)
    labels[35] = 6  # one picture only
    own = []
    for i in range(35):
        others = [j for j in range(36) if j != i]
        own.append(bool(labels[max(others, key=lambda j: float(embeddings[i] @ embeddings[j]))] == labels[i]))
    assert 0 < sum(own) < 35
    assert verification_scores(embeddings, labels).rank1 == pytest.approx(np.mean(own))


def test_pixel_baseline_is_the_correlation_of_pictures() -> None:
    images = torch.randint(0, 256, (6, 1, 5, 4), generator=generator(), dtype=torch.uint8)
    embeddings = pixel_embeddings(images)
    np.testing.assert_allclose(embeddings @ embeddings.T, np.corrcoef(images.flatten(1).numpy()), atol=1e-6)


def test_pca_baseline_equals_scikit_learns() -> None:
    mix = torch.randn(16, 16, generator=generator())
    train, test = (torch.randn(n, 16, generator=generator(n)) @ mix + 3 for n in (50, 20))
    projected = torch.from_numpy(PCA(5, svd_solver="full").fit(train.double()).transform(test.double().numpy()))
    expected = functional.normalize(projected, dim=1)
    ours = pca_embeddings(train.view(-1, 1, 4, 4), test.view(-1, 1, 4, 4), 5).double()
    torch.testing.assert_close(ours @ ours.T, expected @ expected.T, rtol=0, atol=1e-5)


def test_pca_baseline_bounds_what_it_is_fitted_to() -> None:
    """Rows that lie between those fitted have a direction of their own, which a fit to all would find first."""
    train = torch.randn(MAX_FITTED + 1, 1, 2, 2, generator=generator())
    train[1::2, 0, 0, 0] *= 1000
    train[::2, 0, 0, 0] = 0
    assert (pca_embeddings(train, train[:3], 3).shape, len(train[::2])) == ((3, 3), 1001)
    changed = train.clone()
    changed[1::2] = 0
    torch.testing.assert_close(pca_embeddings(train, train[::7], 3), pca_embeddings(changed, train[::7], 3))
