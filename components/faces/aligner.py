"""Pictures to aligned faces, the same way for training data, for enrolment and for a question: detect, align.

Smallest use: `Aligner(FaceConfig(), (112, 112), 1).only(decode(data, "a.jpg"), "a.jpg").image`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from components.config import Config
from components.errors import UserError
from components.faces.align import align
from components.faces.detect import DetectorConfig, Face, FaceDetector
from components.functional.geometry import Border

Several = Literal["error", "largest"]


class FaceConfig(Config):
    """How faces are found and brought into one form. A model must see faces of the form that it was trained on."""

    detector: DetectorConfig = DetectorConfig()
    border: Border = Field("border", description="what lies outside the picture: zeros (black), or border (its edge going on)")


@dataclass(frozen=True)
class AlignedFace:
    """A face where it was found, and its aligned picture, uint8 (C, size, size)."""

    face: Face
    image: Tensor


class Aligner:
    """Finds the faces of pictures and brings them to `size` (height and width, equal) and `channels` (1 grey, 3 colour)."""

    def __init__(self, config: FaceConfig, size: tuple[int, int], channels: int) -> None:
        if size[0] != size[1]:
            raise UserError(f"faces are aligned to squares, the model reads {size[0]} x {size[1]} pixels; train one on square pictures")
        self.config, self.shape = config, (channels, *size)
        self._detector = FaceDetector(config.detector)

    def faces(self, pixels: np.ndarray) -> list[AlignedFace]:
        """All faces of a picture, uint8 (H, W) or (H, W, 3), surest first; [] when there is none."""
        image = torch.from_numpy(np.array(pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0), order="C"))
        return [AlignedFace(face, self._aligned(image, face)) for face in self._detector.detect(image[None])[0]]

    def only(self, pixels: np.ndarray, name: str, several: Several = "error") -> AlignedFace:
        """The one face of a picture, or the largest of several; raises UserError naming the picture otherwise."""
        return self.choose(self.faces(pixels), name, several)

    def choose(self, found: list[AlignedFace], name: str, several: Several = "error") -> AlignedFace:
        """The one face among those found in a picture; raises UserError as `only` does."""
        if not found:
            smallest, padding = self.config.detector.min_face, self.config.detector.padding
            raise UserError(
                f"{name} shows no face of {smallest} pixels or more; give another picture, or detector.padding={padding + 20} if a face "
                f"fills it"
            )
        if len(found) > 1 and several == "error":
            raise UserError(f"{name} shows {len(found)} faces, expected one; cut the picture to one, or ask for the largest (--largest)")
        return max(found, key=lambda one: one.face.area)

    def _aligned(self, image: Tensor, face: Face) -> Tensor:
        return in_channels(align(image, face.landmarks, self.shape[1], self.config.border), self.shape[0])


def in_channels(image: Tensor, channels: int) -> Tensor:
    """A uint8 image (1 or 3, H, W) in grey (1) or colour (3); grey is the luma of ITU-R BT.601."""
    if len(image) == channels:
        return image
    if channels == 3:
        return image.repeat(3, 1, 1)
    assert channels == 1, f"channels={channels}"
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    return (image.float() * weights).sum(0, keepdim=True).round().to(torch.uint8)
