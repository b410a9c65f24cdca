"""The one error that means *the user can mend this*; the command line prints its single line and exits with 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from components.redaction import redacted


class UserError(ValueError):
    """A mistake in what the user gave: its text names the value, where it came from, what was expected and what to do next.

    The text is one line without secrets, so that a message from a library cannot spoil it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(redacted(" ".join(message.split())))


class Diverged(UserError):
    """Training whose numbers stopped being finite: an end of the run for its user, and a result for a sweep."""


def brief(error: BaseException) -> str:
    """An error as one line without secrets: what a UserError says, and of others the type before it."""
    return str(error) if isinstance(error, UserError) else redacted(" ".join(f"{type(error).__name__}: {error}".split()))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The tail of an error about an unknown name: the nearest known one, or all of them when none is near."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(choices) or 'none'}"
