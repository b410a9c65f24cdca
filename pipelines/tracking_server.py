"""Where MLflow keeps what it is told: which URL is meant, a client of it that is silent, and one writer at a time.

MLflow (https://mlflow.org) is the optional extra `tracking`: it is imported by `connect` and nowhere else.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from components import storage
from components.errors import UserError
from components.lease import Lease, held
from components.redaction import redacted
from pipelines.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient

OWN = "store"  # the word for the store's own database
VARIABLE = "MLFLOW_TRACKING_URI"
SQLITE = "sqlite:///"
UNFINISHED = ".unfinished"
CAUSE_CHARACTERS = 300
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_CONFIGURE_LOGGING": "false", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}  # about half a minute for a server that is gone


def tracking_url(given: str | None, store: Store) -> str:
    """The server or database that `--track` means; None: what the store was opened with, else MLFLOW_TRACKING_URI, else its own.

    Raises UserError for a URL of another kind, and for a store on S3 without one.
    """
    given = given or store.tracking or os.environ.get(VARIABLE) or OWN
    if given == OWN:
        if storage.is_remote(store.url):
            raise UserError(
                f"store {store.url} has no place for a database of its own; give --track (or {VARIABLE}) the URL of an MLflow server, "
                f"or sqlite:///file.db"
            )
        return f"{SQLITE}{store.place('mlflow.db')}"
    if given.startswith(SQLITE) and given != SQLITE:
        return f"{SQLITE}{os.path.abspath(given.removeprefix(SQLITE))}"
    if given.startswith(("http://", "https://")):
        return given.rstrip("/")
    raise UserError(f"--track {redacted(given)!r} is no MLflow server; expected http(s)://host:port, sqlite:///file.db or the word {OWN}")


def is_server(url: str) -> bool:
    """Whether an MLflow server answers at `url`; otherwise it is a SQLite database."""
    return not url.startswith(SQLITE)


def database(url: str) -> Path:
    """The file of a SQLite URL; pictures lie beside it, in `mlflow/`."""
    return Path(url.removeprefix(SQLITE))


def require_mlflow() -> None:
    """Raises UserError when MLflow is not installed. Does not import it, which takes seconds."""
    if find_spec("mlflow") is None:
        raise UserError("tracking and the model registry need MLflow: pip install 'raymill[tracking]'")


def connect(url: str) -> MlflowClient:
    """A client that tells nobody anything, and gives up on a server that is gone in about half a minute.

    Whoever set MLflow's own variables for that keeps them. Raises UserError when MLflow is not installed.
    """
    require_mlflow()
    for name, value in (QUIET | PATIENCE).items():
        os.environ.setdefault(name, value)
    for library in ("mlflow", "alembic"):
        logging.getLogger(library).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    with explained(url):
        if not is_server(url):
            _make_database(database(url))
        return MlflowClient(url, registry_uri=url)


def _make_database(place: Path) -> None:
    """In one step and by one process: tables that MLflow was killed over, or that two make at once, no MLflow opens again."""
    from mlflow import MlflowClient

    if place.exists():
        return
    with held(f"{place}.lock", lambda owner: None):
        for draft in place.parent.glob(f"{place.name}.*{UNFINISHED}*"):
            draft.unlink()
        if not place.exists():
            draft = Path(f"{place}.{secrets.token_hex(4)}{UNFINISHED}")
            MlflowClient(f"{SQLITE}{draft}", registry_uri=f"{SQLITE}{draft}")
            draft.rename(place)


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turns what MLflow and its transport raise into UserError that names the server or database, and holds no secret."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        cause = str(error).strip().partition("\n")[0].rpartition("Caused by ")[2] or type(error).__name__
        raise UserError(f"MLflow at {redacted(url)}: {redacted(cause)[:CAUSE_CHARACTERS]}") from None


def alone(url: str, store: Store, name: str) -> AbstractContextManager[Lease]:
    """Holds everybody else off what `name` names, so that two commands at once make no double of it.

    The lease of a database lies beside its file, the one of a server in the store.
    """
    place = store.place("locks", f"mlflow-{name}.lock") if is_server(url) else f"{database(url)}.{name}.lock"
    return held(place, lambda owner: None)
