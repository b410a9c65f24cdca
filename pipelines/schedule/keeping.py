"""What a schedule clears away: data sets and candidates of its own old runs. What anybody else made or needs stays.

An artifact goes only if a run of this schedule made it, and if all of the following hold: it is of none of the last `keep` judged runs;
it is neither the champion nor one of the champions before it that a rollback leads to; no run of another schedule used it; nobody
registered it but this schedule; and nothing that stays was made from it. A warm start is not needed once it was begun with.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.registry import Registry
from pipelines.schedule.config import ScheduleConfig
from pipelines.schedule.decision import START, read_decisions, run_folders, schedule_names
from pipelines.store import Artifact, Store

CHAMPIONS_BEFORE = 2  # a rollback leads to the first; after one, the way leads to the second


def registry_key(config: ScheduleConfig, run_id: str) -> str:
    """The key under which a run registers its candidate."""
    return f"{_key_of_schedule(config)}{run_id}"


def clear_away(config: ScheduleConfig, store: Store, registry: Registry) -> list[str]:
    """Removes what is no longer needed, and returns its names."""
    present = {artifact.name: artifact for artifact in store.artifacts()}
    own = set(_own(config, store, present))
    doomed = own - _of_kept_runs(config, store, registry) - _of_others(config, store, registry)
    doomed -= _needed(present, doomed, own)
    for name in sorted(doomed):
        store.remove(present[name])
    return sorted(doomed)


def _own(config: ScheduleConfig, store: Store, present: dict[str, Artifact]) -> Iterator[str]:
    """What runs of this schedule made and nobody has made again since."""
    for folder in run_folders(store, config.name):
        for name, made_at in folder.artifacts().made.items():
            if name in present and present[name].manifest.made_at == made_at:
                yield name


def _of_kept_runs(config: ScheduleConfig, store: Store, registry: Registry) -> set[str]:
    judged = [decision for decision in reversed(read_decisions(store, config.name)) if decision.candidate is not None]
    champions = _champions(config, registry)
    kept = {decision.run_id for decision in judged[: config.keep]}
    kept |= {decision.run_id for decision in judged if decision.candidate is not None and decision.candidate.artifact in champions}
    used = [folder.artifacts().used for folder in run_folders(store, config.name) if folder.run_id in kept]
    return champions.union(*used)


def _champions(config: ScheduleConfig, registry: Registry) -> set[str]:
    """Names of the artifacts of the champion and of those that a rollback leads to."""
    champion = registry.champion(config.registered_name)
    versions = [champion.version] if champion is not None else []
    for promotion in reversed(registry.history(config.registered_name)):
        versions += [version for version in (promotion.version, promotion.before) if version is not None and version not in versions]
    spared = set(versions[: 1 + CHAMPIONS_BEFORE])
    return {name_of(each.artifact) for each in registry.versions(config.registered_name) if each.version in spared}


def _of_others(config: ScheduleConfig, store: Store, registry: Registry) -> set[str]:
    """What runs of other schedules used, and what was registered by hand or under another name."""
    others = [name for name in schedule_names(store) if name != config.name]
    used = {artifact for name in others for folder in run_folders(store, name) for artifact in folder.artifacts().used}
    registered = {
        name_of(each.artifact)
        for name in registry.names()
        for each in registry.versions(name)
        if name != config.registered_name or not each.tags.get("raymill.key", "").startswith(_key_of_schedule(config))
    }
    return used | registered


def _needed(present: dict[str, Artifact], doomed: set[str], own: set[str]) -> set[str]:
    """Those of `doomed` that something was made from which stays, at whatever distance; an input is known by its fingerprint."""
    by_print = {present[name].fingerprint: name for name in doomed}
    look_at, needed = [artifact for name, artifact in present.items() if name not in doomed], set[str]()
    while look_at:
        artifact = look_at.pop()
        for name, print_ in artifact.manifest.inputs.items():
            found = by_print.get(print_)
            if found is not None and found not in needed and not (name == START and artifact.name in own):
                needed.add(found)
                look_at.append(present[found])
    return needed


def name_of(url: str) -> str:
    """The name of the artifact at `url`."""
    return url.rstrip("/").rsplit("/", 1)[-1]


def _key_of_schedule(config: ScheduleConfig) -> str:
    return f"schedule {config.name}, run "
