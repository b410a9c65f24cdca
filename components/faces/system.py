"""A face system: pictures in, embeddings of the faces in them out, ready to compare (detect, align, embed).

Smallest use: `FaceSystem(model).only(decode(data, "a.jpg"), "a.jpg").embedding`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from components.errors import UserError
from components.faces.aligner import AlignedFace, Aligner, FaceConfig, Several
from components.faces.detect import Face


class FaceModel(Protocol):
    """What a face system needs of a model: unit vectors (B, D) of images (B, C, H, W) in [0, 1].

    Its `config` has `image_size` (height, width), `image_channels`, and `threshold` with its `false_accept_rate`, both perhaps None.
    """

    config: Any

    def embed(self, images: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class SeenFace:
    """A face where it was found, and its unit embedding (D,) float32."""

    face: Face
    embedding: np.ndarray


class FaceSystem:
    """A model with the detector and the alignment that it was trained behind."""

    def __init__(self, model: FaceModel, config: FaceConfig | None = None) -> None:
        self.config = config or FaceConfig()
        self._model = model
        self._aligner = Aligner(self.config, model.config.image_size, model.config.image_channels)

    @cached_property
    def embedding_dim(self) -> int:
        """D of the embeddings, as the model gives it for a black picture."""
        with torch.inference_mode():
            return self._model.embed(torch.zeros(1, *self._aligner.shape)).shape[1]

    def faces(self, pixels: np.ndarray) -> list[SeenFace]:
        """All faces of a picture, uint8 (H, W) or (H, W, 3), surest first; [] when there is none."""
        return self._embedded(self._aligner.faces(pixels))

    def only(self, pixels: np.ndarray, name: str, several: Several = "error") -> SeenFace:
        """The one face of a picture, or the largest of several; raises UserError naming the picture otherwise."""
        return self._embedded([self._aligner.only(pixels, name, several)])[0]

    def threshold(self, given: float | None = None) -> tuple[float, float | None]:
        """The cosine from which two faces are one person's, and the false accept rate it was chosen at: `given`, else the model's own.

        Raises UserError when there is neither.
        """
        if given is not None:
            if not -1 <= given <= 1:
                raise UserError(f"threshold {given} is no cosine; give a number from -1 to 1")
            return given, None
        if self._model.config.threshold is None:
            raise UserError("the model has no threshold of its own; choose one with raymill faces calibrate, or give --threshold")
        return self._model.config.threshold, self._model.config.false_accept_rate

    @torch.inference_mode()
    def _embedded(self, faces: list[AlignedFace]) -> list[SeenFace]:
        if not faces:
            return []
        embeddings = self._model.embed(torch.stack([face.image for face in faces]).float() / 255).float().cpu().numpy()
        return [SeenFace(one.face, embedding) for one, embedding in zip(faces, embeddings, strict=True)]


def similarity(a: SeenFace, b: SeenFace) -> float:
    """The cosine of two faces."""
    return float(a.embedding.astype(np.float64) @ b.embedding.astype(np.float64))
