"""What the commands of `raymill` share: their common options, and how they tell what they made."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from components.errors import UserError
from components.redaction import redacted
from components.report.numbers import figure
from pipelines.console import Console
from pipelines.store import Artifact, Store
from pipelines.watching import Watched

KEY_VALUE = "KEY=VALUE"
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Options of the config by dotted name.")]
StoreOption = Annotated[str, typer.Option("--store", help="Folder or s3:// URL of the artifacts.", envvar="RAYMILL_STORE")]
PresetOption = Annotated[str | None, typer.Option("--preset", help="quick, base or full.")]
ConfigOption = Annotated[str | None, typer.Option("--config", help="YAML file of config values, laid over the preset.")]
DEFAULT_WORKERS = "2"
WorkersOption = Annotated[
    str,
    typer.Option(
        "--workers",
        metavar="N|MIN..MAX",
        help="Ray workers; 0 runs in this process, without Ray; 1..3 takes as many as there is room for, also while it trains.",
    ),
]
AddressOption = Annotated[str | None, typer.Option("--address", help="host:port of a running Ray cluster (default: one of its own).")]
TrackOption = Annotated[
    str | None,
    typer.Option("--track", metavar="URL", envvar="MLFLOW_TRACKING_URI", help="MLflow server or sqlite:///file.db; `store`: beside it."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else there.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", help="Log to stderr; show tracebacks.")]


@contextmanager
def console(quiet: bool) -> Iterator[Console]:
    """Progress on stderr for the time of a command."""
    shown = Console(quiet)
    try:
        yield shown
    finally:
        shown.close()


@contextmanager
def watched(quiet: bool, name: str, store: Store | None = None) -> Iterator[Watched]:
    """As `console`, for a command with workers: metrics tell of it under `name`, and with `--track` its models are logged when made."""
    with console(quiet) as shown:
        if store is None or store.tracking is None:
            yield Watched(shown, name)
            return
        from pipelines.tracking import Tracker

        tracker = Tracker(shown, store)
        yield Watched(tracker, name)
        warning = tracker.close()
    if warning is not None:
        print(f"raymill: {warning}", file=sys.stderr)


def again(*words: str, preset: str | None, config: str | None, with_: list[str] | None = None) -> str:
    """The command line that makes the same again; where it is made, and by how many workers, does not matter."""
    options = (["--preset", preset] if preset else []) + (["--config", config] if config else [])
    options += [word for model in with_ or [] for word in ("--with", model)]
    return shlex.join(redacted(word) for word in ["raymill", *words, *options])


def shown(artifact: Artifact) -> dict[str, Any]:
    """An artifact in `--json`."""
    manifest = artifact.manifest
    return {
        "name": artifact.name,
        "fingerprint": artifact.fingerprint,
        "url": artifact.url,
        "seconds": manifest.seconds,
        "made_at": manifest.made_at,
    }


def table(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Lines of names and texts, one under the other."""
    pairs = list(rows)
    width = max((len(name) for name, _ in pairs), default=0)
    return [f"  {name:<{width}}  {text}".rstrip() for name, text in pairs]


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def told_scores(artifacts: Any) -> tuple[dict[str, Any], list[str]]:
    """Every score that the artifacts tell, and lines that show it beside its target and what it is compared with."""
    from components.report.findings import FILE, Findings

    scores = [score for a in artifacts if FILE in a.manifest.files for score in Findings.read(a.url).scores]
    rows = []
    for score in scores:
        beside = [f"{name} {figure(value, score.unit)}" for name, value in score.beside.items()]
        limit = "at most" if score.better == "lower" else "at least"
        target = [] if score.target is None else [f"target: {limit} {figure(score.target, score.unit)}"]
        tail = f"  ({', '.join(target + beside)})" if target + beside else ""
        rows.append((score.name, f"{figure(score.value, score.unit)} {score.unit}".strip() + tail))
    return {score.name: score.to_json() for score in scores}, table(rows)


def refuse(given: Mapping[str, Any], where: str) -> None:
    """Raises UserError for the first of the options that was given: it has no effect `where`."""
    for option, value in given.items():
        if value is not None and value is not False and value != []:
            raise UserError(f"{' '.join(value) if option == KEY_VALUE else option} has no effect {where}")
