"""The command `raymill sample`."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Annotated

import typer

from components import storage
from components.errors import UserError
from pipelines.options import (
    DEFAULT_WORKERS,
    AddressOption,
    ConfigOption,
    JsonOption,
    Overrides,
    StoreOption,
    VerboseOption,
    counted,
    watched,
)
from pipelines.shell import Answer
from pipelines.store import Store
from pipelines.watching import Watched
from pipelines.workers import Workers

MOST_AT_ONCE = 10_000  # samples that one process draws into one file; more are a data set, whose shards a killed command keeps
WORKERS = (
    "Makes a data set of Arrow shards, with so many Ray workers; 0: in this process, without Ray. "
    f"Above {MOST_AT_ONCE:,} samples: {DEFAULT_WORKERS} unless told otherwise."
)
STAGE = "sample"


def sample(
    model: Annotated[str, typer.Argument(help="Model folder or URL, or an artifact of the store.")],
    overrides: Overrides = None,
    count: Annotated[int, typer.Option("--count", min=1, help="How many samples.")] = 64,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Equal seeds give equal samples.")] = 0,
    out: Annotated[str, typer.Option("--out", help="Folder or URL for samples.png and samples.safetensors, or the data set.")] = "samples",
    workers: Annotated[str | None, typer.Option("--workers", metavar="N", help=WORKERS)] = None,
    config: ConfigOption = None,
    store: StoreOption = "store",
    address: AddressOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> Answer:
    """Draws samples from a model that generates: a picture to look at, and the numbers themselves; many, or with --workers, as a data set.

    The data set has the columns image (from a model of points: point) and label, and is drawn by all workers at once. A killed command
    goes on where it stopped, and the same with a larger --count draws only what is new. Its rows do not depend on the number of workers.
    KEY=VALUE are options of the model's sampler, over those that `raymill sweep --write` chose for it.

    \b
    raymill sample prior --count 100 temperature=0.9 top_k=64
    raymill sample store/artifacts/prior-0123456789abcdef/model --seed 7 --out out/seven
    raymill sample prior --count 100000 --out s3://bucket/samples
    raymill sample prior --count 1000 --out data/drawn --workers 4
    """
    from components.families.model_folder import load_model
    from pipelines.settings import sampler_settings
    from pipelines.training import find_model

    place = find_model(model, Store(store))
    loaded = load_model(place)
    sampler = sampler_settings(loaded, config, overrides or [])
    told = {"model": model, "count": count, "seed": seed}
    if workers is None and count > MOST_AT_ONCE:
        workers = DEFAULT_WORKERS
    if workers is None:
        from components.evaluation.sampling import write_samples

        if address is not None:
            raise UserError(f"--address {address} has no effect without --workers, which makes a data set; give both, or neither")
        files = write_samples(loaded, count, seed, sampler, out)
        return Answer(told | {"files": files}, files)
    from clusters.generate import generate
    from components.data.generated import columns_of, settled_sampler
    from components.evaluation.sampling import SHEET

    columns_of(loaded, settled_sampler(loaded, sampler), pairs=False)  # a mistake is told before workers start
    with watched(json, STAGE) as progress, Workers(workers, address, progress) as crew:
        progress.begins(STAGE)
        waiting = partial(progress.waits, STAGE)
        index = generate(place, out, count, seed, sampler, crew.connect(), on_progress=_shown(progress, count), waiting=waiting)
    rows, shards, sheet = index.num_rows("train"), len(index.shards("train")), storage.join(out, SHEET)
    files = [sheet] if storage.exists(sheet) else []  # points of other widths than the plane's have none
    values = told | {"data": out, "fingerprint": index.fingerprint, "rows": rows, "shards": shards, "files": files}
    return Answer(values, [f"{out}: {rows} train rows, {counted(shards, 'shard')}", *files])


def _shown(progress: Watched, count: int) -> Callable[[int, int], None]:
    """Tells rows of `count`, and how many a second are drawn; those that were there already do not count as quick."""
    began: list[tuple[float, int]] = []

    def report(rows: int, shards: int) -> None:
        began[:] = began or [(time.monotonic(), rows)]
        seconds, new = time.monotonic() - began[0][0], rows - began[0][1]
        progress.reports(STAGE, {"step": rows, "steps": count} | ({"samples_per_second": new / seconds} if new else {}))

    return report
