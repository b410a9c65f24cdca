"""A sweep as an artifact: `trials.json`, findings and a page. Each finished trial is an artifact of its own, as `raymill train` makes it.

raymill sweep classifier data/fashion --vary train.optimizer.lr='log: [1e-3, 1e-1]' --trials 16 --scheduler asha
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import yaml

from components import storage
from components.data.dataset import Dataset
from components.data.index import read_index
from components.errors import UserError, did_you_mean
from components.evaluation.scoring import evaluate
from components.families.model_folder import family_class
from components.report.findings import Findings, Score, Table
from components.report.page import Exhibit, render
from components.report.sweep import TRIALS
from components.sweep.space import text
from components.training.job import build
from pipelines.population_guide import PopulationGuide
from pipelines.reporting import PAGE
from pipelines.settings import Training
from pipelines.source import Source, SourceReader
from pipelines.stage import Progress, Stage, Step, Task, make
from pipelines.store import Artifact, FileEntry, Manifest, Recipe, Store
from pipelines.sweep_config import SweepConfig, resolve, show_values, train_command
from pipelines.sweep_guide import Entry, Judged, SweepGuide
from pipelines.training import read_sources, training_job
from pipelines.workers import Workers

STAGE, VERSION = "sweep", 1
SHOWN = 10  # trials in the table of the best


def make_sweep(
    config: SweepConfig,
    data: str,
    children: list[str],
    preset: str | None,
    store: Store,
    workers: Workers,
    at_most: int | None,
    progress: Progress,
    command: str,
) -> tuple[Artifact, bool]:
    """The artifact of a sweep, and whether it had to be made; arguments as for `make_model`, `at_most` trials at once.

    Raises UserError for whatever can be known to fail, before any trial starts.
    """
    reader = SourceReader(store)
    sources = read_sources(reader, data, children, store)
    index = read_index(sources["data"].url)
    config, told = resolve(config, index.shape, index.splits, data)
    recipe = Recipe(
        stage=STAGE, version=VERSION, config=config.identity(), inputs={name: source.fingerprint for name, source in sources.items()}
    )

    def run(task: Task[SweepConfig], **sources: Source) -> None:
        started = time.perf_counter()
        best = sweep_into(task, sources, told, partial(train_command, data=data, children=children, preset=preset), at_most)
        _write_page(task, best, _manifest(task, best, recipe, sources, time.perf_counter() - started))

    step = Step(Stage(STAGE, VERSION, run, (), SweepConfig), config, recipe, sources, {})
    try:
        found, made = make(step, {}, store, workers, progress, command)
        reader.remember()
    finally:
        store.tidy()
    progress.ends(STAGE, found, made)
    return found, made


def sweep_into(
    task: Task[SweepConfig], sources: dict[str, Source], told: Iterable[str], alone: Callable[[Training], str], at_most: int | None = None
) -> Entry:
    """Runs the sweep of a config that `resolve` completed, leaves trials and findings in the draft, and returns the best trial.

    The best is an artifact of its own, but for a population (`scheduler=pbt`), which leaves its model in the draft. `told` are lines for
    people, `alone` is the command that trains one trial. Raises UserError for a judge that the family has not, before any trial starts, and
    when no trial comes to a score.
    """
    config = task.config
    _require_known_score(config, sources)
    for line in told:
        task.report({"line": line})
    data, resources = read_index(sources["data"].url).shape, config.resources
    if config.scheduler == "pbt":
        population = PopulationGuide(config, sources, task.draft.work, data, task.report)
        task.workers.run_trials(population, resources.cpus, resources.gpus, at_most)
        best = _conclude(task, population, None)
        population.adopt(task.draft, best)
        return best
    with SweepGuide(config, sources, task.store, task.draft.work, data, alone, task.report) as guide:
        task.workers.run_trials(guide, resources.cpus, resources.gpus, at_most)
        best = _conclude(task, guide, alone)
        guide.tidy()
    return best


def _conclude(task: Task[SweepConfig], guide: Judged, alone: Callable[[Training], str] | None) -> Entry:
    """Writes what came of the trials, and returns the best; no `alone`: no single training makes it."""
    best = guide.best()
    if best is None:
        raise UserError(f"none of {len(guide.entries)} trials came to a score; {_problem(guide)}")
    command = alone(best.settings) if alone is not None else None
    storage.write_json(str(task.draft.folder / TRIALS), _trials(task.config, guide, best, command))
    _findings(task.config, guide, best).write(str(task.draft.folder))
    return best


def read_trials(artifact: Artifact) -> dict[str, Any]:
    """What `trials.json` of a sweep holds."""
    return storage.read_json(artifact.path(TRIALS))


def _require_known_score(config: SweepConfig, sources: dict[str, Source]) -> None:
    """Raises UserError for a judge that the family does not score by; other families' headlines need a look at an untrained model."""
    assert config.judge is not None
    if config.judge.score == family_class(config.family).headline[0]:
        return
    data = sources["data"].url
    children = {name: source.url for name, source in sources.items() if name != "data"}
    model = build(training_job(config.base, data, "", children), Dataset.open(data, "train"))
    scores = evaluate(model, Dataset.open(data, config.train.held_out))  # all rows: pairs of identities need them
    known = [name for name, value in scores.items() if isinstance(value, float)]
    if config.judge.score not in known:
        raise UserError(f"judge.score={config.judge.score!r} is no score of {config.family}; {did_you_mean(config.judge.score, known)}")


