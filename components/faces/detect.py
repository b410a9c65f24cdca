"""Finds faces and their five landmarks in pictures: an image pyramid and three networks, each judging what the one before let pass.

Zhang et al. 2016, arXiv 1604.02878. Smallest use: `FaceDetector().detect(images)` with uint8 images (B, C, H, W).

Edges of boxes lie between pixels (0 is the left edge of the first one); landmarks count from the middle of the first pixel, as the
alignment template does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from components.config import Config
from components.faces.weights import load_cascade
from components.functional.boxes import move_edges, squared, suppress

WINDOW, STRIDE = 12, 2  # pixels of the proposal network
WINDOWS_AT_A_TIME = 512


class DetectorConfig(Config):
    """How faces are looked for. The defaults are those that the networks were published with."""

    min_face: int = Field(20, ge=12, description="side in pixels of the smallest windows that are looked at; smaller ones take more time")
    padding: int = Field(0, ge=0, description="pixels to add around the picture, for faces that fill it")
    pyramid_factor: float = Field(0.709, gt=0, lt=1, description="size of each level of the pyramid relative to the one before")
    thresholds: tuple[float, float, float] = Field((0.6, 0.7, 0.7), description="probability of a face that each network asks for")


@dataclass(frozen=True)
class Face:
    """A face in a picture: box (left, top, right, bottom), probability, and five points (x, y), in pixels of the picture.

    The points are left eye, right eye, nose, left and right corner of the mouth; left is left in the picture.
    """

    box: tuple[float, float, float, float]
    score: float
    landmarks: tuple[tuple[float, float], ...]

    @property
    def area(self) -> float:
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


class FaceDetector:
    """The cascade with its trained weights."""

    def __init__(self, config: DetectorConfig | None = None) -> None:
        self.config = config or DetectorConfig()
        self._networks = load_cascade()

    @torch.inference_mode()
    def detect(self, images: Tensor) -> list[list[Face]]:
        """The faces in each of the uint8 images (B, 1 or 3, H, W), surest first; [] for an image without any."""
        assert images.dtype == torch.uint8, f"images are {images.dtype}, expected uint8"
        pixels = (images.expand(-1, 3, -1, -1).float() - 127.5) / 128
        if self.config.padding:
            pixels = F.pad(pixels, (self.config.padding,) * 4, mode="replicate")
        proposals = self._propose(pixels)
        return [self._judge(image, boxes) for image, boxes in zip(pixels, proposals, strict=True)]

    def _propose(self, images: Tensor) -> list[Tensor]:
        """Square boxes (N, 4) of each image that may hold a face."""
        found: list[list[tuple[Tensor, ...]]] = [[] for _ in images]
        for height, width in pyramid(images.shape[-2], images.shape[-1], self.config):
            level = F.interpolate(images, (height, width), mode="area")
            scale = torch.tensor([images.shape[-1] / width, images.shape[-2] / height])
            faces, edges = self._networks.pnet(level)
            for i, probable in enumerate(faces > self.config.thresholds[0]):
                scores, corners = faces[i][probable], probable.nonzero().flip(1) * STRIDE
                boxes = torch.cat([corners * scale, (corners + WINDOW) * scale], 1)
                kept = suppress(boxes, scores, 0.5)
                found[i].append((boxes[kept], scores[kept], edges[i][probable][kept]))
        return [_joined(parts) for parts in found]

    def _judge(self, image: Tensor, boxes: Tensor) -> list[Face]:
        """The faces among proposed boxes (N, 4) of one image (3, H, W)."""
        _, refine, output = self.config.thresholds
        scores, edges = _in_parts(self._networks.rnet, crops(image, boxes, 24))
        sure = scores > refine
        boxes, scores, edges = boxes[sure], scores[sure], edges[sure]
        kept = suppress(boxes, scores, 0.7)
        boxes = squared(move_edges(boxes[kept], edges[kept]))
        scores, edges, points = _in_parts(self._networks.onet, crops(image, boxes, 48))
        sure = scores > output
        boxes, scores, edges, points = boxes[sure], scores[sure], edges[sure], points[sure]
        points = boxes[:, None, :2] + points * (boxes[:, None, 2:] - boxes[:, None, :2])
        boxes = move_edges(boxes, edges)
        kept = suppress(boxes, scores, 0.7, of_smaller=True)  # a face inside a face is the same one
        return [self._face(boxes[i], scores[i], points[i]) for i in kept]

    def _face(self, box: Tensor, score: Tensor, points: Tensor) -> Face:
        left, top, right, bottom = (box - self.config.padding).tolist()
        landmarks = tuple((x, y) for x, y in (points - self.config.padding).tolist())
        return Face((left, top, right, bottom), float(score), landmarks)


def pyramid(height: int, width: int, config: DetectorConfig) -> Iterator[tuple[int, int]]:
    """Heights and widths of the picture in which a window frames a face of `min_face` pixels, then of larger and larger ones."""
    scale = WINDOW / config.min_face
    while min(height, width) * scale >= WINDOW:
        yield math.ceil(height * scale), math.ceil(width * scale)
        scale *= config.pyramid_factor


def crops(image: Tensor, boxes: Tensor, side: int) -> Tensor:
    """What boxes (N, 4) frame of an image (3, H, W), as (N, 3, side, side); outside the image its edge goes on."""
    height, width = image.shape[1:]
    windows = []
    for left, top, right, bottom in boxes.round().int().tolist():
        rows = torch.arange(top, max(bottom, top + 1)).clamp(0, height - 1)
        columns = torch.arange(left, max(right, left + 1)).clamp(0, width - 1)
        windows.append(F.interpolate(image[:, rows[:, None], columns][None], (side, side), mode="area"))
    return torch.cat(windows) if windows else image.new_empty(0, 3, side, side)


def _joined(levels: list[tuple[Tensor, ...]]) -> Tensor:
    """One image's proposals from all levels (boxes, scores, edges) as squares (N, 4), without those that say the same."""
    if not levels:
        return torch.empty(0, 4)
    boxes, scores, edges = (torch.cat(parts) for parts in zip(*levels, strict=True))
    kept = suppress(boxes, scores, 0.7)
    return squared(move_edges(boxes[kept], edges[kept]))


def _in_parts(network: Callable[[Tensor], tuple[Tensor, ...]], windows: Tensor) -> tuple[Tensor, ...]:
    """What the network says of windows (N, 3, h, w), in batches of bounded memory."""
    parts = [network(part) for part in windows.split(WINDOWS_AT_A_TIME)]
    return tuple(torch.cat(values) for values in zip(*parts, strict=True))
