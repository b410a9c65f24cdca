"""Verification: do two pictures show one identity? Curves and rates over all pairs, and identification among enrolled people and strangers.

Everything follows one rule, *accept when score >= threshold*; FAR and TAR are the accepted shares of impostor and of genuine pairs.
Ten-fold accuracy is the protocol of Labeled Faces in the Wild (Huang et al. 2007), open-set rates are those of Phillips, Grother and
Micheals (Handbook of Face Recognition, 2011, ch. 21).

    verification_scores(embeddings, labels).eer
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from components.config import Config
from components.errors import UserError
from components.training.randomness import generator

ROWS = 1024  # of the similarity matrix at a time: bounds memory, changes no pair
MAX_PAIRS = 10**8  # a curve takes some 50 bytes a pair
FALSE_ACCEPT_RATES = {"1e-2": 1e-2, "1e-3": 1e-3, "1e-4": 1e-4}
DRAWN_POINTS = 100
FOLDS = 10  # of the accuracy


@dataclass(frozen=True)
class Roc:
    """Rates (T,) float64 at every distinct score, strictest first; the first threshold is infinite and accepts nothing."""

    far: Tensor
    tar: Tensor
    thresholds: Tensor


@dataclass(frozen=True)
class Accuracy:
    """Mean over folds, and their standard deviation (divided by folds - 1)."""

    mean: float
    std: float


@dataclass(frozen=True)
class Identification:
    """Rates of probes against a gallery: `rank1` takes the best template whatever its score, `detection_rate` one above `threshold`."""

    rank1: float
    detection_rate: float
    threshold: float
    num_probes: int
    num_stranger_probes: int


class VerificationScores(Config):
    """What one model reaches on unseen identities; `roc_far` and `roc_tar` are points of its curve, evenly spaced in log FAR."""

    eer: float
    auc: float
    tar_at: dict[str, float]  # by false accept rate: "1e-2", "1e-3", "1e-4"
    accuracy: float
    accuracy_std: float
    rank1: float
    genuine_pairs: int
    impostor_pairs: int
    roc_far: tuple[float, ...]
    roc_tar: tuple[float, ...]


def verification_scores(embeddings: Tensor, labels: Tensor) -> VerificationScores:
    """All scores of unit embeddings (N, D) with identities `labels` (N,) int64.

    Raises UserError as `pair_scores` and `ten_fold_accuracy` do.
    """
    return pooled_verification_scores([(embeddings, labels)])


def pooled_verification_scores(folds: Sequence[tuple[Tensor, Tensor]]) -> VerificationScores:
    """Scores over the pairs of several folds, each (embeddings, labels): pairs are formed within a fold, then counted together."""
    scores, genuine = pooled_pair_scores(folds)
    curve = roc(scores, genuine)
    accuracy = ten_fold_accuracy(scores, genuine)
    hits = [_nearest_is_own(*fold) for fold in folds]
    drawn = _drawn(curve)
    return VerificationScores(
        eer=equal_error_rate(curve),
        auc=area(curve),
        tar_at={name: tar_at_far(curve, far) for name, far in FALSE_ACCEPT_RATES.items()},
        accuracy=accuracy.mean,
        accuracy_std=accuracy.std,
        rank1=torch.cat(hits).double().mean().item(),
        genuine_pairs=int(genuine.sum()),
        impostor_pairs=int((~genuine).sum()),
        roc_far=tuple(curve.far[drawn].tolist()),
        roc_tar=tuple(curve.tar[drawn].tolist()),
    )


def pair_scores(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines (P,) float32 of all P = N(N-1)/2 pairs of unit embeddings (N, D), and which pairs (P,) bool are of one identity; on the CPU.

    Pairs are in the order of the upper triangle's rows. Raises UserError when an embedding is not finite, when there is no genuine or no
    impostor pair, and above MAX_PAIRS.
    """
    _require_pairs(embeddings, labels)
    embeddings, count = embeddings.detach().float(), len(labels)
    scores = torch.empty(count * (count - 1) // 2)
    genuine = torch.empty(len(scores), dtype=torch.bool)
    done = 0
    for first in range(0, count, ROWS):
        rows = slice(first, first + ROWS)
        block = embeddings[rows] @ embeddings[first:].T
        upper = torch.ones_like(block, dtype=torch.bool).triu(1)
        part = slice(done, done + int(upper.sum()))
        scores[part] = block[upper].cpu()
        genuine[part] = (labels[rows, None] == labels[None, first:])[upper.to(labels.device)].cpu()
        done = part.stop
    return scores, genuine


def pooled_pair_scores(folds: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """`pair_scores` of each fold (embeddings, labels), one after the other; raises UserError as it does, and for none at all."""
    if not folds:
        raise UserError("no fold to score: expected at least one pair of embeddings and labels")
    _require_few(sum(len(labels) * (len(labels) - 1) // 2 for _, labels in folds))
    pairs = [pair_scores(*fold) for fold in folds]
    return torch.cat([scores for scores, _ in pairs]), torch.cat([genuine for _, genuine in pairs])


def roc(scores: Tensor, genuine: Tensor) -> Roc:
    """The exact curve of scores (P,) and genuine (P,) bool; equal scores are accepted together.

    Raises ValueError for scores that are not finite or all of one kind.
    """
    values = np.sort(scores.numpy())
    if not len(values) or not np.isfinite(values[[0, -1]]).all():
        raise ValueError("scores must be finite and at least one")
    first = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))  # of each group of equal scores
    thresholds = values[first]
    places = np.searchsorted(thresholds, scores[genuine].numpy())
    hits = np.bincount(places, minlength=len(thresholds))[::-1].cumsum()
    false = (len(values) - first)[::-1] - hits
    if not hits[-1] or not false[-1]:
        raise ValueError(f"a curve needs genuine and impostor pairs, got {hits[-1]} and {false[-1]}")
    return Roc(
        far=torch.from_numpy(np.concatenate([[0.0], false / false[-1]])),
        tar=torch.from_numpy(np.concatenate([[0.0], hits / hits[-1]])),
        thresholds=torch.from_numpy(np.concatenate([np.array([np.inf], values.dtype), thresholds[::-1]])),
    )


def equal_error_rate(curve: Roc) -> float:
    """FAR where the curve, its points joined by straight lines, meets FAR = 1 - TAR."""
    excess = curve.far + curve.tar - 1  # from -1 to 1, never falling
    after = int((excess >= 0).int().argmax())
    share = -excess[after - 1] / (excess[after] - excess[after - 1])
    return torch.lerp(curve.far[after - 1], curve.far[after], share).item()


def area(curve: Roc) -> float:
    """Area under the curve: the chance that a genuine pair outscores an impostor pair, equal scores counting one half."""
    return torch.trapezoid(curve.tar, curve.far).item()


def tar_at_far(curve: Roc, far: float) -> float:
    """The largest TAR that a threshold with a FAR of at most `far` has: 0 where even the highest score has a larger one."""
    return curve.tar[_place(curve, far)].item()


def threshold_at_far(curve: Roc, far: float) -> float:
    """The lowest score that, as a threshold, has a FAR of at most `far`; infinite, accepting nothing, where no score has."""
    return curve.thresholds[_place(curve, far)].item()


def ten_fold_accuracy(scores: Tensor, genuine: Tensor, folds: int = FOLDS, seed: int = 0) -> Accuracy:
    """Share of right decisions over as many genuine as impostor pairs, each fold judged at the threshold best on the others.

    All pairs of the rarer kind are drawn, but for a rest smaller than `folds`, and cut into folds in an order that depends on `seed`.
    Raises UserError when a kind has fewer pairs than there are folds, and for fewer than two folds.
    """
    kinds = [genuine.nonzero()[:, 0], (~genuine).nonzero()[:, 0]]
    in_fold = min(map(len, kinds)) // max(folds, 1)
    if folds < 2 or not in_fold:
        raise UserError(
            f"{folds} folds of {len(kinds[0])} genuine and {len(kinds[1])} impostor pairs: expected two folds or more and as many pairs of "
            "each kind; score more pictures of each identity"
        )
    order = generator(seed, "verification folds")
    drawn = [rows[torch.randperm(len(rows), generator=order)[: folds * in_fold]].view(folds, in_fold) for rows in kinds]
    values = scores[torch.cat(drawn, 1)].double()  # (folds, pairs of a fold): genuine ones, then as many impostors
    truth = torch.arange(2 * in_fold) < in_fold
    results = []
    for fold in range(folds):
        others = torch.arange(folds) != fold
        threshold = _best_threshold(roc(values[others].flatten(), truth.repeat(folds - 1)))
        results.append(((values[fold] >= threshold) == truth).double().mean())
    return Accuracy(torch.stack(results).mean().item(), torch.stack(results).std().item())


def open_set_rank1(
    embeddings: Tensor, labels: Tensor, strangers: Tensor, pictures: int = 1, false_positive_rate: float = 0.01
) -> Identification:
    """Identification of unit embeddings (N, D) with `labels` (N,), of which the identities `strangers` (S,) are not enrolled.

    The first `pictures` rows of every other identity make its template, their normalised mean; its further rows are probes. The threshold
    is such that at most `false_positive_rate` of the strangers' rows reach it with any template. Raises UserError when there is nobody to
    enrol, no stranger, or an enrolled identity without a further row.
    """
    probes, gallery, identities = _enrolment(labels, strangers, pictures)
    unit = functional.normalize(embeddings.detach().float(), dim=1)
    total = torch.zeros(len(identities), unit.shape[1], device=unit.device)
    total.index_add_(0, torch.searchsorted(identities, labels[gallery]), unit[gallery])
    templates = functional.normalize(total, dim=1)
    best, chosen = (unit[probes] @ templates.T).max(1)
    stranger_best = (unit[torch.isin(labels, strangers)] @ templates.T).amax(1)
    reached = torch.cat([best, stranger_best]).cpu()
    threshold = threshold_at_far(roc(reached, torch.arange(len(reached)) < len(best)), false_positive_rate)
    right = identities[chosen] == labels[probes]
    return Identification(
        rank1=right.double().mean().item(),
        detection_rate=(right & (best >= threshold)).double().mean().item(),
        threshold=threshold,
        num_probes=len(best),
        num_stranger_probes=len(stranger_best),
    )


def _enrolment(labels: Tensor, strangers: Tensor, pictures: int) -> tuple[Tensor, Tensor, Tensor]:
    """Masks (N,) of the probes and of the gallery's rows, and the enrolled identities, sorted."""
    if pictures < 1:
        raise UserError(f"pictures={pictures} to enrol an identity with; expected 1 or more")
    if not torch.isin(strangers, labels).all():
        raise UserError(f"strangers {strangers[~torch.isin(strangers, labels)].tolist()} have no picture; name identities of the data set")
    known = ~torch.isin(labels, strangers)
    identities, counts = labels[known].unique(return_counts=True)
    if not len(identities) or known.all():
        raise UserError(
            f"{len(identities)} identities to enrol and {int((~known).sum())} pictures of strangers; expected some of both: "
            "name a part of the identities as strangers"
        )
    if (counts <= pictures).any():
        who = int(counts.argmin())
        raise UserError(
            f"identity {int(identities[who])} has {int(counts[who])} pictures and {pictures} are enrolled, which leaves none to "
            "probe with; enrol fewer pictures or name it as a stranger"
        )
    order = labels.argsort(stable=True)
    sizes = labels.unique(return_counts=True)[1]
    number = torch.empty_like(labels)  # of a picture within its identity
    number[order] = torch.arange(len(labels), device=labels.device) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return known & (number >= pictures), known & (number < pictures), identities


def _nearest_is_own(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Whether the nearest other picture is of the same identity (M,) bool, for the M pictures whose identity has another one."""
    embeddings = embeddings.float()
    nearest = []
    for first in range(0, len(labels), ROWS):
        block = embeddings[first : first + ROWS] @ embeddings.T
        block.diagonal(first).fill_(-torch.inf)
        nearest.append(block.argmax(1).to(labels.device))
    _, places, counts = labels.unique(return_inverse=True, return_counts=True)
    return (labels[torch.cat(nearest)] == labels)[counts[places] > 1].cpu()


def _drawn(curve: Roc) -> Tensor:
    """Places of at most DRAWN_POINTS of its points with a FAR above 0, about evenly spaced in log FAR."""
    lowest = curve.far[curve.far > 0][0].log10().item()
    places = torch.searchsorted(curve.far, torch.logspace(lowest, 0, DRAWN_POINTS, dtype=torch.float64), right=True) - 1
    return places[curve.far[places] > 0].unique()


def _best_threshold(curve: Roc) -> float:
    """Of the highest mean of TAR and 1 - FAR: halfway between the last score that it accepts and the first that it does not."""
    best = int((curve.tar - curve.far).argmax())
    return curve.thresholds[best : best + 2].mean().item()


def _place(curve: Roc, far: float) -> int:
    if not 0 <= far <= 1:
        raise UserError(f"a false accept rate of {far}; expected a share between 0 and 1")
    return int(torch.searchsorted(curve.far, far, right=True)) - 1


def _require_pairs(embeddings: Tensor, labels: Tensor) -> None:
    count = len(labels)
    if embeddings.shape[:1] != labels.shape:
        raise ValueError(f"embeddings {tuple(embeddings.shape)} with labels {tuple(labels.shape)}: expected (N, D) and (N,)")
    _require_few(count * (count - 1) // 2)
    if not embeddings.isfinite().all():
        row = int((~embeddings.isfinite()).any(1).nonzero()[0])
        raise UserError(f"the embedding of picture {row} is not finite: the model has diverged; train it again with a lower learning rate")
    identities, counts = labels.unique(return_counts=True)
    if len(identities) < 2:
        raise UserError(
            f"all {count} pictures are of {len(identities)} identity, which gives no impostor pair; score two identities or more"
        )
    if counts.max() < 2:
        some = ", ".join(map(str, identities[:3].tolist()))
        raise UserError(
            f"each of {len(identities)} identities ({some}, ...) has one picture only, which gives no genuine pair; score identities "
            "with two pictures or more"
        )


def _require_few(pairs: int) -> None:
    if pairs > MAX_PAIRS:
        limit = int((2 * MAX_PAIRS) ** 0.5)
        raise UserError(
            f"{pairs:,} pairs of pictures, at most {MAX_PAIRS:,} are compared; score up to {limit:,} pictures, all of fewer identities"
        )
