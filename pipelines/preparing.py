"""A source of pictures to a data set, with the workers of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from components.data.index import DatasetIndex
from components.data.prepare_config import PrepareConfig
from pipelines.workers import Workers


def prepare_data(
    source: str, out: str, config: PrepareConfig, workers: Workers, report: Callable[[Mapping[str, Any]], None]
) -> DatasetIndex:
    """Makes the data set at `out`; progress counts shards. Raises UserError naming the file of the source that is at fault."""
    from clusters.preprocess import prepare

    def progress(done: int, total: int, rows: int) -> None:
        report({"step": done, "steps": total})

    return prepare(source, out, config, workers.connect(), progress)
