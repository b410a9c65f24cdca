"""A WGAN's critic beside the exact W1: trained alone, it must come to |shift| between a Gaussian and the same Gaussian moved by it.

    python -m benchmarks.duality [--write docs]

Between the laws W1 is exactly |shift| in any number of dimensions. The critic is the family's own, trained by the family's loss in the
loop's trainer: `CriticAlone` only replaces the generator by the formula z + shift and has the critic's phase alone. It is scored on points
of its own, over the CPU seconds of one thread. Beside it, the exact W1 between finite samples of both laws, and for two small clouds every
road to W1 of `components/functional/transport.py`. `--write` draws the figure and puts the tables into the page.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from benchmarks.table import Table
from components.evaluation.sampling import one_thread
from components.evaluation.wasserstein import w1_of_rows
from components.families.contract import OptimizerConfig
from components.families.points import POINT
from components.families.wgan import WGAN, WGANConfig
from components.functional.lipschitz import gradient_norms, interpolated
from components.functional.transport import Array, Plan, Potentials, best_critic, dual, entropic, exact_w1, lipschitz_dual, primal
from components.training.config import TrainConfig
from components.training.loop import Trainer
from components.training.measures import Measures
from components.training.outlet import Outlet
from components.training.randomness import generator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHIFT = 2.0
DIMENSIONS = (2, 16)
STEPS, SCORED_EVERY, BATCH = 2000, 200, 256
SCORED, PAIRED = 20_000, 2000  # points of each law for a critic's score, and for a pairing
CLOUD, GRID = 40, 60
MARKS = ("<!-- measured: python -m benchmarks.duality --write docs -->", "<!-- end -->")
CRITICS: dict[str, dict[str, object]] = {
    "penalty of weight 10, two-sided": {},
    "penalty of weight 100, one-sided": {"penalty_weight": 100.0, "one_sided": True},
}


class CriticAlone(WGAN):
    """The generator's place is taken by a fixed law, N(shift, I), and only the critic is trained."""

    def __init__(self, config: WGANConfig) -> None:
        super().__init__(config)
        self.phases = self.phases[:1]

    def generate(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """z (B, D) moved by `SHIFT` along the first axis."""
        return moved(z)


@dataclass(frozen=True)
class Moment:
    """A critic after some CPU seconds of training: its estimate of W1 and its slope, the mean norm of its gradient between the laws."""

    seconds: float
    estimate: float
    slope: float


def moved(z: Tensor) -> Tensor:
    return torch.cat([z[:, :1] + SHIFT, z[:, 1:]], 1)


def points(count: int, dimensions: int, *seed: int | str) -> Tensor:
    """Standard normal points (count, dimensions)."""
    return torch.randn(count, dimensions, generator=generator("duality", *seed))


def train_critic(dimensions: int, options: dict[str, object], steps: int = STEPS) -> tuple[CriticAlone, list[Moment]]:
    """The critic after `steps` steps on fresh points, and what it was worth on the way."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        values = {"shape": (dimensions,), "num_classes": 0, "latent": dimensions, "conditional": False}
        family = CriticAlone(WGANConfig.parse(values | options, "benchmark"))
    optimizer = OptimizerConfig(lr=1e-3, betas=(0.0, 0.9))
    config = TrainConfig(steps=steps, batch_size=BATCH, clip_norm=None, optimizer=optimizer)
    trainer = Trainer(family, config, Outlet(torch.device("cpu")))
    measures, moments, seconds = Measures(trainer.outlet.device, trainer.world, BATCH), [], 0.0
    for step in range(steps):
        batch = {POINT: points(BATCH, dimensions, "train", step)}
        started = time.process_time()
        trainer.train_step(batch, measures)
        seconds += time.process_time() - started
        if (step + 1) % SCORED_EVERY == 0:
            moments.append(Moment(seconds, *score(family)))
    return family, moments


def score(family: CriticAlone) -> tuple[float, float]:
    """The critic's estimate and slope on points of its own."""
    dimensions = family.config.latent
    real, fake = points(SCORED, dimensions, "real"), moved(points(SCORED, dimensions, "fake"))
    share = torch.rand(SCORED, generator=generator("duality", "share"))
    slope = gradient_norms(lambda x: family.score(x, None), interpolated(real, fake, share)).mean().item()
    with torch.no_grad():
        return (family.score(real, None).mean() - family.score(fake, None).mean()).item(), slope


def critics_table(dimensions: int, runs: dict[str, list[Moment]]) -> Table:
    table = Table(
        f"{dimensions} dimensions, exact W1 between the laws {SHIFT:g}", ["", "CPU seconds", "estimate", "slope", "over its slope"]
    )
    for name, moments in runs.items():
        for moment in (moments[0], moments[len(moments) // 2], moments[-1]):
            table.add(name, moment.seconds, moment.estimate, moment.slope, moment.estimate / moment.slope)
    for count in (PAIRED // 10, PAIRED):
        table.add(
            f"exact, between {count:,} points of each",
            None,
            w1_of_rows(points(count, dimensions, "x"), moved(points(count, dimensions, "y"))),
            None,
            None,
        )
    return table


@dataclass(frozen=True)
class Clouds:
    """Two small clouds of points from both laws in the plane, and all that transport says of them."""

    x: Array
    y: Array
    plan: Plan
    potentials: Potentials

    @classmethod
    def draw(cls) -> Clouds:
        x, y = (part.double().numpy() for part in (points(CLOUD, 2, "x"), moved(points(CLOUD, 2, "y"))))
        return cls(x, y, primal(even(CLOUD), even(CLOUD), cdist(x, y)), dual(even(CLOUD), even(CLOUD), cdist(x, y)))

    def table(self) -> Table:
        places = np.concatenate([self.x, self.y])
        p, q = (np.concatenate(parts) for parts in ((even(CLOUD), np.zeros(CLOUD)), (np.zeros(CLOUD), even(CLOUD))))
        f = best_critic(places, self.y, self.potentials)
        table = Table(f"two clouds of {CLOUD} points in the plane", ["", "W1"])
        table.add("the cheapest plan, `primal`", self.plan.cost)
        table.add("the cheapest pairing, `exact_w1`", exact_w1(self.x, self.y))
        table.add("the dearest potentials, `dual`", self.potentials.value)
        table.add("the best Lipschitz function, `lipschitz_dual`", lipschitz_dual(p, q, cdist(places, places)).value)
        table.add("the critic those potentials give, `best_critic`", f @ (p - q))
        for eps in (1.0, 0.1):
            table.add(f"`entropic`, eps {eps:g}", entropic(even(CLOUD), even(CLOUD), cdist(self.x, self.y), eps).cost)
        return table


def even(count: int) -> Array:
    return np.full(count, 1 / count)


def draw(clouds: Clouds, critic: CriticAlone, runs: dict[int, dict[str, list[Moment]]], path: Path) -> None:
    """The figure: a plan, the best critic of the clouds, the trained critic of the laws, and estimates over the seconds."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.4), layout="constrained")
    ((plan, best), (learnt, curves)) = figure.subplots(2, 2)
    for i, j in zip(*np.nonzero(clouds.plan.mass > 1e-9), strict=True):
        plan.plot(*np.stack([clouds.x[i], clouds.y[j]]).T, color="0.6", linewidth=0.8, zorder=0)
    axis = np.linspace(-4, 6, GRID), np.linspace(-3.2, 3.2, GRID)
    places = np.stack(np.meshgrid(*axis), axis=-1).reshape(-1, 2)
    with torch.no_grad():
        scores = critic.score(torch.tensor(places, dtype=torch.float32), None).numpy()
    _shade(best, axis, best_critic(places, clouds.y, clouds.potentials))
    _shade(learnt, axis, scores)
    for axes, title in (
        (plan, f"Primal: the cheapest plan between two clouds, {clouds.plan.cost:.4f}"),
        (best, f"Dual: the best critic of the same clouds, {clouds.potentials.value:.4f}"),
        (learnt, "A WGAN's critic of the laws they come from"),
    ):
        axes.plot(*clouds.x.T, "o", color="C0", markersize=3.5, label="p")
        axes.plot(*clouds.y.T, "s", color="C1", markersize=3.5, label="q")
        axes.set(xlim=(axis[0][0], axis[0][-1]), ylim=(axis[1][0], axis[1][-1]), aspect="equal")
        _finish(axes, title)
    for place, (dimensions, named) in enumerate(runs.items()):
        for number, moments in enumerate(named.values()):
            label = f"{dimensions} dimensions, {'one-sided, 100' if number else 'two-sided, 10'}"
            seconds, over = [m.seconds for m in moments], [m.estimate / m.slope for m in moments]
            curves.plot(seconds, [m.estimate for m in moments], color=f"C{place}", linestyle="-:"[number], linewidth=1.4, label=label)
            curves.plot(seconds, over, color=f"C{place}", linestyle="-:"[number], linewidth=0.8, marker=".", markersize=5)
    curves.axhline(SHIFT, color="grey", linewidth=1)
    curves.set_xlabel("CPU seconds of training", fontsize=8)
    _finish(curves, "The critic's W1 beside the exact one (grey); with dots: over its slope")
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "duality"}):
        figure.savefig(path, metadata={"Date": None})


def _shade(axes: Axes, axis: tuple[Array, Array], values: Array) -> None:
    axes.contourf(*axis, values.reshape(GRID, GRID), levels=14, cmap="Greys", alpha=0.7)


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9, loc="left")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False)


def write(tables: list[Table], folder: Path) -> None:
    """Puts the tables between the marks of the page."""
    page = folder / "duality.md"
    before, _, rest = page.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    page.write_text("".join([before, MARKS[0], "\n\n", "\n\n".join(map(str, tables)), "\n\n", MARKS[1], after]))


def main(arguments: list[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="where the page duality.md and its figure are, such as docs")
    folder = parser.parse_args(arguments if arguments is not None else []).write
    clouds, runs, shown = Clouds.draw(), {}, None
    for dimensions in DIMENSIONS:
        with one_thread():
            trained = {name: train_critic(dimensions, options) for name, options in CRITICS.items()}
        runs[dimensions] = {name: moments for name, (_, moments) in trained.items()}
        shown = shown or trained[list(CRITICS)[-1]][0]
    tables = [clouds.table(), *(critics_table(dimensions, found) for dimensions, found in runs.items())]
    if folder is not None:
        draw(clouds, shown, runs, folder / "duality.svg")
        write(tables, folder)
    return "\n\n".join(map(str, tables))


if __name__ == "__main__":
    print(main(sys.argv[1:]))
