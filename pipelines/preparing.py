"""Pictures to a data set: any source with the workers of a run, and people's faces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from components.data.index import DatasetIndex
from components.data.prepare_config import PrepareConfig
from components.data.reuse import Reuse
from components.data.write import write_dataset
from components.faces.aligned import aligned_columns, aligned_rows, folder_pictures
from components.faces.aligner import Aligner
from pipelines.faces_config import AlignedConfig
from pipelines.source import Source
from pipelines.stage import Task
from pipelines.workers import Workers

LOOKED_THROUGH = 8  # earlier data sets of a stage whose shards a new one takes: those of some runs, and of other configs in between


def prepare_data(
    source: str,
    out: str,
    config: PrepareConfig,
    workers: Workers,
    report: Callable[[Mapping[str, Any]], None],
    waiting: Callable[[str], None] = lambda owner: None,
    reuse: Reuse | None = None,
) -> DatasetIndex:
    """Makes the data set at `out`; progress counts shards. Raises UserError naming the file of the source that is at fault.

    `waiting` is told which other process writes to `out`, for whose end this one waits.
    """
    from clusters.preprocess import prepare

    def progress(done: int, total: int, rows: int) -> None:
        report({"step": done, "steps": total, "shards": {"done": done, "total": total, "rows": rows}})

    return prepare(source, out, config, workers.connect(), progress, waiting, reuse)


def prepare_stage(name: str, data: Source, task: Task[PrepareConfig]) -> None:
    """The work of the stage called `name`: reads what is new in the source, makes the shards that no earlier artifact of it has."""
    reuse = Reuse(data.files, tuple(task.store.newest(name, LOOKED_THROUGH)))
    prepare_data(data.url, task.draft.out, task.config, task.workers, task.report, reuse=reuse)


def align_people(people: str, out: str, config: AlignedConfig, report: Callable[[Mapping[str, Any]], None]) -> DatasetIndex:
    """Makes the data set at `out` of the faces in `people/NAME/*`, all in split `train`; progress counts pictures.

    Raises UserError naming the picture that shows no face, or several.
    """
    names, pictures = folder_pictures(people)
    aligner = Aligner(config.faces, (config.size, config.size), config.channels)
    rows = aligned_rows(pictures, aligner, config.several, on_progress=lambda done, total: report({"step": done, "steps": total}))
    return write_dataset(out, {"train": rows}, aligned_columns(aligner), names, {"aligned": config.to_json()})
