"""The trained weights of the face detector, which come with Raymill, and how they were converted (see mtcnn.LICENSE beside them).

They are those of the wheel facenet-pytorch 2.6.0, converted once by `write_weights(WHEEL, "components/faces/mtcnn.safetensors")`.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from components.networks.mtcnn import Cascade

WEIGHTS = Path(__file__).parent / "mtcnn.safetensors"
_FIRST_LINEAR = {"dense4.weight": (64, 3, 3), "dense5.weight": (128, 3, 3)}  # the (C, H, W) of what it flattens


def load_cascade() -> Cascade:
    """The detector's networks with their trained weights, in evaluation mode, without gradients, on the CPU."""
    cascade = Cascade()
    cascade.load_state_dict(safetensors.torch.load_file(WEIGHTS))
    return cascade.eval().requires_grad_(False)


def write_weights(wheel: str, out: str) -> None:
    """Converts the weights in a facenet-pytorch wheel to one safetensors file."""
    safetensors.torch.save_file(read_wheel(wheel), out)


def read_wheel(wheel: str) -> dict[str, Tensor]:
    """The state of a `Cascade` from a facenet-pytorch wheel; of its three files nothing but tensors is read.

    Its layers stand in the order of ours. It flattens feature maps as (W, H, C), ours as (C, H, W).
    """
    ours = Cascade()
    state = {}
    with zipfile.ZipFile(wheel) as files:
        for name, network in ours.named_children():
            theirs = torch.load(io.BytesIO(files.read(f"facenet_pytorch/data/{name}.pt")), weights_only=True)
            for ours_key, (key, value) in zip(network.state_dict(), theirs.items(), strict=True):
                state[f"{name}.{ours_key}"] = _rows_first(key, value)
    return state


def _rows_first(key: str, value: Tensor) -> Tensor:
    if key not in _FIRST_LINEAR:
        return value.contiguous()
    channels, height, width = _FIRST_LINEAR[key]
    return value.view(-1, width, height, channels).permute(0, 3, 2, 1).reshape(len(value), -1)
