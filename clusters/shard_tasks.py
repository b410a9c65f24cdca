"""Shards made by Ray Data: one row of its data set is the specification of one shard, and what comes back is the shard's entry.

So resuming, errors and the order of things are ours, and no setting of Ray Data can change what a shard holds.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from components import storage
from components.config import Config
from components.data.index import ShardEntry
from components.errors import UserError

Item = dict[str, Any]  # `spec` as JSON, `out`, and `stop`: a file that says that no further shard is to be begun


def make_on_ray(specs: Sequence[Config], out: str, make: Any, workers: int, **options: Any) -> Iterator[ShardEntry]:
    """Entries of shards as Ray Data finishes them. After a user's mistake no further shard is begun, and none is still being written.

    `make`, a function or a class of callables, takes an item and answers with `attempt`; `options` are those of Ray Data's `map`.
    """
    if not specs:
        return
    import ray

    assert ray.is_initialized(), "the caller decides which cluster: call ray.init first"
    stop = storage.join(out, f".stop-{secrets.token_hex(6)}")
    items = [{"spec": spec.model_dump_json(), "out": out, "stop": stop} for spec in specs]
    problem: str | None = None
    with _quiet_context(workers):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # `max_restarts` has no named successor in this Ray
            results = ray.data.from_items(items, override_num_blocks=len(items)).map(make, num_cpus=1, **options)
        for result in results.iter_rows():
            if result["entry"] and problem is None:
                yield ShardEntry.model_validate_json(result["entry"])
            elif result["problem"] and problem is None:
                problem = result["problem"]
                storage.write_bytes(stop, b"")
    if problem is not None:
        storage.remove(stop)
        raise UserError(problem)


def attempt(item: Item, make: Callable[[str, str], ShardEntry]) -> dict[str, str]:
    """One shard on a worker, by `make(spec, out)`.

    Its mistakes travel as text, since an exception would come back wrapped in Ray's own and its traceback.
    """
    if storage.exists(item["stop"]):
        return {"entry": "", "problem": ""}
    try:
        entry = make(item["spec"], item["out"])
    except UserError as error:
        return {"entry": "", "problem": str(error)}
    return {"entry": entry.model_dump_json(), "problem": ""}


def absolute(url: str) -> str:
    """Workers have other working directories."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", url):
        return url
    return os.path.abspath(os.path.expanduser(url))


def _quiet_context(workers: int) -> Any:
    """Ray Data's settings for this run alone: no bars or chatter of its own, at most `workers` CPUs."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails is raised as well
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # copying reads options that Ray itself has retired
        context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.verbose_progress = False
    context.execution_options.resource_limits = ray.data.ExecutionResources(cpu=workers)
    return ray.data.DataContext.current(context)
