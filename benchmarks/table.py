"""A titled table of figures."""

from __future__ import annotations

from tabulate import tabulate


class Table:
    """Rows of one label and figures, under column names."""

    def __init__(self, title: str, columns: list[str]) -> None:
        self.title, self.columns = title, columns
        self.rows: list[tuple[str, ...]] = []

    def add(self, label: str, *figures: float | None) -> None:
        self.rows.append((label, *(_shown(figure) for figure in figures)))

    def __str__(self) -> str:
        return f"{self.title}\n\n{tabulate(self.rows, self.columns, disable_numparse=True, tablefmt='github')}"


def _shown(figure: float | None) -> str:
    """Four significant digits, thousands apart."""
    if figure is None:
        return "-"
    return f"{figure:,.0f}" if abs(figure) >= 1000 else f"{figure:.4g}"
