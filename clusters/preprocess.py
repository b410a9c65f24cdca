"""Source to data set: Ray Data runs the pure function of `components/data/shards.py` over the specifications of a plan.

With `workers=0` the same function runs in this process and Ray is not imported. What is unchanged is not made again; the index is
written last, and only then are shards removed that nothing names any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

from clusters.shard_tasks import Item, absolute, attempt, make_on_ray
from components import storage
from components.data.index import DatasetIndex, ShardEntry, make_index, write_index
from components.data.plan import Plan, plan
from components.data.prepare_config import PrepareConfig
from components.data.reuse import Reuse, carry_over, remove_unused, whole_shards
from components.data.shards import ShardSpec, write_shard
from components.data.write import shard_file
from components.errors import UserError
from components.lease import Lease, LeaseLost, writing

OnProgress = Callable[[int, int, int], None]  # shards done, shards in all, rows done
OnWaiting = Callable[[str], None]  # the process that writes to the same place


def prepare(
    source: str,
    out: str,
    config: PrepareConfig,
    workers: int = 0,
    on_progress: OnProgress | None = None,
    waiting: OnWaiting = lambda owner: None,
    reuse: Reuse | None = None,
) -> DatasetIndex:
    """Makes the data set `out` of the source, on `workers` CPUs of the Ray cluster that is initialised, or in this process.

    The same source and config give the same bytes for any number of workers. Shards that `out` has already are kept as they are, those
    that a data set of `reuse` has are carried over, and files that it knows are not read to plan; none of that changes what comes out.
    One process at a time writes to `out`; `waiting` is told for whom the others wait. Raises UserError naming the culprit file; `out` is
    then left as it was.
    """
    source, out = absolute(source), absolute(out)
    reuse = reuse or Reuse()
    with writing(out, waiting) as lease:
        planned = plan(source, config, reuse.files)
        return _make(planned, out, workers, on_progress or (lambda done, total, rows: None), reuse.datasets, lease)


def _make(planned: Plan, out: str, workers: int, report: OnProgress, datasets: tuple[str, ...], lease: Lease) -> DatasetIndex:
    by_split = {split: [spec.fingerprint for spec in specs] for split, specs in planned.shards.items()}
    specs = {fingerprint: spec for split, names in by_split.items() for fingerprint, spec in zip(names, planned.shards[split], strict=True)}
    entries = {fingerprint: entry for fingerprint, entry in whole_shards(out).items() if fingerprint in specs}
    new = specs.keys() - entries.keys()
    try:
        entries |= {entry.spec: entry for entry in carry_over(new, datasets, out)}
        missing = [spec for fingerprint, spec in specs.items() if fingerprint not in entries]
        report(len(entries), len(specs), sum(entry.rows for entry in entries.values()))
        for entry in _write_here(missing, out) if workers == 0 else _write_on_ray(missing, out, workers):
            entries[entry.spec] = entry
            report(len(entries), len(specs), sum(entry.rows for entry in entries.values()))
        splits = {split: tuple(entries[fingerprint] for fingerprint in names) for split, names in by_split.items()}
        index = make_index(planned.columns, planned.class_names, splits, planned.made_by)
        lease.check()
        write_index(out, index)
    except LeaseLost:
        raise
    except BaseException:
        with suppress(UserError):  # a storage that fails must not hide why it failed
            for fingerprint in new:
                storage.remove(storage.join(out, shard_file(fingerprint)))
        raise
    remove_unused(out, index)
    return index


def _write_here(specs: list[ShardSpec], out: str) -> Iterator[ShardEntry]:
    return (write_shard(spec, out) for spec in specs)


def _write_on_ray(specs: list[ShardSpec], out: str, workers: int) -> Iterator[ShardEntry]:
    return make_on_ray(specs, out, _write_one, workers)


def _write_one(item: Item) -> dict[str, str]:
    return attempt(item, lambda spec, out: write_shard(ShardSpec.model_validate_json(spec), out))
