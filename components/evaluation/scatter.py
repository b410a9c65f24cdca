"""Points of the plane as a picture, coloured by their classes where they have some."""

from __future__ import annotations

import io

from torch import Tensor

INCHES, DOTS_AN_INCH = 5.0, 120
COLOURS = 10


def scatter_png(points: Tensor, labels: Tensor | None = None) -> bytes:
    """The PNG file of points (N, 2), both axes in the same scale; those that are not finite are left out."""
    from matplotlib.figure import Figure

    assert points.dim() == 2, points.shape
    assert points.shape[1] == 2, points.shape
    figure = Figure(figsize=(INCHES, INCHES), dpi=DOTS_AN_INCH, layout="constrained")
    axes = figure.subplots()
    x, y = points.cpu().numpy().T
    colours = None if labels is None else [f"C{label % COLOURS}" for label in labels.tolist()]  # Matplotlib's own cycle
    axes.scatter(x, y, s=6, c=colours, alpha=0.7, linewidths=0)
    axes.set_aspect("equal", "datalim")
    axes.tick_params(labelsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
