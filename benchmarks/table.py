"""A titled table of figures, printed with aligned columns."""

from __future__ import annotations


class Table:
    """Rows of one label and numbers, under column names."""

    def __init__(self, title: str, columns: list[str]) -> None:
        self.title, self.columns = title, columns
        self.rows: list[list[str]] = []

    def add(self, label: str, *figures: float | str | None) -> None:
        self.rows.append([label, *("-" if f is None else f if isinstance(f, str) else f"{f:,.4g}" for f in figures)])

    def __str__(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(len(line[place]) for line in lines) for place in range(len(self.columns))]
        text = [
            "  ".join(cell.ljust(w) if n == 0 else cell.rjust(w) for n, (cell, w) in enumerate(zip(line, widths, strict=True)))
            for line in lines
        ]
        return "\n".join([self.title, "-" * len(self.title), *text])
