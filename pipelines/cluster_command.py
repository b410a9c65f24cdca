"""The commands `raymill cluster ...`."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from components.report.numbers import duration
from pipelines.options import JsonOption, VerboseOption, counted
from pipelines.shell import Answer

cluster = typer.Typer(help="Clusters: one of real raylets on this machine.", rich_markup_mode=None, no_args_is_help=True)

NameOption = Annotated[str, typer.Option("--name", help="Several clusters stand side by side under their names.")]


@cluster.command()
def up(
    local: Annotated[int, typer.Option("--local", metavar="NODES", help="How many nodes, each a raylet on this machine.")],
    cpus_per_node: Annotated[int, typer.Option("--cpus-per-node", min=1, help="Logical CPUs of each node.")] = 1,
    name: NameOption = "local",
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> Answer:
    """Starts a Ray cluster on this machine: a head with the Jobs API, and more nodes, behind a token. It runs until `raymill cluster down`.

    \b
    raymill cluster up --local 3
    raymill cluster up --local 2 --cpus-per-node 4 --name trial
    """
    from clusters.raylets import Raylets

    begun = time.monotonic()
    raylets = Raylets.start(name, local, cpus_per_node)
    exports = [f"export RAY_API_SERVER_ADDRESS={raylets.jobs_url}"]
    exports.append("export " + " ".join(f"{key}={value}" for key, value in raylets.environment.items()))
    seconds = time.monotonic() - begun
    values = {"name": name, "nodes": len(raylets.nodes), "address": raylets.address, "jobs": raylets.jobs_url}
    values |= {"environment": raylets.environment, "folder": str(raylets.folder), "seconds": seconds}
    return Answer(
        values,
        [
            f"cluster {name}: {counted(len(raylets.nodes), 'node')}, up in {duration(seconds)}",
            f"  address  {raylets.address}",
            f"  jobs     {raylets.jobs_url}",
            "for `raymill submit`, and for --address:",
            *(f"  {line}" for line in exports),
        ],
    )


@cluster.command()
def down(name: NameOption = "local", json: JsonOption = False, verbose: VerboseOption = False) -> Answer:
    """Ends a local cluster: every process that it started, and no other.

    \b
    raymill cluster down
    raymill cluster down --name trial
    """
    from clusters.raylets import Raylets

    raylets = Raylets.find(name)
    ended = raylets.close() if raylets is not None else 0
    said = f"{counted(ended, 'process').replace('processs', 'processes')} ended" if raylets is not None else "there is none; nothing to do"
    return Answer({"name": name, "processes": ended}, [f"cluster {name}: {said}"])
