"""The page on duality: its example runs, what it lists exists, and its tables show what it says of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.duality import CRITICS, DIMENSIONS, MARKS, SHIFT
from components.functional import transport

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "duality.md").read_text()
MEASURED = PAGE.split(MARKS[0])[1].split(MARKS[1])[0]


def cells(name: str) -> list[list[str]]:
    """Of every row with this name, the figures."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in MEASURED.splitlines() if line.startswith("|")]
    return [row[1:] for row in rows if row[0] == name]


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    example = PAGE.split("```python\n")[1].split("```")[0]
    exec(compile(example, str(DOCS / "duality.md"), "exec"), {})
    plan, potentials, pairing = capsys.readouterr().out.split()
    assert plan == potentials == pairing


def test_the_functions_listed_are_there() -> None:
    listed = re.findall(r"^\| `(\w+)\(", PAGE, flags=re.MULTILINE)
    public = {name for name, value in vars(transport).items() if getattr(value, "__module__", "") == transport.__name__ and name[0] != "_"}
    assert {*listed} == public - {"Plan", "Potentials"}


def test_every_road_leads_to_one_number() -> None:
    roads = [figures for name in re.findall(r"\| (the [^|]*`\w+`) +\|", MEASURED) for figures in cells(name)]
    assert len(roads) == 5
    assert len({figure for (figure,) in roads}) == 1


def test_critics_are_within_five_percent_after_a_minute() -> None:
    for number, name in enumerate(CRITICS):
        rows = cells(name)
        assert len(rows) == 3 * len(DIMENSIONS)
        for seconds, estimate, _, over_slope in rows[2::3]:
            assert float(seconds) <= 60
            assert float(over_slope) == pytest.approx(SHIFT, rel=0.05)
            assert number == 0 or float(estimate) == pytest.approx(SHIFT, rel=0.05)


def test_the_figure_is_there() -> None:
    assert (DOCS / re.findall(r"!\[[^]]*\]\((.*?)\)", PAGE)[0]).read_text().startswith("<?xml")
