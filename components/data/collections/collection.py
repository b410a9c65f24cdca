"""What every collection has in common: a config, and a function that gets it and says what it made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from components.config import Config

OnProgress = Callable[[int, int], None]  # steps done, steps in all


@dataclass(frozen=True)
class Fetched:
    """What lies at `url` now: folders of pictures for `raymill prepare`, or a data set; pictures and identities by split."""

    url: str
    form: Literal["pictures", "dataset"]
    pictures: dict[str, int]
    identities: dict[str, int]


@dataclass(frozen=True)
class Collection:
    """A collection by what it is, the class of its options, and what gets it: `fetch(out, config, on_progress)`."""

    about: str
    config: type[Config]
    fetch: Callable[[str, Any, OnProgress], Fetched]
