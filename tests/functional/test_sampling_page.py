"""The page on sampling: its example runs, and its tables are where the benchmark puts them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.solvers import DRAWS, FLOWS, MARKS
from components.families.diffusion import Diffusion
from components.families.rectified_flow import RectifiedFlow, RectifiedFlowConfig
from components.families.score_sde import SAMPLERS

PAGE = Path(__file__).parents[2] / "docs" / "sampling.md"


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    example = PAGE.read_text().split("```python\n")[1].split("```")[0]
    exec(compile(example, str(PAGE), "exec"), {})
    assert capsys.readouterr().out.startswith("21 tensor(")


def test_every_sampler_is_measured() -> None:
    measured = PAGE.read_text().split(MARKS[0])[1].split(MARKS[1])[0]
    rows = {line.split("|")[1].strip() for line in measured.splitlines() if line.startswith("|")}
    assert {*FLOWS, *DRAWS} <= rows


def test_every_sampler_of_a_family_is_listed() -> None:
    """The families' columns: yes, no, or of which equations."""
    flow = RectifiedFlow(RectifiedFlowConfig.parse(RectifiedFlow.proof.model, "test"))
    lines = [line.split("|")[1:-1] for line in PAGE.read_text().split("| sampler |")[1].splitlines() if line.startswith("| `")]
    listed = {name: [cell.strip() for cell in cells[:3]] for first, *cells in lines for name in re.findall("`([^`]+)`", first)}
    assert {*Diffusion.samplers, *flow.samplers}.union(*SAMPLERS.values()) == set(listed)
    for name, (diffusion, score_sde, rectified_flow) in listed.items():
        assert (diffusion == "yes") == (name in Diffusion.samplers)
        equations = [equation for equation, samplers in SAMPLERS.items() if name in samplers]
        assert score_sde == {3: "yes", 2: "VP, VE", 1: "VP"}[len(equations)]
        assert (rectified_flow == "yes") == (name in flow.samplers)
