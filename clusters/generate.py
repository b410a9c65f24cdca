"""Samples of a model as a data set: Ray Data runs the pure function of `components/data/generated.py` over the shards that are missing.

Each worker loads the model once. With `workers=0` the same function runs in this process and Ray is not imported. The index is written
last; a killed run leaves whole shards, with which the next one goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch

from clusters.session import require_resources
from clusters.shard_tasks import Item, absolute, attempt, make_on_ray
from components import storage
from components.config import Config, differences
from components.data.columns import Column
from components.data.dataset import Dataset
from components.data.generated import (
    Generation,
    SampleSpec,
    columns_of,
    cut,
    rows_that_fit,
    settled_sampler,
    write_samples_shard,
    written_shard,
)
from components.data.index import INDEX, DatasetIndex, ShardEntry, make_index, read_index, write_index
from components.data.reuse import remove_unused, whole_shards
from components.data.write import shard_file
from components.errors import UserError
from components.evaluation.sampling import write_scatter, write_sheet
from components.families.contract import Family
from components.families.images import IMAGE, LABEL
from components.families.model_folder import load_model, model_fingerprint
from components.families.points import POINT
from components.lease import Lease, writing

OnProgress = Callable[[int, int], None]  # rows done, shards done
OnWaiting = Callable[[str], None]  # the process that writes to the same place
SETTINGS = "generation.json"
SHEET_ROWS, SCATTERED_ROWS = 100, 5000
READING_THREADS = 16
MAX_DEATHS = 4


def generate(
    model_url: str,
    out: str,
    count: int,
    seed: int,
    sampler: Config,
    workers: int = 0,
    *,
    pairs: bool = False,
    rows_per_shard: int | None = None,
    on_progress: OnProgress | None = None,
    waiting: OnWaiting = lambda owner: None,
) -> DatasetIndex:
    """Makes the data set `out` of the first `count` samples of a model, on `workers` workers of the Ray cluster that is initialised, or in
    this process.

    Its one split, `train`, has the columns `image` uint8 (C, H, W), or `point` float32 (D,) from a model of points, and, where the model
    knows classes, `label` int64. With `pairs` also `noise` and `image_float`, both float32 (C, H, W): what the sampler began with and what
    it came to, in [-1, 1] but for its errors. A worker takes a GPU where the cluster has one. `rows_per_shard`, a multiple of 8, is chosen
    where it is not given. The same arguments give the same bytes for any number of workers on one kind of device.

    What is there already of the same samples is kept, so that a killed run goes on and `count` may grow. Raises UserError when `out` holds
    anything else, and for a sampler that does not fit the model.
    """
    model_url, out = absolute(model_url), absolute(out)
    if count < 1:
        raise UserError(f"count={count} is not valid; ask for one sample or more")
    family = load_model(model_url)
    sampler = settled_sampler(family, sampler, pairs)
    columns = columns_of(family, sampler, pairs)
    generation = Generation.parse(
        {
            "model": model_fingerprint(model_url),
            "seed": seed,
            "sampler": sampler.to_json(),
            "pairs": pairs,
            "rows_per_shard": rows_per_shard or rows_that_fit(columns),
            "device": _device(workers),
        },
        "samples",
    )
    job = _Job(model_url, out, family, columns, generation, cut(generation, count))
    with writing(out, waiting) as lease:
        _require_place(job)
        entries = _draw_missing(job, workers, on_progress or (lambda rows, shards: None))
        return _commit(job, entries, lease)


@dataclass(frozen=True)
class _Job:
    """What is to be drawn, and where to."""

    model_url: str
    out: str
    family: Family
    columns: dict[str, Column]
    generation: Generation
    specs: list[SampleSpec]

    @property
    def count(self) -> int:
        return sum(spec.count for spec in self.specs)


def _device(workers: int) -> Literal["cpu", "cuda"]:
    """One kind for the whole data set, since samples differ between kinds. Raises UserError when the cluster cannot hold one worker."""
    if workers == 0:
        return "cuda" if torch.cuda.is_available() else "cpu"
    import ray

    gpu = ray.cluster_resources().get("GPU", 0) >= 1
    require_resources(1, {"CPU": 1.0} | ({"GPU": 1.0} if gpu else {}))
    return "cuda" if gpu else "cpu"


def _require_place(job: _Job) -> None:
    """Lets only samples of the same settings be added to. Raises UserError telling what is in the way."""
    out, place = job.out, storage.join(job.out, SETTINGS)
    names = [name for name in storage.list_names(out) if not name.startswith(".")]
    if names and SETTINGS not in names:
        raise UserError(f"{out} is not empty: it holds {names[0]!r} and no samples that raymill sample made; name a new folder")
    if names in ([], [SETTINGS]):  # nothing was drawn yet
        storage.write_json(place, job.generation.to_json())
        return
    found, asked = Generation.parse(storage.read_json(place), place).to_json(), job.generation.to_json()
    others, theirs = differences(found, asked), differences(asked, found)
    if others:
        told = ", ".join(f"{key}={theirs.get(key)} and not {value}" for key, value in others.items())
        raise UserError(f"{out} holds samples of {told}; name a new folder, or ask for the same again")
    rows = read_index(out).num_rows("train") if INDEX in names else 0
    if rows > job.count:
        raise UserError(f"{out} holds {rows} samples already, more than count={job.count}; name a new folder, or ask for {rows} or more")


def _draw_missing(job: _Job, workers: int, report: OnProgress) -> list[ShardEntry]:
    """The entries of all shards, in order, after those that are not there yet were drawn."""
    entries = _there(job)
    missing = [spec for spec in job.specs if spec.fingerprint not in entries]
    report(_rows(entries), len(entries))
    for entry in _write_here(job, missing) if workers == 0 else _write_on_ray(job, missing, workers):
        entries[entry.spec] = entry
        report(_rows(entries), len(entries))
    return [entries[spec.fingerprint] for spec in job.specs]


def _there(job: _Job) -> dict[str, ShardEntry]:
    """Shards that are there, by specification: those that the index names, and whole ones that a killed run left."""
    wanted = {spec.fingerprint: spec for spec in job.specs}
    found = {fingerprint: entry for fingerprint, entry in whole_shards(job.out).items() if fingerprint in wanted}
    names = set(storage.list_names(job.out))
    left = [spec for fingerprint, spec in wanted.items() if fingerprint not in found and shard_file(fingerprint) in names]
    with ThreadPoolExecutor(READING_THREADS) as threads:
        entries = threads.map(partial(written_shard, columns=job.columns, out=job.out), left)
        return found | {entry.spec: entry for entry in entries if entry is not None}


def _write_here(job: _Job, specs: list[SampleSpec]) -> Iterator[ShardEntry]:
    for spec in specs:
        yield write_samples_shard(job.family.to(job.generation.device), spec, job.out)


def _write_on_ray(job: _Job, specs: list[SampleSpec], workers: int) -> Iterator[ShardEntry]:
    """Begins anew with what is missing when a worker died; Ray, told to start it again itself, prints a warning for each worker."""
    if not specs:
        return
    import ray.data

    gpu = {"num_gpus": 1} if job.generation.device == "cuda" else {}
    missing, deaths = {spec.fingerprint: spec for spec in specs}, 0  # in a row, with no new shard between
    while missing:
        pool = ray.data.ActorPoolStrategy(size=min(workers, len(missing)))
        options = {"compute": pool, "fn_constructor_args": (job.model_url,), "max_restarts": 0} | gpu
        try:
            for entry in make_on_ray([*missing.values()], job.out, Sampling, workers, **options):
                deaths = 0
                del missing[entry.spec]
                yield entry
        except ray.exceptions.RayActorError:
            deaths += 1
            if deaths == MAX_DEATHS:
                raise


class Sampling:
    """What a worker is: a model that draws one shard after another."""

    def __init__(self, model_url: str) -> None:
        self._model_url = model_url
        self._family: Family | None = None

    def __call__(self, item: Item) -> dict[str, str]:
        return attempt(item, self._write)

    def _write(self, values: str, out: str) -> ShardEntry:
        spec = SampleSpec.model_validate_json(values)
        if self._family is None:  # not before the first shard: what is wrong with it is then told in one line
            self._family = load_model(self._model_url).to(spec.generation.device)
        return write_samples_shard(self._family, spec, out)


def _commit(job: _Job, entries: list[ShardEntry], lease: Lease) -> DatasetIndex:
    out, names = job.out, tuple(str(number) for number in range(getattr(job.family.config, "num_classes", 0)))
    index = make_index(job.columns, names, {"train": tuple(entries)}, {"tool": "raymill sample", **job.generation.to_json()})
    lease.check()
    write_index(out, index)
    remove_unused(out, index)
    _draw_sheet(job, Dataset.open(out))
    return index


def _draw_sheet(job: _Job, data: Dataset) -> None:
    """The first rows as a picture: pictures themselves, or where points of the plane lie."""
    points = POINT in job.columns
    rows = data.take(np.arange(min(SCATTERED_ROWS if points else SHEET_ROWS, data.num_rows)))
    first = {name: torch.from_numpy(values) for name, values in rows.items()}
    if points:
        write_scatter(first[POINT], first.get(LABEL), job.out)
    else:
        write_sheet(first[IMAGE], job.out)


def _rows(entries: dict[str, ShardEntry]) -> int:
    return sum(entry.rows for entry in entries.values())
