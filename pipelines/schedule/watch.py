"""Looks over a pipeline's shoulder: notes what a run of a schedule made and how long it took, and warns of data that looks wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from components.data import changes
from components.data.index import read_index
from pipelines.schedule.decision import RunFolder
from pipelines.stage import PassedOn, Progress
from pipelines.store import Artifact


class Watch(PassedOn):
    """Progress that also notes what a run makes."""

    def __init__(self, progress: Progress, folder: RunFolder) -> None:
        super().__init__(progress)
        self.folder = folder
        self._data_stage = ""
        self._before: Artifact | None = None
        self.seconds: dict[str, float] = {}
        self.warnings: tuple[str, ...] = ()
        self.new_rows: int | None = None

    def compare_with(self, data_stage: str, before: Artifact | None) -> None:
        """What `data_stage` makes is compared with `before`, the data that the champion learnt from."""
        self._data_stage, self._before = data_stage, before

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Takes the time of a part of the run that is no stage."""
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 3)

    def ends(self, stage: str, artifact: Artifact, made: bool) -> None:
        self.folder.note_artifacts([artifact.name], {artifact.name: artifact.manifest.made_at} if made else {})
        if made:
            self.seconds[stage] = artifact.manifest.seconds
        super().ends(stage, artifact, made)
        if stage == self._data_stage and self._before is not None:
            self._compare(stage, self._before, artifact)

    def _compare(self, stage: str, before: Artifact, after: Artifact) -> None:
        """Tells before the training what a person would want to look at; no warning stops it, the gate judges."""
        old, new = read_index(before.url), read_index(after.url)
        self.new_rows = changes.new_rows(old, new)
        self.warnings = changes.warnings(old, new)
        for warning in self.warnings:
            self._progress.reports(stage, {"line": f"warning: {warning}"})
