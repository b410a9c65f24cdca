"""The exact W1 between samples and real rows, which a WGAN's critic estimates, and both drawn for the report.

Between laws it would be 0 for a perfect model; between so many rows of each, chance alone keeps it above 0, by more the more numbers a row
has. So it says something beside another of as many rows, such as that of real rows, and beside the critic that looked at many more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from components.functional.transport import exact_w1
from components.report.findings import Chart, ScalarField, Series

ROWS = 2000  # of each side at most: the cost of a pairing grows with their third power
GRID, SHOWN = 40, 200  # places of a plane along each side, and points of each kind that are drawn over them
WIDE_RATIO = 20.0  # a chart with values further apart is logarithmic
# Of a run's record: name -> what is drawn, and what it is divided by.
CURVES: dict[str, tuple[str, str | None]] = {
    "critic, training rows": ("critic_w1", None),
    "critic over its slope": ("critic_w1", "critic_slope"),
    "critic, held-out rows": ("held_out.critic_w1", None),
    "exact, held-out rows": ("held_out.exact_w1", None),
}

Scores = Mapping[str, float | list[float]]


def w1_of_rows(x: Tensor, y: Tensor, labels: Tensor | None = None) -> float:
    """W1 at Euclidean distance between rows x (N, ...) and as many y (N, ...); with the classes (N,) of both, nothing leaves its class."""
    if labels is None:
        return exact_w1(x.flatten(1).double().cpu().numpy(), y.flatten(1).double().cpu().numpy())
    classes = [labels == label for label in labels.unique()]
    return sum(w1_of_rows(x[each], y[each]) * each.sum().item() for each in classes) / len(labels)


def w1_of_features(made: Tensor, real: Tensor) -> dict[str, float]:
    """`w1` between a judge's features of samples and of real pictures, both (N, D), and `w1_of_real`, between as many of other real ones.

    Of so many on each side: at most ROWS, all samples, or half of the real pictures, evenly spaced over their data set.
    """
    count = min(ROWS, len(made), len(real) // 2)
    spaced = real[torch.linspace(0, len(real) - 1, 2 * count).long()]
    return {"w1": w1_of_rows(made[:count], spaced[::2]), "w1_of_real": w1_of_rows(spaced[1::2], spaced[::2])}


def critic_plane(score: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> dict[str, list[float]]:
    """What `plane_chart` draws: a critic's scores over a grid around the points `real` and `fake` (N, 2), and some of them."""
    points = torch.cat([real, fake])
    margin = 0.1 * (points.amax(0) - points.amin(0))
    low, high = points.amin(0) - margin, points.amax(0) + margin
    x, y = (torch.linspace(*ends, GRID) for ends in zip(low.tolist(), high.tolist(), strict=True))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # a row for each y
    parts = {"x": x, "y": y, "values": score(grid.flatten(0, 1)), "real": real[:SHOWN], "fake": fake[:SHOWN]}
    return {f"plane_{name}": part.flatten().tolist() for name, part in parts.items()}


def plane_chart(scores: Scores) -> tuple[Chart, ...]:
    """The critic's scores over the plane with data and samples on them; none where there is no `critic_plane` among the scores."""
    if "plane_values" not in scores:
        return ()
    x, y, values, real, fake = (_numbers(scores, name) for name in ("x", "y", "values", "real", "fake"))
    return (
        Chart(
            title="What the critic sees",
            caption="Darker where its score is higher, where it expects data rather than samples; with classes, those of the first.",
            x_label="first number of a point",
            y_label="second number",
            series=(
                Series(name="held-out data", x=real[::2], y=real[1::2], joined=False),
                Series(name="samples", x=fake[::2], y=fake[1::2], joined=False),
            ),
            field=ScalarField(x=x, y=y, values=tuple(values[row : row + GRID] for row in range(0, len(values), GRID))),
        ),
    )


def w1_chart(rows: Sequence[Mapping[str, Any]]) -> tuple[Chart, ...]:
    """The critic's estimate over the steps beside the exact W1; none where the run's record has no `held_out.exact_w1`."""
    if not any("held_out.exact_w1" in row for row in rows):
        return ()
    curves = [curve for name, (value, over) in CURVES.items() if (curve := _series(name, rows, value, over)) is not None]
    values = [value for curve in curves for value in curve.y]
    return (
        Chart(
            title="W1 between samples and data",
            caption=f"The critic's estimate, and the exact one between samples and held-out rows, up to {ROWS:,} of each. Chance keeps the "
            "exact one up. Held-out rows meet the averaged generator, where there is one, which the critic was not trained against. A "
            "critic that is steeper than 1 exaggerates: over its slope, its mean gradient norm, it does not.",
            x_label="steps",
            y_label="W1",
            series=tuple(curves),
            log_y=min(values) > 0 and max(values) > WIDE_RATIO * min(values),
        ),
    )


def _series(name: str, rows: Sequence[Mapping[str, Any]], value: str, over: str | None) -> Series | None:
    points = [(float(row["step"]), row[value] / (row[over] if over else 1.0)) for row in rows if value in row and (not over or over in row)]
    return Series(name=name, x=tuple(x for x, _ in points), y=tuple(y for _, y in points)) if points else None


def _numbers(scores: Scores, name: str) -> tuple[float, ...]:
    value = scores[f"plane_{name}"]
    assert isinstance(value, list)
    return tuple(value)
