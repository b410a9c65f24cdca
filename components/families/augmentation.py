"""Random changes of training pictures that keep who they show: the "one-to-many" augmentation of recognition."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from components.config import Config
from components.functional.augment import erase, flip, illuminate, jitter, perspective, thicken
from components.training.randomness import Draws


class Augmentation(Config):
    """How strongly pictures are changed, in this order; zero leaves a change out."""

    flip: bool = Field(False, description="mirror half of the pictures")
    turn: float = Field(0.0, ge=0, le=45, description="standard deviation of the angle, in degrees")
    zoom: float = Field(0.0, ge=0, le=1, description="standard deviation of the logarithm of the size")
    move: float = Field(0.0, ge=0, le=0.5, description="standard deviation of the place, as a share of the sides")
    perspective: float = Field(0.0, ge=0, lt=0.5, description="how far corners move, as a share of the sides")
    thicken: float = Field(0.0, ge=0, le=1, description="how far strokes grow or shrink, as a share of a pixel")
    illuminate: float = Field(0.0, ge=0, le=1, description="light from one side, as a share of the brightness")
    erase: float = Field(0.0, ge=0, le=0.5, description="largest covered area, as a share of the picture")


def augment(images: Tensor, config: Augmentation, random: Draws) -> Tensor:
    """Changed float images (B, C, H, W) in [0, 1]; each row by its own draws."""
    rows = len(images)
    if config.flip:
        images = flip(images, random.integers("flip", 2, (rows,)) == 1)
    if config.turn or config.zoom or config.move:
        images = jitter(images, random.normal("jitter", (rows, 4)), config.turn, config.zoom, config.move)
    if config.perspective:
        images = perspective(images, random.uniform("perspective", (rows, 8)), config.perspective)
    if config.thicken:
        images = thicken(images, config.thicken * (2 * random.uniform("thicken", (rows,)) - 1))
    if config.illuminate:
        images = illuminate(images, random.uniform("illuminate", (rows, 2)), config.illuminate)
    if config.erase:
        images = erase(images, random.uniform("erase", (rows, 4)), config.erase)
    return images
