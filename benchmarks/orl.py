"""ORL faces, five folds of eight people never trained on, pairs pooled: our recipe beside plain softmax, PCA and raw pixels.

    raymill fetch orl people
    python -m benchmarks.orl people

Faces are found and aligned first; each fold trains on the other 32 people, with two workers.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch

from benchmarks.table import Table
from components.data.dataset import Dataset
from components.data.identities import IdentityFold, split_identities
from components.data.loader import evaluation_batches
from components.evaluation.calibration import embeddings
from components.evaluation.recognition_report import untrained
from components.evaluation.verification import pooled_verification_scores
from components.families.model_folder import load_model
from components.families.recognition import Recognition
from components.training.job import TrainingJob
from pipelines.faces import FACES
from pipelines.faces_config import AlignedConfig
from pipelines.preparing import align_people
from pipelines.settings import Training, configure
from pipelines.workers import Workers

FOLDS, SIDE = 5, 28
Fold = tuple[torch.Tensor, torch.Tensor]  # embeddings and labels of the people tested


def trained(name: str, settings: dict[str, Any], data: list[str], scratch: str, workers: Workers) -> tuple[list[Fold], list[float]]:
    """Embeddings of each fold's people by a model trained on the others, and the seconds that took."""
    folds, seconds = [], []
    for number, url in enumerate(data):
        run = f"{scratch}/{name}-{number}"
        job = TrainingJob.parse({"family": "recognition", "data": url, "run": run, **settings}, "benchmark")
        started = time.perf_counter()
        workers.train(job, lambda row: None)
        seconds.append(time.perf_counter() - started)
        model = load_model(f"{run}/model")
        assert isinstance(model, Recognition)
        folds.append(embeddings(model, Dataset.open(url, "test")))
    return folds, seconds


def baselines(data: list[str]) -> dict[str, list[Fold]]:
    """The methods that need no training, on pictures averaged over 2 x 2."""
    folds: dict[str, list[Fold]] = {}
    for url in data:
        labels = torch.cat([batch["label"] for batch in evaluation_batches(Dataset.open(url, "test"), 256)])
        for name, vectors in untrained(url, SIDE).items():
            folds.setdefault(name, []).append((vectors, labels))
    return folds


def main(people: str, seeds: int = 1, workers: int = 2) -> Table:
    table = Table(f"ORL, {FOLDS} folds, pooled pairs", ["method", "EER", "TAR@1e-2", "TAR@1e-3", "AUC", "10-fold", "rank-1", "s a fold"])
    with tempfile.TemporaryDirectory() as scratch, Workers(workers) as crew:
        align_people(people, f"{scratch}/aligned", AlignedConfig(), lambda row: None)
        data = [f"{scratch}/fold-{fold}" for fold in range(FOLDS)]
        for fold, url in enumerate(data):
            split_identities(f"{scratch}/aligned", url, IdentityFold(fold=fold, folds=FOLDS))
        rows: list[tuple[str, list[Fold], list[float]]] = [(name, folds, [0.0]) for name, folds in baselines(data).items()]
        for seed in range(seeds):
            for name in ("softmax", "usual"):
                settings: Training = getattr(configure(FACES.config(), FACES.presets["base"], "base", None, []), name)
                values = {"model": settings.model.to_json(), "train": settings.train.to_json() | {"held_out": "test", "seed": seed}}
                rows.append((f"{settings.model.loss}, seed {seed}", *trained(f"{name}-{seed}", values, data, scratch, crew)))
        for name, folds, seconds in rows:
            s = pooled_verification_scores(folds)
            table.add(name, s.eer, s.tar_at["1e-2"], s.tar_at["1e-3"], s.auc, s.accuracy, s.rank1, statistics.median(seconds))
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("people", help="folder of folders of pictures, as `raymill fetch orl` makes it")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="0: this process alone")
    chosen = parser.parse_args()
    print(main(chosen.people, chosen.seeds, chosen.workers))
