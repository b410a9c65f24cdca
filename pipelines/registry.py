"""Registered models: versions that point to artifacts, and which of them is the champion, in MLflow's own registry.

    registry = Registry(None, Store("store"))
    version = registry.register("digits", artifact, key="by hand").version
    registry.promote("digits", version, reason="two points better", by="anna")
    registry.rollback("digits", "slow on phones", by="anna")

A version's source is the `model` folder of its artifact, safetensors and JSON. The champion is the model's alias of that name; who made it
so, when and why are tags of the registered model, one a promotion. Each call can be killed between any two of its steps, and goes on when
it is called again: a promotion is first written as begun, then the alias is set, then it is written as done.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from components import storage
from components.errors import UserError, did_you_mean
from components.redaction import redacted
from pipelines.store import Artifact, Store, open_artifact
from pipelines.tracking import TAG, Tracking, is_model
from pipelines.tracking_server import alone, connect, explained, is_server, tracking_url

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

CHAMPION = "champion"
PROMOTION = f"{TAG}promotion."
URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[\w.-]+)|/(?P<version>\d+))")


@dataclass(frozen=True)
class Registered:
    """One version of a registered model."""

    name: str
    version: int
    artifact: str  # URL of the artifact folder
    fingerprint: str
    run_id: str
    created: str  # ISO 8601, UTC
    tags: dict[str, str]


@dataclass(frozen=True)
class Promotion:
    """One change of the champion. `kind` says whether it was made so or went back to it; `before` is None for the first."""

    version: int
    before: int | None
    kind: Literal["promotion", "rollback"]
    reason: str
    by: str
    at: str  # ISO 8601, UTC
    done: bool = True


class Registry:
    """The registered models on one server or in one database."""

    def __init__(self, url: str | None, store: Store) -> None:
        """`url` as for `--track` (None: as the store was opened). Raises UserError when it cannot be used, or MLflow is not installed."""
        self.store, self.url = store, tracking_url(url, store)
        self._client = connect(self.url)

    def require_place(self) -> None:
        """Raises UserError where no model of this store can be registered: call it before hours of training."""
        if is_server(self.url) and not storage.is_remote(self.store.url):
            raise UserError(
                f"the MLflow server {redacted(self.url)} registers no model of the local folder {self.store.url}; keep the store on s3://, "
                f"or register in a database beside it: --track sqlite:///{self.store.place('mlflow.db')}"
            )

    def names(self) -> list[str]:
        """All registered models."""
        with explained(self.url):
            return sorted(model.name for model in _pages(self._client.search_registered_models))

    def versions(self, name: str) -> list[Registered]:
        """All versions of a model that are artifacts of Raymill, oldest first; [] when it is not registered."""
        _require_name(name)
        with explained(self.url):
            found = _pages(self._client.search_model_versions, filter_string=f"name='{name}'")
        return sorted((_registered(each) for each in found if f"{TAG}url" in each.tags), key=lambda each: each.version)

    def champion(self, name: str) -> Registered | None:
        """The version that is the champion, None when there is none."""
        with explained(self.url):
            model = self._model(name)
        version = None if model is None else _champion(model)
        return None if version is None else self.version(name, version)

    def version(self, name: str, version: int) -> Registered:
        """One version; raises UserError when there is no such."""
        versions = {each.version: each for each in self.versions(name)}
        if not versions:
            raise UserError(f"no model {name!r} is registered at {redacted(self.url)}; {did_you_mean(name, self.names())}")
        if version not in versions:
            raise UserError(f"model {name!r} has no version {version}; it has {', '.join(map(str, versions))}")
        return versions[version]

    def find(self, uri: str) -> Registered:
        """What `models:/NAME@champion` or `models:/NAME/VERSION` means; raises UserError when there is none."""
        parts = URI.fullmatch(uri)
        if parts is None or parts["alias"] not in (None, CHAMPION):
            raise UserError(f"{uri!r} is no registered model; expected models:/NAME@{CHAMPION} or models:/NAME/VERSION")
        if parts["version"] is not None:
            return self.version(parts["name"], int(parts["version"]))
        found = self.champion(parts["name"])
        if found is None:
            known = self.names()
            hint = "promote one of its versions" if parts["name"] in known else did_you_mean(parts["name"], known)
            raise UserError(f"{uri}: {parts['name']!r} has no champion at {redacted(self.url)}; {hint}")
        return found

    def register(self, name: str, artifact: Artifact, *, key: str, tags: Mapping[str, str] | None = None) -> Registered:
        """The version of the artifact's model that `key` stands for, registered now unless it is already.

        Its training is logged first, so that every version has its run. Raises UserError for an artifact without a model, and for a key
        that stands for another artifact.
        """
        _require_name(name)
        self.require_place()
        if not is_model(artifact):
            raise UserError(f"artifact {artifact.name} holds no model; give one that raymill train made")
        run_id = Tracking(self.url, self.store).log_model(artifact)
        with explained(self.url), alone(self.url, self.store, f"model-{name}") as lease:
            found = next((each for each in self.versions(name) if each.tags.get(f"{TAG}key") == key), None)
            if found is None:
                lease.check()
                if self._model(name) is None:
                    self._client.create_registered_model(name)
                own = {"key": key, "url": artifact.url, "artifact": artifact.name, "fingerprint": artifact.fingerprint}
                told = {tag: redacted(text) for tag, text in (tags or {}).items()} | {TAG + tag: text for tag, text in own.items()}
                found = _registered(self._client.create_model_version(name, artifact.path("model"), run_id, told))
        if found.fingerprint != artifact.fingerprint:
            raise UserError(f"{key!r} registered version {found.version} of {name!r} with artifact {found.artifact}; not {artifact.name}")
        return found

    def promote(self, name: str, version: int, *, reason: str, by: str) -> Registered:
        """Makes a version the champion. The champion stays it without a new entry; a promotion that was killed is finished.

        Raises UserError when there is no such version, or its artifact is gone or was altered: every byte is read.
        """
        chosen = self.version(name, version)
        _require_whole(chosen)
        with explained(self.url), alone(self.url, self.store, f"model-{name}") as lease:
            model = self._settled(name)
            before = _champion(model)
            if before != version:
                lease.check()
                self._move(model, Promotion(version, before, "promotion", reason, by, _now()))
        return chosen

    def rollback(self, name: str, reason: str, *, by: str = "") -> Registered:
        """Makes the champion before this one the champion again; a second call goes two back. A killed one is finished, no more.

        Raises UserError when there was none before, or its artifact is gone or was altered.
        """
        with explained(self.url), alone(self.url, self.store, f"model-{name}") as lease:
            model = self._model(name)
            if model is None:
                raise UserError(f"no model {name!r} is registered at {redacted(self.url)}; {did_you_mean(name, self.names())}")
            begun = _begun(model)
            if begun is not None and begun.kind == "rollback" and begun.version == _champion(model):
                self._settled(name)
                return self.version(name, begun.version)
            model = self._settled(name)
            line = _line(model)
            if len(line) < 2:
                raise UserError(f"model {name!r} had no champion before {line[-1] if line else 'any'}; there is nothing to go back to")
            chosen = self.version(name, line[-2])
            _require_whole(chosen)
            lease.check()
            self._move(model, Promotion(line[-2], line[-1], "rollback", reason, by, _now()))
        return chosen

    def history(self, name: str) -> list[Promotion]:
        """Every change of the champion that Raymill made, oldest first; [] when the model is not registered."""
        with explained(self.url):
            model = self._model(name)
        return [] if model is None else _history(model)

    def _model(self, name: str) -> RegisteredModel | None:
        from mlflow.exceptions import MlflowException

        _require_name(name)
        try:
            return self._client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def _settled(self, name: str) -> RegisteredModel:
        """The model once an entry of a killed process is written as done, if its alias was set."""
        model = self._model(name)
        assert model is not None, f"{name} has versions"
        begun = _begun(model)
        if begun is not None and begun.version == _champion(model):
            self._write(model, _entries(model)[-1][0], replace(begun, done=True))
            model = self._model(name)
            assert model is not None
        return model

    def _move(self, model: RegisteredModel, promotion: Promotion) -> None:
        """Three steps; whoever finds the first alone takes its place, and whoever finds two adds the third."""
        entries = _entries(model)
        number = entries[-1][0] if entries and not entries[-1][1].done else len(entries) + 1
        promotion = replace(promotion, reason=redacted(promotion.reason))
        self._write(model, number, replace(promotion, done=False))
        self._client.set_registered_model_alias(model.name, CHAMPION, str(promotion.version))
        self._write(model, number, promotion)

    def _write(self, model: RegisteredModel, number: int, promotion: Promotion) -> None:
        self._client.set_registered_model_tag(model.name, f"{PROMOTION}{number:06d}", json.dumps(asdict(promotion)))


def _registered(found: ModelVersion) -> Registered:
    created = datetime.fromtimestamp(found.creation_timestamp / 1000, UTC)
    return Registered(
        name=found.name,
        version=int(found.version),
        artifact=found.tags[f"{TAG}url"],
        fingerprint=found.tags[f"{TAG}fingerprint"],
        run_id=found.run_id or "",
        created=created.isoformat(timespec="seconds"),
        tags=dict(found.tags),
    )


def _champion(model: RegisteredModel) -> int | None:
    version = model.aliases.get(CHAMPION)
    return None if version is None else int(version)


def _entries(model: RegisteredModel) -> list[tuple[int, Promotion]]:
    """All entries with their numbers, oldest first; the last may be begun and not done."""
    found = {tag.removeprefix(PROMOTION): text for tag, text in model.tags.items() if tag.startswith(PROMOTION)}
    return [(int(number), Promotion(**json.loads(text))) for number, text in sorted(found.items())]


def _begun(model: RegisteredModel) -> Promotion | None:
    entries = _entries(model)
    return entries[-1][1] if entries and not entries[-1][1].done else None


def _history(model: RegisteredModel) -> list[Promotion]:
    """Entries that came true: done, or begun with the alias set."""
    entries = [entry for _, entry in _entries(model)]
    return [replace(entry, done=True) for entry in entries if entry.done or entry.version == _champion(model)]


def _line(model: RegisteredModel) -> list[int]:
    """The champions one after the other that were not gone back from; what was set by hand in MLflow itself counts too."""
    line: list[int] = []
    for entry in _history(model):
        if entry.before is not None and line[-1:] != [entry.before]:
            line.append(entry.before)
        if entry.kind == "rollback":
            line.pop()
        else:
            line.append(entry.version)
    champion = _champion(model)
    return line if champion is None or line[-1:] == [champion] else [*line, champion]


def _require_whole(registered: Registered) -> None:
    artifact = open_artifact(registered.artifact)
    if artifact.fingerprint != registered.fingerprint:
        raise UserError(
            f"version {registered.version} of {registered.name!r} is {registered.fingerprint}, but {registered.artifact} holds "
            f"{artifact.fingerprint}; register the model again"
        )
    artifact.verify()


def _require_name(name: str) -> None:
    if not re.fullmatch(r"[\w][\w .-]{0,99}", name):
        raise UserError(f"{name!r} is no name for a registered model; expected letters, digits, spaces and . _ -, 100 at most")


def _pages(search: Any, **query: Any) -> list[Any]:
    """All results of one of MLflow's searches."""
    found: list[Any] = []
    token = None
    while True:
        page = search(page_token=token, **query)
        found += page
        token = page.token
        if not token:
            return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
