"""The nine promises of the house, for every proof of every family in the catalogue. A new family needs a line there and no new test."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from components.config import Config
from components.data.dataset import Dataset
from components.data.loader import Loader
from components.errors import UserError
from components.evaluation.scoring import evaluate
from components.families.catalogue import FAMILIES
from components.families.contract import Batch, Family, Phase, Proof
from components.training.communication import Communication
from components.training.context import Context
from components.training.job import TrainingJob, build, execute
from components.training.loop import Trainer
from components.training.outlet import Outlet
from components.training.randomness import Draws
from components.training.record import read_metrics
from tests.gang import Gang

CPU = torch.device("cpu")
# Adam divides by its own tiny averages and so magnifies the last bit of a sum; plain gradient steps leave it what it is.
STEADY = {"name": "sgd", "lr": 1e-2, "momentum": 0.9}
BATCH = 48  # six lanes of eight rows: one, two or three workers


PROOFS = {name: (name, cls.proof) for name, cls in sorted(FAMILIES.items())} | {
    f"{name}-{kind}": (name, proof) for name, cls in sorted(FAMILIES.items()) for kind, proof in cls.proofs.items()
}


@pytest.fixture(params=PROOFS)
def proven(request: pytest.FixtureRequest) -> tuple[str, Proof]:
    return PROOFS[request.param]


@pytest.fixture
def name(proven: tuple[str, Proof]) -> str:
    return proven[0]


@pytest.fixture
def proof(proven: tuple[str, Proof]) -> Proof:
    return proven[1]


@pytest.fixture
def make_job(name: str, proof: Proof, tmp_path: Path, small_data_folders: dict[str, Path]):
    """Jobs of the family on the proof's small data, each in a run folder of its own."""

    def make(run: str = "run", **train: Any) -> TrainingJob:
        settings = {"steps": 6, "batch_size": BATCH, "log_every": 1, "ema_decay": 0.9, "optimizer": proof.optimizer.to_json()} | train
        values = {"family": name, "model": proof.model, "train": settings, "run": str(tmp_path / run)}
        return TrainingJob.parse(values | {"data": str(small_data_folders[proof.data])}, "test")

    return make


def here(job: TrainingJob) -> dict[str, torch.Tensor]:
    """The published weights of the job run in this process."""
    execute(job, Outlet(CPU))
    return published(job)


def published(job: TrainingJob) -> dict[str, torch.Tensor]:
    """Every weight in the model folder; rows that several workers wrote, put together."""
    folder = Path(job.run) / "model"
    weights = load_file(folder / "model.safetensors")
    parts = [load_file(file) for file in sorted(folder.glob("rows-*"))]
    return weights | {name: torch.cat([part[name] for part in parts]) for name in (parts[0] if parts else ())}


def on_worker(job: TrainingJob) -> None:
    execute(job, Outlet(CPU, Communication.current()))


class Killed(Exception):
    """Stands for the end of a process."""


def killed_at(job: TrainingJob, step: int) -> None:
    """Runs the job until the row of `step` is shown; what was not on storage by then is lost."""

    def die(row: dict[str, Any]) -> None:
        if row["step"] == step:
            raise Killed

    with pytest.raises(Killed):
        execute(job, Outlet(CPU, show=die))


def killed_on_worker(job: TrainingJob, step: int) -> None:
    """The same on every rank: all leave at the same step, as when Ray takes a group down."""

    class Dying(Outlet):
        def report(self, row: dict[str, Any], flush: bool = False) -> None:
            super().report(row, flush)
            if row["step"] == step:
                raise Killed

    try:
        execute(job, Dying(CPU, Communication.current()))
    except Killed:
        return
    raise AssertionError("the run was not stopped")


def first_batch(job: TrainingJob) -> tuple[Family, dict[str, torch.Tensor]]:
    data = Dataset.open(job.data, "train")
    family = build(job, data).train()
    return family, next(iter(Loader(data, BATCH, seed=0).batches(0, 1)))


def context(phase: Phase, step: int, rows: int = BATCH, first: int = 0) -> Context:
    return Context(step, phase.name, Draws(0, step, phase.name, first, CPU), rows, rows, Communication())


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[key].double() - b[key].double()).abs().max()) for key in a if a[key].numel())


def test_1_config_goes_to_json_and_back(name: str, make_job) -> None:
    cls = FAMILIES[name]
    config = build(make_job(), Dataset.open(make_job().data)).config
    again = cls.Config.parse(json.loads(json.dumps(config.to_json())), "test")
    assert again == config
    assert isinstance(config, Config)


