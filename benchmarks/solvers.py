"""Error against evaluations of the model, for every sampler, with exact predictions of a mixture of Gaussians instead of a network.

    python -m benchmarks.solvers [--write docs]

Data are numbers from three uneven peaks. In one dimension the exact flow is known, for it keeps each row's share of the law: samplers
without noise are scored by the root mean square distance of their results from its end, those with noise by the Wasserstein distance of
40,000 results from the data's law; as many true data are the floor of that. `--write` draws the figure and puts the tables into the page.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from benchmarks.table import Table
from components.functional.ancestral import ancestral
from components.functional.ddim import ddim
from components.functional.dpm_solver import dpm_solver_pp_2m
from components.functional.noise_schedules import Schedule, StraightLine, VariancePreserving
from components.functional.ode_samplers import dopri5, ode
from components.functional.oracles import MixtureOracle
from components.functional.predictions import Denoiser, Noise, Prediction, noise_of
from components.functional.sde_samplers import euler_maruyama, predictor_corrector, reverse_diffusion
from components.functional.timesteps import Spacing, times_of

MEANS, STDS, WEIGHTS = (-1.0, 0.2, 0.8), (0.15, 0.2, 0.1), (0.3, 0.5, 0.2)
FLOW_ROWS, DRAWN_ROWS = 2000, 40_000
BUDGETS = (4, 8, 16, 32, 64, 128, 256)  # evaluations for each result
MARKS = ("<!-- measured: python -m benchmarks.solvers --write docs -->", "<!-- end -->")
SPACINGS: list[Spacing] = ["uniform", "quadratic", "karras"]
SPACED_BUDGET = 32
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
Run = Callable[[Denoiser, Tensor, Tensor, Noise], Tensor]
Draw = Callable[[Denoiser, Tensor, Noise], Tensor]
Sampler = tuple[int, Run]  # the evaluations of a step, and what runs it
Error = Callable[[Denoiser, Draw], float]
Points = list[tuple[int, float]]  # evaluations and error

FLOWS: dict[str, Sampler] = {
    "Euler": (1, lambda d, x, times, _: ode(d, x, times, method="euler")),
    "midpoint": (2, lambda d, x, times, _: ode(d, x, times, method="midpoint")),
    "Heun": (2, lambda d, x, times, _: ode(d, x, times, method="heun")),
    "RK4": (4, lambda d, x, times, _: ode(d, x, times, method="rk4")),
    "DDIM": (1, lambda d, x, times, _: ddim(d, x, times)),
    "DPM-Solver++ 2M": (1, lambda d, x, times, _: dpm_solver_pp_2m(d, x, times)),
}
DRAWS: dict[str, Sampler] = {
    "ancestral, DDIM with eta 1": (1, ancestral),
    "Euler-Maruyama": (1, euler_maruyama),
    "reverse diffusion": (1, reverse_diffusion),
    "predictor-corrector": (2, predictor_corrector),
}


@dataclass(frozen=True)
class Panel:
    """Curves of one measure, and the least that it can show."""

    title: str
    curves: dict[str, Points]
    floor: float | None = None


@dataclass(frozen=True)
class Setting:
    """What a model of a family with this schedule predicts, exactly, and the times that suit it."""

    title: str
    denoiser: Denoiser
    spacing: Spacing

    @classmethod
    def of(cls, title: str, schedule: Schedule, prediction: Prediction, spacing: Spacing) -> Setting:
        return cls(title, oracle(schedule).denoiser(prediction), spacing)

    def of_steps(self, samplers: dict[str, Sampler], error: Error) -> dict[str, Points]:
        """Of each sampler, how its error falls as it may ask more often."""
        return {name: [self.of_sampler(sampler, budget, error) for budget in BUDGETS] for name, sampler in samplers.items()}

    def of_sampler(self, sampler: Sampler, budget: int, error: Error) -> tuple[int, float]:
        cost, run = sampler
        times = times_of(self.denoiser.schedule, self.spacing, budget // cost)
        return self._point(lambda denoiser, x, noise: run(denoiser, x, times, noise), error)

    def of_tolerances(self) -> Points:
        return [self._of_tolerance(tolerance) for tolerance in TOLERANCES]

    def _of_tolerance(self, tolerance: float) -> tuple[int, float]:
        return self._point(lambda denoiser, x, _: dopri5(denoiser, x, rtol=tolerance, atol=tolerance), flow_error)

    def _point(self, draw: Draw, error: Error) -> tuple[int, float]:
        self.denoiser.evaluations = 0
        found = error(self.denoiser, draw)
        return self.denoiser.evaluations, found


def flow_error(denoiser: Denoiser, draw: Draw) -> float:
    """The root mean square distance of results from where the exact flow ends, for noise spread as evenly as can be."""
    x = stats.norm.ppf(evenly(FLOW_ROWS))
    end = torch.ones((), dtype=torch.float64)
    exact = quantile(share(x, float(denoiser.schedule.alpha(end)), float(denoiser.schedule.sigma(end))))
    found = draw(denoiser, torch.from_numpy(x).unsqueeze(1), noise_of(torch.Generator()))
    return float(np.sqrt(np.square(found[:, 0].numpy() - exact).mean()))


def law_error(denoiser: Denoiser, draw: Draw) -> float:
    """The Wasserstein distance of results from the law of the data."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(DRAWN_ROWS, 1, generator=generator, dtype=torch.float64)
    return from_law(draw(denoiser, x, noise_of(generator)))


