"""The command `raymill sweep`: over trainings of a family, or over how a trained model draws its samples."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.options import (
    AddressOption,
    ConfigOption,
    JsonOption,
    Overrides,
    PresetOption,
    StoreOption,
    TrackOption,
    VerboseOption,
    again,
    counted,
    refuse,
    shown,
    table,
    watched,
)
from pipelines.shell import Answer
from pipelines.store import Artifact, Store
from pipelines.workers import Workers

if TYPE_CHECKING:
    from pipelines.sampler_sweep import SamplerSweep


def sweep(
    family: Annotated[str, typer.Argument(metavar="FAMILY|MODEL", help="Name of a model family; with --judge a trained model.")],
    data: Annotated[str, typer.Argument(help="Data set folder or URL, or an artifact of the store.")],
    overrides: Overrides = None,
    vary: Annotated[list[str] | None, typer.Option("--vary", metavar="KEY=SPACE", help="What varies; `log: [1e-3, 1e-1]`.")] = None,
    trials: Annotated[int | None, typer.Option("--trials", help="How many trials (default 16).")] = None,
    search: Annotated[str | None, typer.Option("--search", help="random or tpe; with --judge also grid.")] = None,
    scheduler: Annotated[str | None, typer.Option("--scheduler", help="none; asha stops what lags; pbt copies the best.")] = None,
    with_: Annotated[list[str] | None, typer.Option("--with", metavar="NAME=MODEL", help="A model that it builds on.")] = None,
    judge: Annotated[
        str | None, typer.Option("--judge", metavar="MODEL", help="Vary a trained model's sampler; a classifier judges.")
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="With --judge: the best sampler becomes the model's default.")] = False,
    preset: PresetOption = None,
    config: ConfigOption = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Trials at once (default: what fits); 0: here, without Ray.")] = None,
    store: StoreOption = "store",
    address: AddressOption = None,
    track: TrackOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> Answer:
    """Says which settings are best, of a training or of how a trained model draws samples. A killed sweep goes on where it stopped.

    Spaces are log, uniform, integer and choice; `when` makes one depend on another. Each finished trial is an artifact as `raymill train`
    makes it. With scheduler pbt trials are a population whose worst copy its best, and change their values, as they train.

    With --judge nothing is trained: MODEL is a trained model, and what varies are the options of its sampler. Every setting draws the same
    samples=1000 rows of one seed, scored by their distance to the pictures of DATA (judge.score=fd or kid) on the features of the judge.

    \b
    raymill sweep classifier data/fashion --vary train.optimizer.lr='log: [1e-3, 1e-1]' --trials 8
    raymill sweep vqvae data/fashion --config sweep.yaml --search tpe --scheduler asha train.steps=2000
    raymill sweep classifier data/fashion --vary train.optimizer.lr='log: [1e-4, 1e-1]' --trials 8 --scheduler pbt
    raymill sweep prior images --judge judge --vary temperature='uniform: [0.7, 1.1]' --trials 24 --write
    raymill sweep diffusion images --judge judge --search grid --vary steps='choice: [5, 10, 20]' --vary eta='choice: [0, 1]'
    """
    options = {"trials": trials, "search": search, "scheduler": scheduler}
    flags = [f"{name}={value}" for name, value in options.items() if value is not None]
    spaces = [word for text in vary or [] for word in ("--vary", text)]
    place = Store(store, tracking=track)
    at_once = (os.cpu_count() or 1) if workers is None else workers
    if judge is not None:
        from pipelines.sampler_sweep import SamplerSweep

        refuse({"--scheduler": scheduler, "--with": with_, "--preset": preset}, "with --judge, which trains nothing")
        chosen = SamplerSweep(place, family, data, judge, config, vary or [], [*(overrides or []), *flags])
        command = again("sweep", family, data, "--judge", judge, *(overrides or []), *flags, *spaces, preset=None, config=config)
        return _sweep_sampler(chosen, command, write, at_once, address, json)
    refuse({"--write": write}, "without --judge; it is for sweeps of a trained model's sampler")
    from pipelines.settings import take_preset
    from pipelines.sweep import make_sweep
    from pipelines.sweep_config import configure_sweep

    preset, assignments = take_preset(preset, overrides or [])
    settings = configure_sweep(family, preset, config, vary or [], [*assignments, *flags])
    command = again("sweep", family, data, *assignments, *flags, *spaces, preset=preset, config=config, with_=with_)
    with watched(json, f"sweep-{family}", place) as progress, Workers(at_once, address, progress) as crew:
        artifact, made = make_sweep(settings, data, with_ or [], preset, place, crew, workers, progress, command)
    return _told_training(artifact, made)


def _told_training(artifact: Artifact, made: bool) -> Answer:
    from pipelines.sweep import read_trials
    from pipelines.sweep_config import show_values

    found = read_trials(artifact)
    best = found["trials"][found["best"]]
    values = shown(artifact) | {"made": made, "report": artifact.path("page.html")} | {key: found[key] for key in ("judge", "command")}
    values |= {"best": best, "trials": found["trials"]}
    return Answer(
        values,
        [
            f"{artifact.name}: {counted(len(found['trials']), 'trial')}, " + ("made" if made else "there already; nothing to do"),
            f"best {found['judge']['score']}: {best['score']:.5g}, trial {best['number']} ({show_values(best['values'])})",
            f"train it alone: {found['command']}" if found["command"] else f"its model: {artifact.path('model')}",
            f"report: {values['report']}",
        ],
    )


def _sweep_sampler(chosen: SamplerSweep, command: str, write: bool, at_once: int, address: str | None, json: bool) -> Answer:
    from pipelines.sampler_sweep import read_settings
    from pipelines.sweep_config import show_values

    with watched(json, "sampler-sweep") as progress, Workers(at_once, address, progress) as crew:
        artifact, made = chosen.make(crew, progress, at_once, command)
    found = read_settings(artifact)
    best, front = found["settings"][found["best"]], [found["settings"][number] for number in found["front"]]
    values = shown(artifact) | {"made": made, "report": artifact.path("page.html"), "best": best, "written": None}
    values |= {key: found[key] for key in ("judge", "command", "front", "settings")}
    score = found["judge"]["score"]
    costs = (
        (f"{each['scores']['evaluations']:g}", f"{score} {each['scores'][score]:.5g}  ({show_values(each['values'])})") for each in front
    )
    lines = [
        f"{artifact.name}: {counted(len(found['settings']), 'setting')}, " + ("made" if made else "there already; nothing to do"),
        f"best {score}: {best['scores'][score]:.5g}, trial {best['number']} ({show_values(best['values'])})",
        "best for their evaluations a sample:",
        *table(costs),
        f"the best again: {found['command']}",
    ]
    if write:
        values["written"] = chosen.write(artifact)
        lines.append(f"the model's default sampler: {values['written']}")
    return Answer(values, [*lines, f"report: {values['report']}"])