def test_2_each_phase_gives_gradients_to_what_it_trains_alone(make_job) -> None:
    family, batch = first_batch(make_job())
    trainer = Trainer(family, make_job().train, Outlet(CPU))
    for turn in trainer.turns:
        trainer._free_only(turn)
        family.zero_grad(set_to_none=True)
        before = copy.deepcopy(dict(family.named_buffers()))
        family.loss(turn.phase.name, batch, context(turn.phase, turn.phase.start + 1000)).loss.backward()
        with_gradient = {key for key, parameter in family.named_parameters() if parameter.grad is not None}
        assert with_gradient == set(turn.parameters)
        assert all(torch.equal(before[key], buffer) for key, buffer in family.named_buffers()), "loss changed a buffer"


def saved_bytes(family: Family, phase: Phase, batch: Batch) -> int:
    """Bytes of distinct tensors that autograd keeps between forward and backward, weights and input aside."""
    own = {t.untyped_storage().data_ptr() for t in [*family.parameters(), *family.buffers(), *batch.values()]}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            kept[place] = tensor.untyped_storage().nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = family.loss(phase.name, batch, context(phase, phase.start))
    assert output.loss.requires_grad
    return sum(kept.values())


def test_3_recomputation_gives_equal_bits_and_saves_memory(make_job) -> None:
    if not first_batch(make_job())[0].recomputed:  # dense layers alone have no blocks to recompute, and say so
        with pytest.raises(UserError, match="set recompute=0"):
            here(make_job(recompute=1))
        return
    plain = here(make_job("plain"))
    sizes = []
    for setting in (0, 1, 2):
        assert difference(plain, here(make_job(f"segments of {setting}", recompute=setting))) == 0.0
        family, batch = first_batch(make_job())
        trainer = Trainer(family, make_job(recompute=setting).train, Outlet(CPU))
        trainer._free_only(trainer.turns[0])
        sizes.append(saved_bytes(family, trainer.turns[0].phase, batch))
    assert max(sizes[1:]) < sizes[0]


def test_4_two_processes_agree_with_one(make_job, gang: Gang) -> None:
    job = make_job("two", optimizer=STEADY)
    gang.run(on_worker, 2, job)
    assert difference(published(job), here(make_job("one", optimizer=STEADY))) < 1e-6


@pytest.mark.parametrize("step", [1, 4])
def test_5_stopped_and_resumed_gives_equal_bits(make_job, step: int) -> None:
    whole = make_job("whole", checkpoint_every=1)
    stopped = make_job("stopped", checkpoint_every=1)
    killed_at(stopped, step)
    assert difference(here(whole), here(stopped)) == 0.0
    strip = [{k: v for k, v in row.items() if k.startswith("loss")} for row in read_metrics(whole.run)]
    assert strip == [{k: v for k, v in row.items() if k.startswith("loss")} for row in read_metrics(stopped.run)]


@pytest.mark.parametrize("workers", [1, 3])
def test_6_saved_on_two_resumed_on_another_number(make_job, gang: Gang, workers: int) -> None:
    job = make_job("moved", checkpoint_every=1, optimizer=STEADY)
    gang.run(killed_on_worker, 2, job, 3)
    gang.run(on_worker, workers, job)
    assert difference(published(job), here(make_job("still", optimizer=STEADY))) < 1e-6


def test_7_equal_seeds_give_equal_finite_samples(name: str, make_job) -> None:
    family, _ = first_batch(make_job())
    if FAMILIES[name].Sampler is None:
        with pytest.raises(ValueError, match="does not generate"):
            family.sample(2, 0, make_job().train)
        return
    options = FAMILIES[name].Sampler()
    one, two, other = family.sample(5, 1, options), family.sample(5, 1, options), family.sample(5, 2, options)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.isfinite(one.double()).all()
    assert one.shape == (5, *family.sample_shape)


def test_8_halves_add_up_to_the_whole(make_job) -> None:
    family, batch = first_batch(make_job())
    family.eval()
    phase = family.phases[0]
    half = BATCH // 2
    whole = family.evaluate(batch, context(phase, 0))
    cuts = slice(0, half), slice(half, BATCH)
    parts = [family.evaluate({k: v[cut] for k, v in batch.items()}, context(phase, 0, half, cut.start)) for cut in cuts]
    for key, (total, count) in whole.items():
        sums = sum(part[key][0] for part in parts), sum(part[key][1] for part in parts)
        assert torch.allclose(sums[0].double(), total.double(), rtol=1e-5)
        assert torch.equal(torch.as_tensor(sums[1]).double(), count.double())


def test_9_it_learns(name: str, proof: Proof, make_job) -> None:
    job = make_job(steps=proof.steps, log_every=proof.steps)
    held_out = Dataset.open(job.data, "test")
    score, direction = FAMILIES[name].headline
    before = evaluate(build(job, Dataset.open(job.data)), held_out)[score]
    here(job)
    after = json.loads((Path(job.run) / "run.json").read_text())["scores"][score]
    assert after <= proof.improves * before if direction == "min" else after >= proof.improves * before
    assert np.isfinite(after)
