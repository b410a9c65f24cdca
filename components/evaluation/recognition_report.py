"""How well people are told apart who were never trained on: models beside raw pixels and principal components."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from components.data.dataset import Dataset
from components.data.loader import evaluation_batches
from components.evaluation.calibration import embeddings
from components.evaluation.verification import VerificationScores, open_set_rank1, verification_scores
from components.evaluation.verification_baselines import pca_embeddings, pixel_embeddings
from components.families.images import pixels
from components.families.recognition import Recognition
from components.report.findings import Chart, Findings, Score, Series, Table

COMPONENTS = 60
SIDE = 64  # pixels of the pictures that untrained methods compare, at most
STRANGERS = 0.5  # share of the people who are not enrolled


def compare(models: Mapping[str, Recognition], data: str, ours: str, targets: Mapping[str, float]) -> Findings:
    """Findings about split `test` of the data set at `data`; `ours` is the model that the scores are of, `targets` are by score."""
    test = Dataset.open(data, "test")
    found = {name: embeddings(model, test) for name, model in models.items()}
    labels = found[ours][1]
    vectors = untrained(data) | {name: each for name, (each, _) in found.items()}
    scores = {name: verification_scores(each, labels) for name, each in vectors.items()}
    return Findings(
        scores=_headlines(scores, vectors[ours], labels, ours, targets), tables=(_table(scores, ours),), charts=(_curves(scores),)
    )


def untrained(data: str, side: int = SIDE) -> dict[str, Tensor]:
    """Embeddings of split `test` that need no training: pixels and their principal components, fitted on split `train`.

    Pictures larger than `side` pixels are averaged until they are not.
    """
    known, unseen = (_small(data, split, side) for split in ("train", "test"))
    components = min(COMPONENTS, *known.flatten(1).shape)
    return {"raw pixels": pixel_embeddings(unseen), f"PCA, {components} components": pca_embeddings(known, unseen, components)}


def _small(data: str, split: str, side: int) -> Tensor:
    images = torch.cat([pixels(batch) for batch in evaluation_batches(Dataset.open(data, split), 256)])
    return F.avg_pool2d(images, -(-max(images.shape[2:]) // side))


def _headlines(
    scores: Mapping[str, VerificationScores], vectors: Tensor, labels: Tensor, ours: str, targets: Mapping[str, float]
) -> tuple[Score, ...]:
    own = scores[ours]
    people = labels.unique()
    strangers = people[: max(1, int(len(people) * STRANGERS))]
    open_set = open_set_rank1(vectors, labels, strangers)
    note = f"{own.genuine_pairs:,} genuine and {own.impostor_pairs:,} impostor pairs of {len(people)} people never trained on"
    others = {name: each for name, each in scores.items() if name != ours}
    return (
        Score(
            name="equal error rate",
            value=own.eer,
            better="lower",
            unit="%",
            target=targets.get("eer"),
            beside={name: each.eer for name, each in others.items()},
            note=note,
        ),
        Score(
            name="true accepts at a false-accept rate of 1 %",
            value=own.tar_at["1e-2"],
            better="higher",
            unit="%",
            target=targets.get("tar"),
            beside={name: each.tar_at["1e-2"] for name, each in others.items()},
            note=note,
        ),
        Score(
            name="named rightly among enrolled people and strangers",
            value=open_set.detection_rate,
            better="higher",
            unit="%",
            note=f"one picture enrolled, {open_set.num_probes} others asked for and {open_set.num_stranger_probes} of {len(strangers)} "
            f"strangers, of whom 1 % may be taken for somebody",
        ),
    )


def _table(scores: Mapping[str, VerificationScores], ours: str) -> Table:
    columns = ("method", "EER", "TAR at 1e-2", "TAR at 1e-3", "AUC", "10-fold accuracy", "rank-1")
    rows = tuple(
        (name, s.eer, s.tar_at["1e-2"], s.tar_at["1e-3"], s.auc, f"{s.accuracy:.1%} ± {s.accuracy_std:.1%}", s.rank1)
        for name, s in scores.items()
    )
    return Table(
        title="Methods on the same pairs",
        caption="TAR: true accepts at a rate of false ones. Rank-1 says little: raw pixels nearly reach it.",
        columns=columns,
        rows=rows,
        units=dict.fromkeys(("EER", "TAR at 1e-2", "TAR at 1e-3", "rank-1"), "%"),
        ours=list(scores).index(ours),
    )


def _curves(scores: Mapping[str, VerificationScores]) -> Chart:
    return Chart(
        title="True accepts over false accepts",
        caption="Receiver operating characteristic over all pairs of people never trained on.",
        x_label="false-accept rate",
        y_label="true-accept rate",
        log_x=True,
        series=tuple(Series(name=name, x=s.roc_far, y=s.roc_tar) for name, s in scores.items()),
    )
