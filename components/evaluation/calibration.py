"""The threshold of a recognition model, chosen on development identities at a stated false-accept rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from components.data.dataset import Dataset
from components.data.loader import evaluation_batches
from components.errors import UserError
from components.evaluation.verification import pair_scores, roc, tar_at_far, threshold_at_far
from components.families.images import LABEL, pixels
from components.families.recognition import Recognition


@dataclass(frozen=True)
class Calibration:
    """Accept two pictures as one identity when their cosine is at least `threshold`; the other rate is that of the development pairs."""

    threshold: float
    false_accept_rate: float
    true_accept_rate: float
    pairs: int


@torch.no_grad()
def embeddings(model: Recognition, dataset: Dataset, batch_size: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors (N, D) and labels (N,) of a whole split; raises UserError when the model does not read such pictures."""
    model.require_fitting(dataset.shape, dataset.url)
    batches = list(evaluation_batches(dataset, batch_size))
    return torch.cat([model.embed(pixels(batch)) for batch in batches]), torch.cat([batch[LABEL] for batch in batches])


def calibrate(model: Recognition, development: Dataset, false_accept_rate: float) -> Calibration:
    """Raises UserError when there are too few pairs of different identities for the rate, or none of one identity."""
    found = embeddings(model, development)
    try:
        scores, genuine = pair_scores(*found)
    except UserError as error:
        raise UserError(f"split {development.split} of {development.url}: {error}") from None
    impostors = int((~genuine).sum())
    if impostors * false_accept_rate < 1:
        raise UserError(
            f"a false-accept rate of {false_accept_rate:g} needs {math.ceil(1 / false_accept_rate)} pairs of different identities, "
            f"split {development.split} of {development.url} has {impostors}; ask for a higher rate or give more identities"
        )
    curve = roc(scores, genuine)
    threshold = min(1.0, max(-1.0, threshold_at_far(curve, false_accept_rate)))
    return Calibration(threshold, false_accept_rate, tar_at_far(curve, false_accept_rate), len(scores))