def from_law(x: Tensor) -> float:
    return float(np.abs(np.sort(x[:, 0].numpy()) - quantile(evenly(len(x)))).mean())


def evenly(count: int) -> np.ndarray:
    return (np.arange(count) + 0.5) / count


def share(x: np.ndarray, alpha: float = 1.0, sigma: float = 0.0) -> np.ndarray:
    """Of the law of the data in noise, what lies below x."""
    parts = zip(MEANS, STDS, WEIGHTS, strict=True)
    return np.sum([weight * stats.norm.cdf(x, alpha * mean, math.hypot(alpha * std, sigma)) for mean, std, weight in parts], axis=0)


def quantile(shares: np.ndarray) -> np.ndarray:
    """The inverse of `share` for data, by bisection."""
    low, high = np.full_like(shares, -3.0), np.full_like(shares, 3.0)
    for _ in range(50):
        middle = (low + high) / 2
        below = share(middle) < shares
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


def measure() -> list[Panel]:
    """The panels of the figure, each of which is a table too."""
    preserving = Setting.of("VP", VariancePreserving(), "eps", "quadratic")
    line = Setting.of("straight line", StraightLine(), "velocity", "uniform")
    panels = []
    for setting in (preserving, line):
        samplers = {name: sampler for name, sampler in FLOWS.items() if setting is preserving or name != "DDIM"}  # on the line it is Euler
        curves = setting.of_steps(samplers, flow_error) | {"dopri5": setting.of_tolerances()}
        panels.append(Panel(f"{setting.title}, no noise: distance from the exact flow", curves))
    panels.append(Panel("VP, with noise: distance from the law", preserving.of_steps(DRAWS, law_error), floor()))
    return panels


def oracle(schedule: Schedule) -> MixtureOracle:
    return MixtureOracle(torch.tensor(MEANS).unsqueeze(1), torch.tensor(STDS), torch.tensor(WEIGHTS), schedule)


def floor() -> float:
    """Of true data, as many as are drawn: less than it cannot be seen."""
    data = oracle(StraightLine())
    return float(np.mean([from_law(data.sample(DRAWN_ROWS, torch.Generator().manual_seed(seed))) for seed in range(5)]))


def spacings() -> Table:
    """What the list of times does to each sampler."""
    table = Table(f"VP, {SPACED_BUDGET} evaluations: distance by spacing", ["", *SPACINGS])
    settings = [Setting.of("VP", VariancePreserving(), "eps", spacing) for spacing in SPACINGS]
    for samplers, error in ((FLOWS, flow_error), (DRAWS, law_error)):
        for name, sampler in samplers.items():
            table.add(name, *(setting.of_sampler(sampler, SPACED_BUDGET, error)[1] for setting in settings))
    return table


def table_of(panel: Panel) -> Table:
    table = Table(panel.title, ["evaluations", *map(str, BUDGETS)])
    for name, points in panel.curves.items():
        if name != "dopri5":
            table.add(name, *(error for _, error in points))
    if panel.floor is not None:
        table.add("true data", *[panel.floor] * len(BUDGETS))
    return table


def adaptive(panels: list[Panel]) -> Table:
    table = Table("dopri5 by its tolerances", ["", *(f"{tol:g}" for tol in TOLERANCES)])
    for panel in panels:
        if "dopri5" in panel.curves:
            evaluations, errors = zip(*panel.curves["dopri5"], strict=True)
            table.add(f"{panel.title.split(',')[0]}: evaluations", *evaluations)
            table.add("distance from the exact flow", *errors)
    return table


def draw(panels: list[Panel], path: Path) -> None:
    """The figure: error over evaluations, both logarithmic."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.9), layout="constrained")
    for panel, axes in zip(panels, figure.subplots(1, len(panels)), strict=True):
        for name, points in panel.curves.items():
            look = [*FLOWS, "dopri5", *DRAWS].index(name)  # the same in every panel
            axes.loglog(
                *zip(*points, strict=True), label=name, color=f"C{look % 10}", marker="os^DvXP"[look % 7], markersize=4, linewidth=1.3
            )
        if panel.floor is not None:
            axes.axhline(panel.floor, color="grey", linestyle=":", linewidth=1.2, label="true data")
        axes.set_title(panel.title, fontsize=9, loc="left")
        axes.set_xlabel("evaluations of the model", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "solvers"}):
        figure.savefig(path, metadata={"Date": None})


def write(panels: list[Panel], tables: list[Table], folder: Path) -> None:
    """Draws the figure, and puts the tables between the marks of the page."""
    draw(panels, folder / "solvers.svg")
    page = folder / "sampling.md"
    before, _, rest = page.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    page.write_text("".join([before, MARKS[0], "\n\n", "\n\n".join(map(str, tables)), "\n\n", MARKS[1], after]))


def main(arguments: list[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="where the page sampling.md and its figure are, such as docs")
    folder = parser.parse_args(arguments if arguments is not None else []).write
    panels = measure()
    tables = [*map(table_of, panels), adaptive(panels), spacings()]
    if folder is not None:
        write(panels, tables, folder)
    return "\n\n".join(map(str, tables))


if __name__ == "__main__":
    print(main(sys.argv[1:]))
