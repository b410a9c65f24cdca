"""Samples of a model as files: a picture to look at and the numbers themselves. Samples are pictures, or points of any width."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import safetensors.torch
import torch
from torch import Tensor

from components import storage
from components.config import Config
from components.errors import UserError
from components.evaluation.pictures import grid, png
from components.evaluation.scatter import scatter_png
from components.families.contract import Family

COLUMNS = 10
SHEET = "samples.png"


def to_images(family: Family, samples: Tensor, first: int = 0) -> Tensor:
    """Samples `first` and on of `family` as uint8 images (N, C, H, W): decoded where it has a decoder, else taken as values in [0, 1].

    Raises UserError where they are not finite, which as bytes would look like a black picture.
    """
    decode = getattr(family, "decode", None)
    images = require_finite(decode(samples) if decode is not None else samples, first)
    assert images.dim() == 4, f"{type(family).__name__} gives samples of shape {tuple(images.shape)}, which are no pictures"
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def require_finite(samples: Tensor, first: int = 0) -> Tensor:
    """The same samples (N, ...); raises UserError naming the first that is not finite, counted from `first`."""
    finite = samples.isfinite().flatten(1).all(1).cpu()
    if not finite.all():
        raise UserError(
            f"sample {first + int((~finite).nonzero()[0])} is not finite: this sampler leaves the numbers; take more steps, less guidance "
            "or another sampler, or another checkpoint if the model's weights are to blame"
        )
    return samples


def makes_points(family: Family) -> bool:
    """Whether samples of `family`, which generates, are points (D,) and not pictures."""
    return getattr(family, "decode", None) is None and len(family.sample_shape) == 1


def picture_shape(family: Family) -> tuple[int, int, int]:
    """(C, H, W) of the pictures that samples of `family` become; raises UserError when it does not generate, or has no way to pictures."""
    if makes_points(family):
        raise UserError(
            f"the model makes points of {family.sample_shape[0]} numbers, and a judge looks at pictures; score it without one: "
            f"raymill evaluate MODEL DATA"
        )
    decode = getattr(family, "decode", None)
    shape = family.sample_shape if decode is None else decode(torch.zeros(1, *family.sample_shape, dtype=torch.int64)).shape[1:]
    channels, height, width = shape
    return channels, height, width


def write_samples(family: Family, count: int, seed: int, sampler: Config, url: str) -> list[str]:
    """Draws `count` samples into `samples.png` and `samples.safetensors` (tensors `samples` and `images`); returns their URLs.

    Points have the tensor `samples` alone, and a picture where they are of the plane. Raises UserError, with nothing written, when the
    family does not generate, has no way to pictures, or makes samples that are not finite.
    """
    samples = family.sample(count, seed, sampler)
    tensors, numbers = {"samples": samples.cpu().contiguous()}, storage.join(url, "samples.safetensors")
    if makes_points(family):
        sheets = write_scatter(require_finite(samples), family.sample_labels(count, sampler), url)
    else:
        tensors["images"] = to_images(family, samples).contiguous()
        sheets = [write_sheet(tensors["images"], url)]
    storage.write_bytes(numbers, safetensors.torch.save(tensors))
    return [*sheets, numbers]


def write_scatter(points: Tensor, labels: Tensor | None, url: str) -> list[str]:
    """Writes points (N, D) of the plane as `samples.png` below `url`; returns its URL, or nothing where D is not 2."""
    if points.shape[1] != 2:
        return []
    place = storage.join(url, SHEET)
    storage.write_bytes(place, scatter_png(points, labels))
    return [place]


def write_sheet(images: Tensor, url: str) -> str:
    """Writes uint8 images (N, C, H, W) in rows of ten as `samples.png` below `url`; returns its URL."""
    blank = torch.zeros(-len(images) % COLUMNS, *images.shape[1:], dtype=torch.uint8)
    rows = torch.cat([images, blank]).split(COLUMNS)
    place = storage.join(url, SHEET)
    storage.write_bytes(place, png(grid([row.numpy() for row in rows], scale=3)))
    return place


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums differ in their last bit by how threads share them, and workers have other numbers of threads than this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
