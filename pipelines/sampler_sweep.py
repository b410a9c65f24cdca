"""A sampler sweep as an artifact: how a trained model best draws its samples, found without any training.

    raymill sweep prior images --judge judge --vary temperature='uniform: [0.7, 1.1]' --vary top_k='choice: [32, 64, 128, null]'

Every setting draws the same rows of the same seed, so that settings differ by nothing else. The artifact holds `settings.json`, findings
and a page; what a setting's samples came to is kept as soon as it has ended, and a killed sweep goes on with the others.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import yaml

from components import storage
from components.errors import UserError
from components.evaluation.generation import require_enough
from components.evaluation.pictures import grid, png
from components.families.contract import Family
from components.families.model_folder import load_model, read_family, write_sampler
from components.report.findings import Chart, Findings, Picture, Score, Series, Table
from components.report.page import Exhibit, render
from components.sweep.sampling import Bench, SamplingJob
from components.sweep.space import text
from pipelines.references import Judging, held_out_first
from pipelines.reporting import PAGE
from pipelines.sampler_sweep_config import (
    SamplerSweepConfig,
    configure_sampler_sweep,
    evaluate_command,
    require_possible,
    sampler_of,
)
from pipelines.sampler_sweep_guide import SamplerSweepGuide, Setting
from pipelines.source import Source, SourceReader
from pipelines.stage import Progress, Stage, Step, Task, make
from pipelines.store import Artifact, FileEntry, Manifest, Recipe, Store
from pipelines.sweep_config import show_values
from pipelines.training import find_data, find_model
from pipelines.workers import Workers

STAGE, VERSION = "sampler_sweep", 1
SETTINGS, SAMPLES = "settings.json", "samples.png"
SHOWN, PICTURED = 10, 5  # settings in the table of the best, and in the picture
NAMES = {"fd": "Fréchet distance (FD-cnn)", "kid": "kernel distance (KID)"}
WIDE_RATIO = 8.0  # an axis with values further apart is logarithmic


class SamplerSweep:
    """One sweep, looked over: what it would draw from, and whether that can work."""

    def __init__(self, store: Store, model: str, data: str, judge: str, file: str | None, vary: list[str], assignments: list[str]) -> None:
        """Raises UserError for whatever can be known to fail, before anything is drawn."""
        self._store, self._reader = store, SourceReader(store)
        self._named = model, data, judge
        places = {"model": find_model(model, store), "data": find_data(data, store), "judge": find_model(judge, store)}
        self.config = configure_sampler_sweep(read_family(places["model"]), file, vary, assignments)
        self.sources = {name: self._reader.read(place, name.upper()) for name, place in places.items()}
        self.model: Family = load_model(places["model"])
        require_possible(self.config, self.model)
        self.judging = Judging(store, self.sources["judge"], self.sources["data"], self.config.split)
        self.judging.require_pictures_of(self.model)
        require_enough(self.judging.judge, self.config.samples, f"samples={self.config.samples}:")
        inputs = {name: source.fingerprint for name, source in self.sources.items()}
        self._recipe = Recipe(stage=STAGE, version=VERSION, config=self.config.identity(), inputs=inputs)

    def make(self, workers: Workers, progress: Progress, at_most: int, command: str) -> tuple[Artifact, bool]:
        """The artifact, and whether it had to be made; `at_most` settings at once."""

        def run(task: Task[SamplerSweepConfig], **sources: Source) -> None:
            self._run(task, at_most)

        step = Step(Stage(STAGE, VERSION, run, (), SamplerSweepConfig), self.config, self._recipe, self.sources, {})
        try:
            found, made = make(step, {}, self._store, workers, progress, command)
            self._reader.remember()
        finally:
            self._store.tidy()
        progress.ends(STAGE, found, made)
        return found, made

    def write(self, artifact: Artifact) -> str:
        """Makes the best setting the default of the model; returns the file that says so."""
        found = read_settings(artifact)
        best = found["settings"][found["best"]]
        about = {"sweep": artifact.name, "data": found["inputs"]["data"], "judge": found["inputs"]["judge"], "scores": best["scores"]}
        return write_sampler(self.sources["model"].url, sampler_of(self.config, best["values"]), about)

    def _run(self, task: Task[SamplerSweepConfig], at_most: int) -> None:
        started = time.perf_counter()
        config, judging = self.config, self.judging
        job = SamplingJob(model=self.sources["model"].url, judge=self.sources["judge"].url, samples=config.samples, seed=config.seed)
        guide = SamplerSweepGuide(config, self.model, task.draft.work, task.report)
        bench = Bench(job, self.model, judging.judge, judging.reference)
        task.workers.run_settings(bench, guide, config.resources.cpus, config.resources.gpus, at_most)
        if not guide.ranked():
            first = guide.settings[0]
            assert first.outcome is not None
            raise UserError(f"none of {len(guide.settings)} settings came to a score; trial 0: {first.outcome.problem}")
        folder = str(task.draft.folder)
        storage.write_json(storage.join(folder, SETTINGS), self._told(guide))
        self._findings(guide, folder).write(folder)
        self._write_page(task, time.perf_counter() - started)

    def _told(self, guide: SamplerSweepGuide) -> dict[str, Any]:
        """Everything about the settings."""
        best = guide.ranked()[0]
        return {
            "judge": self.config.judge.to_json(),
            "keys": list(self.config.vary),
            "inputs": self._recipe.inputs,
            "best": best.number,
            "front": [each.number for each in guide.front()],
            "command": evaluate_command(self.config, best.values, *self._named),
            "settings": [
                {
                    "number": each.number,
                    "values": each.values,
                    "state": each.outcome.state,
                    "scores": each.outcome.scores,
                    "seconds": each.outcome.seconds,
                    "problem": each.outcome.problem,
                }
                for each in guide.settings
                if each.outcome is not None
            ],
        }

    def _findings(self, guide: SamplerSweepGuide, folder: str) -> Findings:
        ranked, score = guide.ranked(), self.config.judge.score
        pictured = ranked[:PICTURED]
        rows = [each.outcome.images().numpy() for each in pictured if each.outcome is not None]
        storage.write_bytes(storage.join(folder, SAMPLES), png(grid(rows, scale=2)))
        picture = Picture(
            file=SAMPLES,
            title="The best settings, side by side",
            caption=f"The first samples of seed {self.config.seed}, not chosen: a column begins from the same random numbers.",
            row_names=tuple(f"{show_values(each.values)}" for each in pictured),
        )
        points = held_out_first(self.judging.points(self.config.samples), score)
        failed = sum(each.outcome is not None and each.outcome.state == "failed" for each in guide.settings)
        note = f"trial {ranked[0].number} ({show_values(ranked[0].values)}); {self.config.samples:,} samples"
        headline = Score(
            name=f"{NAMES[score]} of the best setting",
            value=ranked[0].score(score) or 0.0,
            better="lower",
            beside=points | {"median of the settings": ranked[len(ranked) // 2].score(score) or 0.0},
            note=note + (f"; {failed} of {len(guide.settings)} settings failed" if failed else ""),
        )
        return Findings(scores=(headline,), tables=(self._table(ranked),), charts=(self._chart(guide),), pictures=(picture,))

    def _table(self, ranked: list[Setting]) -> Table:
        keys = list(self.config.vary)
        names = ("fd", "kid", "label_entropy", "evaluations")
        rows = []
        for each in ranked[:SHOWN]:
            assert each.outcome is not None
            cells = [text(each.values[key]) if key in each.values else "–" for key in keys]
            speed = each.outcome.scores["samples"] / each.outcome.seconds
            rows.append((str(each.number), *cells, *(each.outcome.scores[name] for name in names), speed))
        return Table(
            title="The best settings",
            caption=f"By {self.config.judge.score}, each on {self.config.samples:,} samples; entropy of the judge's labels in bits; "
            "evaluations of the network a sample; samples drawn a second by one process. – where an option does not exist.",
            columns=("trial", *keys, "FD-cnn", "KID", "label entropy", "evaluations", "samples/s"),
            rows=tuple(rows),
            ours=0,
        )

    def _chart(self, guide: SamplerSweepGuide) -> Chart:
        score = self.config.judge.score

        def series(name: str, settings: list[Setting], joined: bool) -> Series:
            pairs = [(each.score("evaluations") or 0.0, each.score(score) or 0.0) for each in settings]
            return Series(name=name, x=tuple(x for x, _ in pairs), y=tuple(y for _, y in pairs), joined=joined)

        shown = (series("all settings", guide.ranked(), False), series("best for its cost", guide.front(), True))
        return Chart(
            title="Quality against cost",
            caption="A mark a setting; on the line those that no other is better than in both.",
            x_label="network evaluations a sample",
            y_label=NAMES[score],
            series=shown,
            log_x=_is_wide(shown[0].x),
            log_y=_is_wide(shown[0].y),
        )

    def _write_page(self, task: Task[SamplerSweepConfig], seconds: float) -> None:
        """The sweep's own page, beside what it tells of; files and checksums are not known yet."""
        folder = str(task.draft.folder)
        manifest = Manifest(
            **self._recipe.model_dump(exclude={"fingerprint"}),
            sources={name: source.url for name, source in self.sources.items()},
            files={name: FileEntry(bytes=size, sha256="") for name, size in storage.file_sizes(folder).items()},
            seconds=seconds,
            made_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            command=task.command,
        )
        found = storage.read_json(storage.join(folder, SETTINGS))
        title, count = f"How to sample from {self._named[0]}", len(found["settings"])
        summary = f"{count} settings of the sampler, searched by {self.config.search}. The best again: {found['command']}"
        config = yaml.safe_dump(self.config.identity(), sort_keys=False, allow_unicode=True, width=100)
        page = render(title, summary, [Exhibit(folder, manifest.to_json())], task.command, config)
        storage.write_bytes(storage.join(folder, PAGE), page.encode())


def read_settings(artifact: Artifact) -> dict[str, Any]:
    """What `settings.json` of a sampler sweep holds."""
    return storage.read_json(artifact.path(SETTINGS))


def _is_wide(values: tuple[float, ...]) -> bool:
    return min(values) > 0 and max(values) / min(values) > WIDE_RATIO
