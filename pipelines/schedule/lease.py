"""Who may act: one scheduler on a store, one run of a schedule. The only place of this folder that knows how that is kept."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from components import storage
from components.errors import UserError
from pipelines.lock import locked


class LeaseLost(UserError):
    """Another holds the lease now: what it guards must not be touched any more."""


class Lease(Protocol):
    def check(self) -> None:
        """Raises LeaseLost when another holder has taken over."""
        ...


class _Held:
    def check(self) -> None:
        """The kernel keeps the lock for as long as this process lives."""


@contextmanager
def hold(url: str, waiting: Callable[[str], None]) -> Iterator[Lease]:
    """Holds the lease at `url`; calls `waiting(owner)` once while another has it, and waits. What `waiting` raises ends the attempt."""
    if storage.is_remote(url):
        name = hashlib.sha256(url.encode()).hexdigest()[:16]
        url = os.path.join(tempfile.gettempdir(), f"raymill-{os.getuid()}", f"{name}.lock")
    with locked(Path(url), waiting):
        yield _Held()
