"""The three small networks of a face detector cascade (Zhang et al. 2016, "Joint Face Detection and Alignment Using Multitask Cascaded
Convolutional Networks", arXiv 1604.02878, fig. 2). Shapes, no losses; `components/faces/weights.py` has trained weights.

All take RGB pixels as (v - 127.5) / 128 and give, for a square window, the probability that it frames a face and the shift of its four
edges (left, top, right, bottom) in units of its side. They were trained on pictures that are read column by column; the weights that
come with Raymill are in the usual order of rows.
"""

from __future__ import annotations

from torch import Tensor, nn


def _convolution(before: int, width: int, kernel: int) -> list[nn.Module]:
    return [nn.Conv2d(before, width, kernel), nn.PReLU(width)]


def _pool(kernel: int) -> nn.Module:
    return nn.MaxPool2d(kernel, 2, ceil_mode=True)


class PNet(nn.Module):
    """Proposals: images (B, 3, H, W) to (B, h, w) probabilities and (B, h, w, 4) edges of the 12 x 12 windows at every second pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*_convolution(3, 10, 3), _pool(2), *_convolution(10, 16, 3), *_convolution(16, 32, 3))
        self.face = nn.Conv2d(32, 2, 1)
        self.edges = nn.Conv2d(32, 4, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk(images)
        return self.face(x).softmax(1)[:, 1], self.edges(x).permute(0, 2, 3, 1)


class RNet(nn.Module):
    """Refinement: windows (B, 3, 24, 24) to (B,) probabilities and (B, 4) edges."""

    def __init__(self) -> None:
        super().__init__()
        convolutions = [*_convolution(3, 28, 3), _pool(3), *_convolution(28, 48, 3), _pool(3), *_convolution(48, 64, 2)]
        self.trunk = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(576, 128), nn.PReLU(128))
        self.face = nn.Linear(128, 2)
        self.edges = nn.Linear(128, 4)

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk(windows)
        return self.face(x).softmax(1)[:, 1], self.edges(x)


class ONet(nn.Module):
    """Output: windows (B, 3, 48, 48) to (B,) probabilities, (B, 4) edges and (B, 5, 2) landmarks (x, y) in units of the side.

    The landmarks are the eyes, the nose and the corners of the mouth, the one further left in the picture first.
    """

    def __init__(self) -> None:
        super().__init__()
        convolutions = [*_convolution(3, 32, 3), _pool(3), *_convolution(32, 64, 3), _pool(3), *_convolution(64, 64, 3), _pool(2)]
        self.trunk = nn.Sequential(*convolutions, *_convolution(64, 128, 2), nn.Flatten(), nn.Linear(1152, 256), nn.PReLU(256))
        self.face = nn.Linear(256, 2)
        self.edges = nn.Linear(256, 4)
        self.landmarks = nn.Linear(256, 10)

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.trunk(windows)
        return self.face(x).softmax(1)[:, 1], self.edges(x), self.landmarks(x).view(-1, 2, 5).transpose(1, 2)


class Cascade(nn.Module):
    """The three networks together, as their weights are stored."""

    def __init__(self) -> None:
        super().__init__()
        self.pnet, self.rnet, self.onet = PNet(), RNet(), ONet()
