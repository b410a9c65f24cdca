"""A titled table of figures."""

from __future__ import annotations

from tabulate import tabulate


class Table:
    """Rows of one label and figures, under column names."""

    def __init__(self, title: str, columns: list[str]) -> None:
        self.title, self.columns = title, columns
        self.rows: list[tuple[str | float | None, ...]] = []

    def add(self, label: str, *figures: float | None) -> None:
        self.rows.append((label, *figures))

    def __str__(self) -> str:
        return f"{self.title}\n\n{tabulate(self.rows, self.columns, floatfmt=',.4g', missingval='-', tablefmt='github')}"
