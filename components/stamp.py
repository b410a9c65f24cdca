"""What a file's keeper tells of its state without reading it."""

from __future__ import annotations

from typing import NamedTuple


class Stamp(NamedTuple):
    """The state of a file: with another content comes another stamp, unless it is written twice within a tick of the keeper's clock."""

    bytes: int
    tag: str  # the time of change in nanoseconds; of an object its ETag and time of change
    changed: float  # seconds since 1970, by the keeper's clock