def _problem(guide: Judged) -> str:
    """Why a trial came to nothing."""
    failed = next((entry for entry in guide.entries if entry.state == "failed"), None)
    return f"trial {failed.number}: {failed.outcome.problem}" if failed is not None and failed.outcome is not None else "no scores"


def _write_page(task: Task[SweepConfig], best: Entry, manifest: Manifest) -> None:
    """The sweep's own page, beside what it tells of."""
    folder = str(task.draft.folder)
    trials = len(storage.read_json(storage.join(folder, TRIALS))["trials"])
    sizes = storage.file_sizes(folder)
    manifest = manifest.model_copy(update={"files": {name: FileEntry(bytes=size, sha256="") for name, size in sizes.items()}})
    exhibits = [Exhibit(best.artifact.url, best.artifact.manifest.to_json())] if best.artifact is not None else []
    exhibits.append(Exhibit(folder, manifest.to_json()))
    title = f"Sweep of {task.config.family}"
    summary = f"{trials} trials, searched by {task.config.search}, scheduler {task.config.scheduler}."
    config = yaml.safe_dump(task.config.identity(), sort_keys=False, allow_unicode=True, width=100)
    storage.write_bytes(storage.join(folder, PAGE), render(title, summary, exhibits, task.command, config).encode())


def _manifest(task: Task[SweepConfig], best: Entry, recipe: Recipe, sources: dict[str, Source], seconds: float) -> Manifest:
    """What the sweep's own page says of it, which is part of the artifact: files and checksums are not known yet."""
    apart = best.artifact is not None and best.outcome is not None  # the page shows the best as an artifact of its own
    others = seconds - (best.outcome.seconds if apart and best.outcome is not None else 0.0)
    return Manifest(
        **recipe.model_dump(exclude={"fingerprint"}),
        sources={name: source.url for name, source in sources.items()},
        files={},
        seconds=max(0.0, others),
        made_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        command=task.command,
    )


def _trials(config: SweepConfig, guide: Judged, best: Entry, command: str | None) -> dict[str, Any]:
    """Everything about the trials that does not depend on when and where they ran."""
    assert config.judge is not None
    return {
        "judge": config.judge.to_json(),
        "keys": list(config.vary),
        "vary": {key: space.to_json() for key, space in config.vary.items()},
        "rungs": list(config.rungs),
        "best": best.number,
        "command": command,
        "trials": [
            {
                "number": entry.number,
                "values": entry.values,
                "state": entry.state,
                "score": guide.score(entry),
                "stopped_at": entry.stopped_at,
                "curve": guide.curve(entry),
                "problem": entry.outcome.problem if entry.state == "failed" and entry.outcome is not None else "",
                "artifact": entry.artifact.name if entry.artifact is not None and entry.state == "finished" else None,
            }
            | guide.details(entry)
            for entry in guide.entries
        ],
    }


def _findings(config: SweepConfig, guide: Judged, best: Entry) -> Findings:
    assert config.judge is not None
    scored = [(score, entry) for entry in guide.entries if entry.state == "finished" and (score := guide.score(entry)) is not None]
    scored.sort(key=lambda pair: (pair[0] if config.judge and config.judge.best == "min" else -pair[0], pair[1].number))
    counts = {state: sum(entry.state == state for entry in guide.entries) for state in ("finished", "stopped", "failed")}
    note = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    median = scored[len(scored) // 2][0]
    headline = Score(
        name=f"{config.judge.score} of the best trial",
        value=scored[0][0],
        better="lower" if config.judge.best == "min" else "higher",
        beside={"median of the finished": median} if len(scored) > 1 else {},
        note=f"trial {best.number} ({show_values(best.values)}); {note}",
    )
    keys = list(config.vary)
    table = Table(
        title="The best trials",
        caption=f"By {config.judge.score} of the published model on all held-out rows; – where a parameter does not exist.",
        columns=("trial", *keys, config.judge.score),
        rows=tuple((str(entry.number), *_cells(entry, keys), value) for value, entry in scored[:SHOWN]),
        ours=0,
    )
    return Findings(scores=(headline,), tables=(table,))


def _cells(entry: Entry, keys: list[str]) -> list[str]:
    """A trial's values as text: a learning rate is not rounded like a score."""
    return [text(entry.values[key]) if key in entry.values else "–" for key in keys]
