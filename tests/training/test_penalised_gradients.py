"""Workers and the gradient penalty: two agree with one if scores and penalty go backward as one scalar, and variants that do not are seen.

DistributedDataParallel reduces gradients once a forward pass, when each parameter has had one, and keeps silent where that does not happen.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from components.families.contract import Batch
from components.families.wgan import WGAN, WGANConfig
from components.functional.lipschitz import gradient_norms, gradient_penalty, interpolated
from components.training.communication import Communication, rows_of
from components.training.config import TrainConfig
from components.training.context import Context
from components.training.loop import Trainer
from components.training.measures import Measures
from components.training.outlet import Outlet
from components.training.randomness import LANE, Draws
from tests.families.test_vqgan import images
from tests.gang import Gang

CPU = torch.device("cpu")
ROWS = 48
SETTINGS = {"width": 4, "latent": 8, "critic_steps": 2}

Gradients = dict[str, Tensor]
Backward = Callable[[Tensor, Tensor], None]  # of the scores' term and the penalty's


def model() -> WGAN:
    torch.manual_seed(0)
    return WGAN(WGANConfig.parse(SETTINGS, "test")).train()


def batch_of(rows: slice) -> Batch:
    return {"image": images(ROWS)[rows], "label": (torch.arange(ROWS) % 10)[rows]}


class Terms(nn.Module):
    """The critic's two terms apart, of this worker's rows."""

    def __init__(self, family: WGAN) -> None:
        super().__init__()
        self.critic, self._family = family.critic, (family,)

    def forward(self, batch: Batch, ctx: Context) -> tuple[Tensor, Tensor]:
        family = self._family[0]
        real, labels = family.reals(batch), family.labels(batch)
        with torch.no_grad():
            fake = family.fakes(batch, ctx)
        scores = family.score(torch.cat([real, fake]), torch.cat([labels, labels])).view(2, -1).mean(1)
        between = interpolated(real, fake, ctx.random.uniform("share", (len(real),)))
        penalty = gradient_penalty(gradient_norms(lambda x: family.score(x, labels), between))
        return scores[1] - scores[0], family.config.penalty_weight * penalty


def as_one(scores: Tensor, penalty: Tensor) -> None:
    (scores + penalty).backward()


def one_after_the_other(scores: Tensor, penalty: Tensor) -> None:
    scores.backward(retain_graph=True)
    penalty.backward()


def penalty_alone(scores: Tensor, penalty: Tensor) -> None:
    penalty.backward()


def gradients(backward: Backward) -> Gradients:
    """Those of the critic on this rank; on two ranks of half the rows each, as DistributedDataParallel leaves them."""
    world, family = Communication.current(), model()
    family.generator.requires_grad_(False)
    module: nn.Module = Terms(family)
    if world.size > 1:
        module = DistributedDataParallel(module)
    rows = rows_of(world.rank, world.size, ROWS, LANE)
    ctx = Context(0, "critic", Draws(0, 0, "critic", rows.start, CPU), rows.stop - rows.start, ROWS, world)
    backward(*module(batch_of(rows), ctx))
    return {name: parameter.grad.clone() for name, parameter in family.critic.named_parameters() if parameter.grad is not None}


def difference(workers: list[Gradients], alone: Gradients) -> float:
    """The largest one between a worker's numbers and those of the whole batch, whose largest is 1."""
    largest = max(known.abs().max() for known in alone.values())
    return max(float((found[name] - known).abs().max() / largest) for found in workers for name, known in alone.items())


@pytest.mark.parametrize(("backward", "right"), [(as_one, True), (one_after_the_other, False), (penalty_alone, False)])
def test_gradients_agree_when_terms_go_backward_as_one(gang: Gang, backward: Backward, right: bool) -> None:
    alone, found = gradients(backward), gang.run(gradients, 2, backward)
    between = difference(found[:1], found[1])  # the broken variants leave each worker with gradients of its own
    for each in (difference(found, alone), between):
        assert each < 1e-6 if right else each > 1e-2


def steps() -> dict[str, Tensor]:
    """All weights after four steps of the critic and two of the generator, of this rank."""
    world = Communication.current()
    settings = {"batch_size": ROWS, "clip_norm": None, "optimizer": {"name": "sgd", "lr": 1e-2, "momentum": 0.9}}
    trainer = Trainer(model(), TrainConfig.parse(settings, "test"), Outlet(CPU, world))
    measures = Measures(CPU, world, ROWS)
    for _ in range(4):
        trainer.train_step(batch_of(rows_of(world.rank, world.size, ROWS, LANE)), measures)
    return {name: value.detach() for name, value in trainer.family.state_dict().items()}


def test_the_loops_steps_agree(gang: Gang) -> None:
    alone, before = steps(), model().state_dict()
    for workers in (2, 3):
        assert difference(gang.run(steps, workers), alone) < 1e-6
    assert all(not torch.equal(before[name], value) for name, value in alone.items() if name.endswith("weight"))
