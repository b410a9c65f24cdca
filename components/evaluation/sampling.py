"""Samples of a model as files: a picture to look at and the numbers themselves."""

from __future__ import annotations

import safetensors.torch
import torch
from torch import Tensor

from components import storage
from components.config import Config
from components.evaluation.pictures import grid, png
from components.families.contract import Family

COLUMNS = 10


def to_images(family: Family, samples: Tensor) -> Tensor:
    """Samples of `family` as uint8 images (N, C, H, W): decoded where it has a decoder, else taken as values in [0, 1]."""
    decode = getattr(family, "decode", None)
    images = decode(samples) if decode is not None else samples
    assert images.dim() == 4, f"{type(family).__name__} gives samples of shape {tuple(images.shape)}, which are no pictures"
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def picture_shape(family: Family) -> tuple[int, int, int]:
    """(C, H, W) of the pictures that samples of `family` become; raises UserError when it does not generate, or has no way to pictures."""
    decode = getattr(family, "decode", None)
    shape = family.sample_shape if decode is None else decode(torch.zeros(1, *family.sample_shape, dtype=torch.int64)).shape[1:]
    channels, height, width = shape
    return channels, height, width


def write_samples(family: Family, count: int, seed: int, sampler: Config, url: str) -> list[str]:
    """Draws `count` samples into `samples.png` and `samples.safetensors` (tensors `samples` and `images`); returns their URLs.

    Raises UserError when the family does not generate, or has no way to pictures.
    """
    samples = family.sample(count, seed, sampler)
    images = to_images(family, samples)
    sheet, numbers = write_sheet(images, url), storage.join(url, "samples.safetensors")
    storage.write_bytes(numbers, safetensors.torch.save({"samples": samples.cpu().contiguous(), "images": images.contiguous()}))
    return [sheet, numbers]


def write_sheet(images: Tensor, url: str) -> str:
    """Writes uint8 images (N, C, H, W) in rows of ten as `samples.png` below `url`; returns its URL."""
    blank = torch.zeros(-len(images) % COLUMNS, *images.shape[1:], dtype=torch.uint8)
    rows = torch.cat([images, blank]).split(COLUMNS)
    place = storage.join(url, "samples.png")
    storage.write_bytes(place, png(grid([row.numpy() for row in rows], scale=3)))
    return place
