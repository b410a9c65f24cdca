"""Curves, charts and histograms as inline SVG that takes its colours and its font from the page, light or dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from components.report.findings import Chart, ScalarField

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

INCHES, CHART_INCHES, PLANE_INCHES, WIDE_INCHES = (3.6, 2.1), (5.2, 3.4), (5.2, 4.6), (10.0, 1.9)
# Stand-ins that matplotlib draws with, and what the page replaces them by.
INK, MUTED, SERIES, SECOND, THIRD, FOURTH = "#000001", "#000002", "#000003", "#000004", "#000005", "#000006"
PAGE_COLOURS = {INK: "var(--ink)", MUTED: "var(--muted)", SERIES: "var(--series)", SECOND: "var(--second)"}
PAGE_COLOURS |= {THIRD: "var(--third)", FOURTH: "var(--fourth)"}
# Of a chart's series: colour, mark and dashes, so that no two differ by their colour alone.
LOOKS = (
    (SERIES, "o", "-"),
    (SECOND, "s", (0, (5, 2))),
    (THIRD, "^", (0, (1.2, 1.4))),
    (FOURTH, "D", (0, (6, 2, 1.2, 2))),
    (INK, "v", (0, (9, 3))),
    (MUTED, "X", (0, (3, 1, 1, 1, 1, 1))),
)
MARKS = 8  # on a line, about: all its points would hide it
FEW_DECADES = 1e3  # an axis whose ends differ by less gets more ticks than powers of ten
LONG_NAME = 24  # characters; the names of two such do not fit side by side
SHADES, SHADE_ALPHA = 12, 0.06  # of a field: each shade lies on those of lower values
WIDE_RATIO = 20.0  # a curve that falls by more is drawn on a logarithmic axis


@dataclass(frozen=True)
class Curve:
    """Values over steps: of training, and (fewer) of held-out data."""

    title: str
    steps: Sequence[int]
    values: Sequence[float]
    held_out_steps: Sequence[int] = ()
    held_out: Sequence[float] = ()


def curve_svg(curve: Curve, name: str) -> str:
    """`name` tells this figure's inner identifiers from those of the page's other figures."""
    figure, axes = new_figure(INCHES)
    axes.plot(curve.steps, curve.values, color=SERIES, linewidth=1.4)
    if curve.held_out:
        axes.plot(curve.held_out_steps, curve.held_out, color=SECOND, linewidth=1.2, marker="o", markersize=2.6)
    every = [*curve.values, *curve.held_out]
    if min(every) > 0 and curve.values[0] / curve.values[-1] > WIDE_RATIO:
        axes.set_yscale("log")
        plain_numbers(axes.yaxis)
    axes.set_title(curve.title, fontsize=9, color=INK, loc="left")
    axes.set_xlim(left=0)
    return to_svg(figure, name)


def chart_svg(chart: Chart, name: str) -> str:
    """The legend stands below the axes, where it covers no point."""
    figure, axes = new_figure(CHART_INCHES if chart.field is None else PLANE_INCHES)
    if chart.field is not None:
        _shade(axes, chart.field)
    for place, (series, (colour, mark, dashes)) in enumerate(zip(chart.series, LOOKS, strict=False)):
        apart = max(1, len(series.x) // MARKS)
        line = {"linestyle": dashes, "linewidth": 1.5, "markevery": (place % apart, apart)} if series.joined else {"linestyle": "none"}
        axes.plot(series.x, series.y, color=colour, marker=mark, markersize=4.2, label=series.name, **line)
    axes.set_xlabel(chart.x_label, fontsize=9, color=INK)
    axes.set_ylabel(chart.y_label, fontsize=9, color=INK)
    if chart.log_x:
        axes.set_xscale("log")
        plain_numbers(axes.xaxis)
    if chart.log_y:
        axes.set_yscale("log")
        plain_numbers(axes.yaxis)
    axes.tick_params(labelsize=8.5)
    axes.grid(axis="x", color=MUTED, linewidth=0.4, alpha=0.35)
    columns = 1 if max(len(series.name) for series in chart.series) > LONG_NAME else 2
    figure.legend(loc="outside lower left", ncols=columns, fontsize=8.5, labelcolor=INK, frameon=False, handlelength=3.4)
    return to_svg(figure, name)


def _shade(axes: Axes, field: ScalarField) -> None:
    lowest, highest = min(map(min, field.values)), max(map(max, field.values))
    for shade in range(SHADES):
        level = lowest + (highest - lowest) * shade / SHADES
        axes.contourf(field.x, field.y, field.values, levels=[level, math.inf], colors=[MUTED], alpha=SHADE_ALPHA)
    axes.set_aspect("equal")


def histogram_svg(shares: Sequence[float], name: str) -> str:
    """Shares as bars that touch, beside the share of an even use."""
    figure, axes = new_figure(WIDE_INCHES)
    axes.bar(range(len(shares)), shares, width=1.0, color=SERIES, linewidth=0)
    axes.axhline(1 / len(shares), color=SECOND, linewidth=1.2)
    axes.set_xlim(-0.5, len(shares) - 0.5)
    axes.set_ylim(bottom=0)
    return to_svg(figure, name)


def plain_numbers(axis: Axis) -> None:
    """Plain numbers instead of powers of ten on a logarithmic axis, and enough of them on one of few decades."""
    from matplotlib.ticker import LogLocator

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < FEW_DECADES * low else (1,)))
    axis.set_major_formatter(lambda value, _: f"{value:g}".replace("e+0", "e").replace("e-0", "e-"))
    axis.set_minor_formatter("")


def new_figure(inches: tuple[float, float]) -> tuple[Figure, Axes]:
    """Empty axes in the page's style."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(which="both", colors=MUTED, labelsize=7.5, width=0.6)
    axes.grid(axis="y", color=MUTED, linewidth=0.4, alpha=0.35)
    axes.set_axisbelow(True)
    return figure, axes


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element; stand-ins become the page's colours, and `name` makes its inner identifiers its own."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" role="img">', text, count=1)
    text = re.sub(r'id="(?!' + re.escape(name) + r')([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", text).replace("xlink:href", "href")
    text = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", text)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)  # it would style the whole page
    for stand_in, colour in PAGE_COLOURS.items():
        text = text.replace(stand_in, colour)
    return re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL).strip()
