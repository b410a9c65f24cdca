"""Samples of a model as a data set: Ray Data runs the pure function of `components/data/generated.py` over the shards that are missing.

Each worker loads the model once. With `workers=0` the same function runs in this process and Ray is not imported. The index is written
last; a killed run leaves whole shards, with which the next one goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal

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
from components.data.reuse import COPYING_THREADS, remove_unused, whole_shards
from components.data.write import shard_file
from components.errors import UserError
from components.evaluation.sampling import write_sheet
from components.families.contract import Family
from components.families.images import IMAGE
from components.families.model_folder import load_model, model_fingerprint
from components.lease import Lease, writing

OnProgress = Callable[[int, int, int], None]  # rows done, shards done, shards in all
OnWaiting = Callable[[str], None]  # the process that writes to the same place
SETTINGS = "generation.json"
SHEET_ROWS = 100


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

    Its one split, `train`, has the columns `image` uint8 (C, H, W) and, where the model knows classes, `label` int64. With `pairs` also
    `noise` and `image_float`, both float32 (C, H, W): what the sampler began with and what it came to, in [-1, 1] but for its errors.
    A worker takes a GPU where the cluster has one. `rows_per_shard`, a multiple of 8, is chosen where it is not given. The same arguments
    give the same bytes for any number of workers on one kind of device.

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
    with writing(out, waiting) as lease:
        _require_place(out, generation, count)
        specs = cut(generation, count)
        entries = _there(specs, columns, out)
        report = on_progress or (lambda rows, shards, total: None)
        report(_rows(entries), len(entries), len(specs))
        missing = [spec for spec in specs if spec.fingerprint not in entries]
        made = _write_here(missing, out, family) if workers == 0 else _write_on_ray(missing, out, model_url, workers)
        for entry in made:
            entries[entry.spec] = entry
            report(_rows(entries), len(entries), len(specs))
        names = tuple(str(number) for number in range(getattr(family.config, "num_classes", 0)))
        return _commit(out, [entries[spec.fingerprint] for spec in specs], columns, names, generation, lease)


def _device(workers: int) -> Literal["cpu", "cuda"]:
    """One kind for the whole data set, since samples differ between kinds. Raises UserError when the cluster cannot hold one worker."""
    if workers == 0:
        return "cuda" if torch.cuda.is_available() else "cpu"
    import ray

    gpu = ray.cluster_resources().get("GPU", 0) >= 1
    require_resources(1, {"CPU": 1.0} | ({"GPU": 1.0} if gpu else {}))
    return "cuda" if gpu else "cpu"


def _require_place(out: str, generation: Generation, count: int) -> None:
    """Lets only samples of the same settings be added to. Raises UserError telling what is in the way."""
    place = storage.join(out, SETTINGS)
    names = [name for name in storage.list_names(out) if not name.startswith(".")]
    if names and SETTINGS not in names:
        raise UserError(f"{out} is not empty: it holds {names[0]!r} and no samples that raymill sample made; name a new folder")
    if names in ([], [SETTINGS]):  # nothing was drawn yet
        storage.write_json(place, generation.to_json())
        return
    found, asked = Generation.parse(storage.read_json(place), place).to_json(), generation.to_json()
    others = differences(found, asked)
    if others:
        theirs = differences(asked, found)
        told = ", ".join(f"{key}={theirs.get(key)} and not {value}" for key, value in others.items())
        raise UserError(f"{out} holds samples of {told}; name a new folder, or ask for the same again")
    rows = read_index(out).num_rows("train") if INDEX in names else 0
    if rows > count:
        raise UserError(f"{out} holds {rows} samples already, more than count={count}; name a new folder, or ask for {rows} or more")


def _there(specs: list[SampleSpec], columns: dict[str, Column], out: str) -> dict[str, ShardEntry]:
    """Shards that are there, by specification: those that the index names, and whole ones that a killed run left."""
    wanted = {spec.fingerprint: spec for spec in specs}
    found = {fingerprint: entry for fingerprint, entry in whole_shards(out).items() if fingerprint in wanted}
    names = set(storage.list_names(out))
    left = [spec for fingerprint, spec in wanted.items() if fingerprint not in found and shard_file(fingerprint) in names]
    with ThreadPoolExecutor(COPYING_THREADS) as threads:
        entries = threads.map(partial(written_shard, columns=columns, out=out), left)
        return found | {entry.spec: entry for entry in entries if entry is not None}


def _write_here(specs: list[SampleSpec], out: str, family: Family) -> Iterator[ShardEntry]:
    if specs:
        family.to(specs[0].generation.device)
    return (write_samples_shard(family, spec, out) for spec in specs)


def _write_on_ray(specs: list[SampleSpec], out: str, model_url: str, workers: int) -> Iterator[ShardEntry]:
    if not specs:
        return iter(())
    import ray.data

    gpu = {"num_gpus": 1} if specs[0].generation.device == "cuda" else {}
    pool = ray.data.ActorPoolStrategy(size=min(workers, len(specs)))
    return make_on_ray(specs, out, Sampling, workers, compute=pool, fn_constructor_args=(model_url,), **gpu)


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


def _commit(
    out: str, entries: list[ShardEntry], columns: dict[str, Column], class_names: tuple[str, ...], generation: Generation, lease: Lease
) -> DatasetIndex:
    made_by: dict[str, Any] = {"tool": "raymill sample", **generation.to_json()}
    index = make_index(columns, class_names, {"train": tuple(entries)}, made_by)
    lease.check()
    write_index(out, index)
    remove_unused(out, index)
    first = Dataset.open(out).take(np.arange(min(SHEET_ROWS, index.num_rows("train"))))
    write_sheet(torch.from_numpy(first[IMAGE]), out)
    return index


def _rows(entries: dict[str, ShardEntry]) -> int:
    return sum(entry.rows for entry in entries.values())
