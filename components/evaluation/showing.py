"""What a generating model can do, as pictures for its report: its first samples, and held-out pictures that it completes."""

from __future__ import annotations

import torch

from components import storage
from components.data.dataset import Dataset
from components.data.loader import evaluation_batches
from components.evaluation.pictures import grid, png
from components.evaluation.sampling import SHEET, makes_points, to_images, write_samples
from components.families.autoregressive import Autoregressive
from components.families.contract import Family
from components.families.images import IMAGE, LABEL
from components.report.findings import Picture

SAMPLES, POINTS = 40, 1000
COMPLETED, COMPLETIONS = 8, 9
COMPLETED_SHEET = "completions.png"


@torch.inference_mode()
def show_samples(family: Family, url: str) -> tuple[Picture, ...]:
    """Writes the first samples of seed 0 below `url`; nothing where they are neither pictures nor points of the plane."""
    if family.Sampler is None:
        return ()
    count = POINTS if makes_points(family) else SAMPLES
    write_samples(family, count, 0, family.default_sampler or family.Sampler(), url)
    if not storage.exists(storage.join(url, SHEET)):
        return ()
    return (Picture(file=SHEET, title="Samples", caption=f"The first {count:,} of seed 0, not chosen."),)


@torch.inference_mode()
def show_completions(family: Family, held_out: Dataset, url: str) -> tuple[Picture, ...]:
    """Writes the first held-out pictures with lower halves that the model draws below `url`; nothing for families that cannot complete."""
    if not isinstance(family, Autoregressive) or family.Sampler is None:
        return ()
    batch = next(iter(evaluation_batches(held_out, COMPLETED, limit=COMPLETED)))
    images, labels = batch[IMAGE], batch[LABEL].long() if family.config.num_classes else None
    upper = torch.zeros(family.sample_shape, dtype=torch.bool)
    upper[:, : family.sample_shape[1] // 2] = True
    repeated = images.repeat_interleave(COMPLETIONS, 0)
    classes = labels.repeat_interleave(COMPLETIONS) if labels is not None else None
    drawn = family.complete(repeated, upper, 0, family.default_sampler or family.Sampler(), classes).cpu()
    seen = family.head.pictures(family.head.values(images))
    rows = [torch.cat([each[None], part]) for each, part in zip(seen, drawn.split(COMPLETIONS), strict=True)]
    storage.write_bytes(storage.join(url, COMPLETED_SHEET), png(grid([to_images(family, row).numpy() for row in rows], scale=3)))
    caption = f"Left held-out pictures as the model sees them, beside each {COMPLETIONS} lower halves that it draws given the upper one."
    return (Picture(file=COMPLETED_SHEET, title="Completions of upper halves", caption=caption),)
