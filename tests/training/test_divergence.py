"""A run whose numbers stop being finite ends with the step, the term and the last good checkpoint, in the same words on every worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from components.config import Config
from components.errors import Diverged
from components.families.catalogue import FAMILIES
from components.families.contract import Batch, PhaseOutput
from components.training.checkpoint import CheckpointFolder
from components.training.communication import Communication
from components.training.context import Context
from components.training.job import TrainingJob, execute
from components.training.outlet import Outlet
from tests.families.small_points import Cloud, CloudConfig
from tests.gang import Gang
from tests.pipelines.world import require_one_line

DOOM = 5  # the step, counted from 1, in which it happens


class DoomedConfig(CloudConfig):
    term: str = "loss"
    rank: int = 0  # whose rows it happens on


class Doomed(Cloud):
    Config = DoomedConfig

    @classmethod
    def fit(cls, config: Config, data: Any) -> Config:
        return config

    def loss(self, phase: str, batch: Batch, ctx: Context) -> PhaseOutput:
        output = super().loss(phase, batch, ctx)
        assert isinstance(self.config, DoomedConfig)
        struck = ctx.step == DOOM - 1 and ctx.world.rank == min(self.config.rank, ctx.world.size - 1)
        factor = float("nan") if struck else 1.0
        if self.config.term == "loss":
            return PhaseOutput(output.loss * factor)
        return PhaseOutput(output.loss, {self.config.term: output.loss.detach() * factor})


def message(values: dict[str, Any]) -> str:
    """What the job says as it stops, on this worker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "doomed", Doomed)
        with pytest.raises(Diverged) as caught:
            execute(TrainingJob.parse(values, "test"), Outlet(torch.device("cpu"), Communication.current()))
    return str(caught.value)


@pytest.fixture
def values(tmp_path: Path, small_data_folders: dict[str, Path]) -> dict[str, Any]:
    """A run that looks at its numbers every eight steps, and that saves at the third."""
    train = {"steps": 20, "batch_size": 48, "log_every": 8, "checkpoint_every": 3}
    model = {"num_classes": 8}
    return {"family": "doomed", "model": model, "train": train, "data": str(small_data_folders["points"]), "run": str(tmp_path)}


@pytest.mark.parametrize(("term", "named"), [("loss", "loss.cloud and gradient_norm.cloud are"), ("spread", "spread is")])
def test_the_step_the_term_and_the_last_good_checkpoint_are_named(values: dict[str, Any], term: str, named: str) -> None:
    values["model"]["term"] = term
    place = f"{values['run']}/checkpoints/step_00000003"
    assert message(values) == (
        f"training stopped: at step {DOOM} {named} not finite; lower optimizer.lr, clip tighter (clip_norm) or use precision=float32; "
        f"the last good checkpoint, of step 3, is {place}"
    )
    kept = CheckpointFolder(f"{values['run']}/checkpoints").latest()
    assert kept is not None
    assert kept.step == 3
    assert all(torch.isfinite(tensor).all() for tensor in kept.state["model"].values())


def test_several_workers_say_the_same(values: dict[str, Any], gang: Gang) -> None:
    values["model"] |= {"term": "spread", "rank": 1}  # rank 0 saw nothing itself
    first, second = gang.run(message, 2, values)
    assert first == second
    assert f"at step {DOOM} spread is not finite" in first
    assert first.endswith(f"the last good checkpoint, of step 3, is {values['run']}/checkpoints/step_00000003")


def test_a_run_without_a_checkpoint_says_so(values: dict[str, Any], gang: Gang) -> None:
    values["train"]["checkpoint_every"] = 100
    told = [*gang.run(message, 2, values), message(values)]
    assert all(each.endswith("; there is no checkpoint of the steps before it") for each in told)


@pytest.mark.parametrize("adjoint", [False, True])
def test_a_flow_that_cannot_be_solved_any_longer_is_named_alike(values: dict[str, Any], gang: Gang, adjoint: bool) -> None:
    """No step of an adaptive solver is small enough for weights that are not finite: that has to end as any other number that is none."""
    values["family"] = "flow"
    values["model"] = {"network": {"kind": "continuous", "widths": (8,), "adjoint": adjoint}}
    values["train"] |= {"optimizer": {"lr": 1e30}, "clip_norm": None, "steps": 8, "warmup_steps": 0}
    told = message(values | {"run": f"{values['run']}/alone"})
    assert "training stopped: at step" in told
    assert "loss.flow" in told or "gradient_norm.flow" in told
    assert "checkpoint" in told
    first, second = gang.run(message, 2, values)
    assert first == second
    assert first.split(";")[0] == told.split(";")[0]


def test_the_command_says_it_in_one_line(values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ("train.steps=20", "train.batch_size=48", "train.log_every=8", "train.checkpoint_every=3", "--workers", "0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "doomed", Doomed)
        argv = ["train", "doomed", values["data"], "model.num_classes=8", *train, "--store", str(tmp_path / "store")]
        require_one_line(argv, (f"at step {DOOM} loss.cloud and gradient_norm.cloud", "checkpoint, of step 3, is", "step_00000003"), capsys)
