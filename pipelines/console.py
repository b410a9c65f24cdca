"""What a person sees while a pipeline runs, on stderr: bars with rate and time left when it is a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from components.report.numbers import duration, number
from pipelines.store import Artifact

LINE_SECONDS = 20.0


class Console:
    """Tells how stages go on. `quiet` tells nothing, for callers that only want the result."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bars = _bars() if not quiet and sys.stderr.isatty() else None
        self._bar: TaskID | None = None
        self._pace = Pace()
        self._told = 0.0

    def begins(self, stage: str) -> None:
        self._pace, self._told = Pace(), time.monotonic()
        if self._bars is not None:
            self._bars.start()
            self._bar = self._bars.add_task(stage, total=None, facts="")

    def reports(self, stage: str, row: Mapping[str, Any]) -> None:
        """Takes progress: step of steps, with numbers, or `facts` for people; a row with a `line` tells that for good."""
        if "line" in row:
            self._say(f"{stage}: {row['line']}")
            return
        self._pace.see(row)
        facts = ", ".join(self._pace.facts(row))
        if self._bars is not None and self._bar is not None:
            self._bars.update(self._bar, completed=row.get("step"), total=row.get("steps"), facts=facts)
        elif not self._quiet and time.monotonic() - self._told > LINE_SECONDS:
            self._told = time.monotonic()
            left = self._pace.seconds_left()
            tail = "" if left is None else f", {duration(left)} left"
            _line(f"{stage}: {self._pace.place()}{', ' if facts else ''}{facts}{tail}")

    def waits(self, stage: str, owner: str) -> None:
        self._say(f"{stage}: {owner} is making it; waiting")

    def ends(self, stage: str, artifact: Artifact, made: bool) -> None:
        if self._bars is not None and self._bar is not None:
            self._bars.remove_task(self._bar)
            self._bar = None
        if made:
            self._say(f"{stage}: made in {duration(artifact.manifest.seconds)}, {artifact.name}")

    def close(self) -> None:
        """Puts the terminal back in order."""
        if self._bars is not None:
            self._bars.stop()

    def _say(self, text: str) -> None:
        if self._bars is not None and self._bars.live.is_started:
            self._bars.console.print(Text(text))
        elif not self._quiet:
            _line(text)


class Pace:
    """Where a stage stands and how fast it goes, from the rows that it reports."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None
        self._last: tuple[float, int] | None = None
        self._steps: int | None = None

    def see(self, row: Mapping[str, Any]) -> None:
        self._steps = row.get("steps", self._steps)
        if "step" in row:
            self._last = (time.monotonic(), row["step"])
            self._first = self._first or self._last

    def place(self) -> str:
        if self._last is None:
            return "under way"
        step = self._last[1]
        return f"{step} of {self._steps} ({step / self._steps:.0%})" if self._steps else str(step)

    def seconds_left(self) -> float | None:
        """Seconds to the last step at the pace so far; None before a pace is known."""
        if self._first is None or self._last is None or not self._steps or self._last[1] == self._first[1]:
            return None
        pace = (self._last[0] - self._first[0]) / (self._last[1] - self._first[1])
        return pace * (self._steps - self._last[1])

    def facts(self, row: Mapping[str, Any]) -> list[str]:
        losses = [value for name, value in row.items() if name.split(".")[0] == "loss"]  # of each phase; the first is the model's own
        facts = [*row.get("facts", ()), *([f"loss {number(losses[0])}"] if losses else [])]
        if isinstance(row.get("samples_per_second"), float):
            facts.append(f"{row['samples_per_second']:.0f} samples/s")
        return facts


def _bars() -> Progress:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[facts]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
    )
    return Progress(*columns, console=RichConsole(stderr=True))


def _line(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
