"""Whole Fashion-MNIST, at most 20 minutes of training a family: how far 10,000 samples are from real pictures, beside class Gaussians.

    python -m benchmarks.generation runs/generation
    python -m benchmarks.generation runs/short --families rectified_flow --samples 2000 --minutes 2,5 train.steps=4000

Each family trains with its preset `full` and rests when its steps have taken 5, 10 and 20 minutes; starting, saving and scoring do not
count. The averaged weights of that moment draw the samples. A family whose preset ends earlier is drawn from at its end. All that is done
lies in the folder, and a command that was interrupted goes on there: shards, checkpoints, models, and `rows.jsonl` with a line for each
model and sampler. Distances are on the features of a classifier trained here with a seed of its own: FD-cnn, not FID.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.table import Table
from benchmarks.work import source
from clusters.preprocess import prepare
from components import storage
from components.data.dataset import Dataset
from components.data.prepare_config import PrepareConfig
from components.errors import UserError
from components.evaluation.generation import Reference, score_samples
from components.evaluation.reference_points import HELD_OUT, point_scores
from components.families.classifier import Classifier
from components.families.contract import Family
from components.families.model_folder import COMMIT, load_model, save_model
from components.training.checkpoint import CheckpointFolder
from components.training.continuation import CHECKPOINTS
from components.training.job import TrainingJob, build, finished
from components.training.record import read_metrics
from pipelines.settings import PRESETS, Training, configure, family_preset
from pipelines.training import training_job
from pipelines.workers import Workers

MINUTE = 60.0
GAUSSIANS, NOISE = "class Gaussians", "noise"
JUDGE_SEED = 7  # no other net here is drawn with it
FIRST_STEPS = 40  # before a rate is known
AIM = 0.9  # of what is left of a mark's time, since the rate to come is not known
NEAR, BEYOND = 0.99, 1.05  # shares of a mark's time that are it, and that are past it
SAMPLERS: dict[str, dict[str, dict[str, Any]]] = {
    "diffusion": {"ancestral, 100 steps": {"sampler": "ancestral", "steps": 100}, "DDIM, 50 steps": {"sampler": "ddim", "steps": 50}},
    "score_sde": {
        "reverse diffusion, 100 steps": {"sampler": "reverse_diffusion", "steps": 100},
        "DPM-Solver++ 2M, 25 steps": {"sampler": "dpm_solver", "steps": 25},
    },
    "rectified_flow": {"Euler, 20 steps": {"sampler": "euler", "steps": 20}},
}


@dataclass(frozen=True)
class Asked:
    """What the command was asked for."""

    folder: str
    families: tuple[str, ...] = tuple(SAMPLERS)
    samples: int = 10_000
    minutes: tuple[float, ...] = (5.0, 10.0, 20.0)
    preset: str = "full"
    seed: int = 0
    overrides: tuple[str, ...] = ()

    def place(self, *parts: str) -> str:
        return storage.join(self.folder, *parts)


class Rows:
    """`rows.jsonl`: what is measured so far, each by what it was measured of."""

    def __init__(self, folder: str) -> None:
        self._file = Path(folder) / "rows.jsonl"
        self._file.parent.mkdir(parents=True, exist_ok=True)
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        self._rows: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def find(self, of: dict[str, Any]) -> dict[str, Any] | None:
        return next((row for row in self._rows if row["of"] == of), None)

    def add(self, of: dict[str, Any], figures: dict[str, Any]) -> dict[str, Any]:
        row = {"of": of, **figures}
        self._rows.append(row)
        with self._file.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
        print(json.dumps(row), file=sys.stderr, flush=True)
        return row


def job_of(family: str, asked: Asked, overrides: Iterable[str], name: str) -> TrainingJob:
    """The family's training by its preset, in the run folder `name`."""
    start = Training.parse({"family": family}, "benchmark")
    settings = configure(start, family_preset(family, asked.preset), asked.preset, None, list(overrides))
    return training_job(settings, asked.place("data"), asked.place("runs", name), {})


def trained_seconds(run: str) -> tuple[int, float]:
    """The steps so far and the seconds they took, by the run's record, in which a step that was trained twice stands once."""
    step, seconds = 0, 0.0
    for row in read_metrics(run):
        seconds += (row["step"] - step) * row["step_seconds"]
        step = row["step"]
    return step, seconds


def train_for(job: TrainingJob, seconds: float, workers: Workers) -> None:
    """Trains until the steps of the run have taken almost so many seconds in all, or to its end."""
    while not finished(job):
        step, spent = trained_seconds(job.run)
        rested = step > 0 and finished(_until(job, step))  # else it was killed, and its last checkpoint may be of an earlier step
        if rested and spent >= NEAR * seconds:
            return
        more = max(int(rested), int(AIM * (seconds - spent) * step / spent)) if step else FIRST_STEPS
        workers.train(_until(job, step + more), lambda row: None)


def _until(job: TrainingJob, step: int) -> TrainingJob:
    return job.model_copy(update={"until": step if step < job.train.steps else None})


def model_now(job: TrainingJob) -> Family:
    """What the run would publish if it ended where it rests: averaged weights where there are any."""
    if finished(job):
        return load_model(storage.join(job.run, "model"))
    with closing(CheckpointFolder(storage.join(job.run, CHECKPOINTS))) as checkpoints:
        checkpoint = checkpoints.latest()
    assert checkpoint is not None, f"{job.run} rests without a checkpoint"
    family = build(job, Dataset.open(job.data))
    family.load_state_dict(checkpoint.state["model"] | checkpoint.state.get("average", {}))
    return family.eval()


