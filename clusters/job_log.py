"""A job's log as it arrives over connections that break: each character once, in order, none left out.

Every connection sends the log from its beginning. What was shown before is passed over by its length alone, so nothing needs to be kept.
"""

from __future__ import annotations


class LogPosition:
    """Where the reader of one log stands. All up to and with `prologue`, which Ray writes before the job's own output, is left out."""

    def __init__(self, prologue: str) -> None:
        self._prologue = prologue
        self._before = ""  # read, and not yet known to be past the prologue
        self._shown: int | None = None  # characters read in all; None while the prologue has not come
        self._received = 0

    def reconnect(self) -> None:
        """The next `new` is the beginning of the log again."""
        self._received = 0
        self._before = ""

    def new(self, chunk: str) -> str:
        """What of the connection's next chunk was not shown yet."""
        start, self._received = self._received, self._received + len(chunk)
        if self._shown is None:
            self._before += chunk
            _, found, rest = self._before.partition(self._prologue)
            if not found:
                return ""
            self._shown, self._before = self._received, ""
            return rest
        fresh = chunk[max(0, self._shown - start) :]
        self._shown = max(self._shown, self._received)
        return fresh
