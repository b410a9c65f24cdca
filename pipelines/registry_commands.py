"""The commands of tracking and of the model registry: `raymill track`, `register`, `models`, `promote` and `rollback`."""

from __future__ import annotations

import getpass
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.options import JsonOption, StoreOption, TrackOption, VerboseOption, counted, table
from pipelines.shell import Answer
from pipelines.store import Store

if TYPE_CHECKING:
    from pipelines.registry import Promotion, Registered, Registry

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of a registered model.")]
ArtifactName = Annotated[str, typer.Argument(metavar="ARTIFACT", help="An artifact of the store: its name, a stage, or its folder.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept in the history.")]


def track_artifact(
    artifact: ArtifactName,
    store: StoreOption = "store",
    track: TrackOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> Answer:
    """Logs the models of an artifact, and of all that it was made from, as MLflow runs. What is logged already stays.

    Without --track they go into the store's own database.

    \b
    raymill track classifier
    raymill track report --track http://127.0.0.1:5000
    """
    from components.redaction import redacted
    from pipelines.tracking import log_lineage
    from pipelines.tracking_server import tracking_url

    place = Store(store, tracking=track)
    url = redacted(tracking_url(None, place))
    runs = log_lineage(place, place.resolve(artifact))
    rows = [(name, f"run {run}") for name, run in runs.items()]
    return Answer({"tracking": url, "runs": runs}, [f"{counted(len(runs), 'model')} in {url}", *table(rows)])


def register(
    name: Name,
    artifact: ArtifactName,
    store: StoreOption = "store",
    track: TrackOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> Answer:
    """Makes an artifact's model a version of a registered model. The same artifact is registered once.

    \b
    raymill register digits classifier
    raymill register digits classifier-0123456789abcdef --track http://127.0.0.1:5000 --store s3://bucket/store
    """
    place = Store(store, tracking=track)
    chosen = place.resolve(artifact)
    made = _registry(place).register(name, chosen, key=chosen.name)
    return Answer(asdict(made), [f"{name}: version {made.version} is {chosen.name}"])


def models(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One registered model, with its history.")] = None,
    store: StoreOption = "store",
    track: TrackOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> Answer:
    """Lists registered models, or one model's versions, its champion, and who made which version the champion, when and why.

    \b
    raymill models
    raymill models digits --json
    """
    registry = _registry(Store(store, tracking=track))
    if name is None:
        champions = {each: registry.champion(each) for each in registry.names()}
        rows = [(each, "no champion" if found is None else f"champion {_version(found)}") for each, found in champions.items()]
        return Answer({each: None if found is None else asdict(found) for each, found in champions.items()}, table(rows) or ["none"])
    champion, versions, history = registry.champion(name), registry.versions(name), registry.history(name)
    if not versions:
        registry.version(name, 1)  # says which names there are
    values = {
        "name": name,
        "champion": None if champion is None else asdict(champion),
        "versions": [asdict(each) for each in versions],
        "history": [asdict(each) for each in history],
    }
    lines = [f"{name}: {counted(len(versions), 'version')}, " + ("no champion" if champion is None else f"champion {champion.version}")]
    lines += table((str(each.version), f"{each.created[:19].replace('T', ' ')}  {each.artifact}") for each in versions)
    return Answer(values, [*lines, *(["history"] if history else []), *(f"  {_told(each)}" for each in history)])


def promote(
    name: Name,
    version: Annotated[int, typer.Argument(metavar="VERSION", help="Number of the version; `raymill models NAME` has them.")],
    reason: Reason = "",
    store: StoreOption = "store",
    track: TrackOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> Answer:
    """Makes a version of a registered model its champion, once every byte of its artifact is found right.

    \b
    raymill promote digits 3 --reason "two points better on new data"
    """
    made = _registry(Store(store, tracking=track)).promote(name, version, reason=reason, by=_user())
    return Answer(asdict(made), [f"{name}: the champion is {_version(made)}"])


def rollback(
    name: Name,
    reason: Reason = "",
    store: StoreOption = "store",
    track: TrackOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> Answer:
    """Makes the champion before this one the champion again. A second time goes back by two.

    \b
    raymill rollback digits --reason "slow on phones"
    """
    made = _registry(Store(store, tracking=track)).rollback(name, reason, by=_user())
    return Answer(asdict(made), [f"{name}: the champion is {_version(made)} again"])


def _registry(store: Store) -> Registry:
    from pipelines.registry import Registry

    return Registry(None, store)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return f"user {os.getuid()}"


def _version(found: Registered) -> str:
    return f"version {found.version}, {found.artifact}"


def _told(entry: Promotion) -> str:
    """One line of the history."""
    before = "" if entry.before is None else f" after {entry.before}"
    kind = "back to " if entry.kind == "rollback" else ""
    why = f": {entry.reason}" if entry.reason else ""
    return f"{entry.at[:19].replace('T', ' ')} UTC  {kind}{entry.version}{before}, by {entry.by or 'unknown'}{why}"