def judge_of(asked: Asked, workers: Workers) -> Classifier:
    """A classifier that no family was trained with."""
    job = job_of("classifier", asked, [f"train.seed={JUDGE_SEED}"], "judge")
    workers.train(job, lambda row: None)
    judge = load_model(storage.join(job.run, "model"))
    assert isinstance(judge, Classifier)
    return judge


def reference_points(asked: Asked, judge: Classifier, reference: Reference, rows: Rows) -> list[dict[str, Any]]:
    """Scores of real held-out pictures, of Gaussians fitted to each class's pixels, and of noise."""
    names = (HELD_OUT, GAUSSIANS, NOISE)
    known = [rows.find({"who": name, "samples": asked.samples}) for name in names]
    found = [row for row in known if row is not None]
    if len(found) == len(names):
        return found
    train, held_out = Dataset.open(asked.place("data")), Dataset.open(asked.place("data"), "test")
    scores = point_scores(judge, reference, train, held_out, asked.samples)
    return [rows.add({"who": name, "samples": asked.samples}, scores[name]) for name in names]


def drawn(
    family: str, job: TrainingJob, minutes: float, asked: Asked, judge: Classifier, reference: Reference, rows: Rows
) -> list[dict[str, Any]]:
    """A row for each sampler, drawn from the model that was kept at that mark."""
    place = asked.place("models", f"{family}-{job.identity()}-{minutes:g}")
    found = []
    for name, options in SAMPLERS[family].items():
        of = {"who": family, "job": job.identity(), "mark": minutes, "sampler": name, "samples": asked.samples, "seed": asked.seed}
        known = rows.find(of)
        if known is None:
            model = load_model(place)
            assert model.Sampler is not None
            sampler = model.Sampler.parse(options, "benchmark")
            made = score_samples(model, judge, reference, asked.samples, asked.seed, sampler, shown=0)
            costs = {"evaluations": made.evaluations, "images_per_second": made.images_per_second}
            known = rows.add(of, storage.read_json(f"{place}.json") | made.scores | costs)
        found.append(known)
    return found


def keep(family: str, minutes: float, asked: Asked, workers: Workers) -> TrainingJob:
    """Trains up to a mark and keeps the model of that moment, with the steps and minutes it took; the job."""
    job = job_of(family, asked, asked.overrides, family)
    place = asked.place("models", f"{family}-{job.identity()}-{minutes:g}")
    if not storage.exists(storage.join(place, COMMIT)):
        _, before = trained_seconds(job.run)
        if before > MINUTE * minutes * BEYOND:
            raise UserError(f"{job.run} has trained {before / MINUTE:.1f} minutes, beyond the mark of {minutes:g}; give another folder")
        train_for(job, minutes * MINUTE, workers)
        step, seconds = trained_seconds(job.run)
        facts = {"step": step, "steps": job.train.steps, "minutes": seconds / MINUTE, "workers": workers.count.most}
        storage.write_json(f"{place}.json", facts)
        save_model(model_now(job), place)
    return job


def main(asked: Asked, workers: int = 2, data: str | None = None) -> Table:
    title = f"{asked.samples:,} samples, preset {asked.preset}; FD-cnn against all training pictures"
    table = Table(title, ["who", "minutes", "steps", "evaluations", "FD-cnn", "Gaussians' / FD", "KID", "label entropy", "images/s"])
    rows = Rows(asked.folder)
    prepare(data or source(), asked.place("data"), PrepareConfig())
    with Workers(workers) as crew:
        judge = judge_of(asked, crew)
        reference = Reference.of(judge, Dataset.open(asked.place("data")))
        points = reference_points(asked, judge, reference, rows)
        gaussians = next(row["fd"] for row in points if row["of"]["who"] == GAUSSIANS)
        for row in points:
            table.add(row["of"]["who"], None, None, None, row["fd"], gaussians / row["fd"], row["kid"], row["label_entropy"], None)
        for family in asked.families:
            for minutes in asked.minutes:
                job = keep(family, minutes, asked, crew)
                for row in drawn(family, job, minutes, asked, judge, reference, rows):
                    figures = (row["fd"], gaussians / row["fd"], row["kid"], row["label_entropy"], row["images_per_second"])
                    table.add(f"{family}, {row['of']['sampler']}", row["minutes"], row["step"], row["evaluations"], *figures)
    return table


def _families(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(SAMPLERS):
        raise argparse.ArgumentTypeError(f"unknown family {sorted(unknown)[0]!r}; choose among {', '.join(SAMPLERS)}")
    return names


def _minutes(text: str) -> tuple[float, ...]:
    return tuple(sorted(float(part) for part in text.split(",")))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where everything is kept; the same folder goes on where a command stopped")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the families' training, laid over the preset")
    parser.add_argument("--families", type=_families, default=tuple(SAMPLERS), help=f"some of {','.join(SAMPLERS)}")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--minutes", type=_minutes, default=(5.0, 10.0, 20.0), help="of training, at which models are kept: 5,10,20")
    parser.add_argument("--preset", choices=PRESETS, default="full")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--workers", type=int, default=2, help="that train; 0: this process")
    parser.add_argument("--data", help="pictures; Fashion-MNIST as Debian has it, else the part that is shipped")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    chosen = _arguments()
    wanted = Asked(chosen.folder, chosen.families, chosen.samples, chosen.minutes, chosen.preset, chosen.seed, tuple(chosen.overrides))
    print(main(wanted, chosen.workers, chosen.data))
