"""The command `raymill sweep`."""

from __future__ import annotations

import os
from typing import Annotated

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
    shown,
    watched,
)
from pipelines.shell import Answer
from pipelines.store import Store
from pipelines.workers import Workers


def sweep(
    family: Annotated[str, typer.Argument(help="Name of a model family; `raymill list` has them.")],
    data: Annotated[str, typer.Argument(help="Data set folder or URL, or an artifact of the store.")],
    overrides: Overrides = None,
    vary: Annotated[list[str] | None, typer.Option("--vary", metavar="KEY=SPACE", help="What varies; `log: [1e-3, 1e-1]`.")] = None,
    trials: Annotated[int | None, typer.Option("--trials", help="How many trials (default 16).")] = None,
    search: Annotated[str | None, typer.Option("--search", help="random or tpe.")] = None,
    scheduler: Annotated[str | None, typer.Option("--scheduler", help="none; asha stops what lags; pbt copies the best.")] = None,
    with_: Annotated[list[str] | None, typer.Option("--with", metavar="NAME=MODEL", help="A model that it builds on.")] = None,
    preset: PresetOption = None,
    config: ConfigOption = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Trials at once (default: what fits); 0: here, without Ray.")] = None,
    store: StoreOption = "store",
    address: AddressOption = None,
    track: TrackOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> Answer:
    """Trains one model many times over and says which settings are best. A killed sweep goes on where it stopped.

    Spaces are log, uniform, integer and choice; `when` makes one depend on another. Each finished trial is an artifact as `raymill train`
    makes it. With scheduler pbt trials are a population whose worst copy its best, and change their values, as they train.

    \b
    raymill sweep classifier data/fashion --vary train.optimizer.lr='log: [1e-3, 1e-1]' --trials 8
    raymill sweep vqvae data/fashion --config sweep.yaml --search tpe --scheduler asha train.steps=2000
    raymill sweep classifier data/fashion --vary train.optimizer.lr='log: [1e-4, 1e-1]' --trials 8 --scheduler pbt
    """
    from pipelines.settings import take_preset
    from pipelines.sweep import make_sweep, read_trials
    from pipelines.sweep_config import configure_sweep, show_values

    preset, assignments = take_preset(preset, overrides or [])
    options = {"trials": trials, "search": search, "scheduler": scheduler}
    flags = [f"{name}={value}" for name, value in options.items() if value is not None]
    settings = configure_sweep(family, preset, config, vary or [], [*assignments, *flags])
    spaces = [word for text in vary or [] for word in ("--vary", text)]
    command = again("sweep", family, data, *assignments, *flags, *spaces, preset=preset, config=config, with_=with_)
    place = Store(store, tracking=track)
    at_once = (os.cpu_count() or 1) if workers is None else workers
    with watched(json, f"sweep-{family}", place) as progress, Workers(at_once, address, progress) as crew:
        artifact, made = make_sweep(settings, data, with_ or [], preset, place, crew, workers, progress, command)
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
