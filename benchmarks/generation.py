"""Whole Fashion-MNIST, at most 20 minutes of training a family: how far 10,000 samples are from real pictures, beside class Gaussians.

    python -m benchmarks.generation runs/generation
    python -m benchmarks.generation runs/short --families rectified_flow --samples 2000 --minutes 2,5 train.steps=4000

Each family trains with its preset `full` and rests when its steps have taken 5, 10 and 20 minutes (`benchmarks/marks.py`: a command that
was interrupted goes on in the folder). The averaged weights of that moment draw the samples. Distances are on the features of a classifier
trained here with a seed of its own: FD-cnn, not FID.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.marks import MARKS, Rows, job_of, keep, minutes_of, some_of
from benchmarks.table import Table
from benchmarks.work import source
from clusters.preprocess import prepare
from components import storage
from components.data.dataset import Dataset
from components.data.prepare_config import PrepareConfig
from components.evaluation.generation import Reference, score_samples
from components.evaluation.reference_points import HELD_OUT, point_scores
from components.families.classifier import Classifier
from components.families.model_folder import load_model
from components.training.job import TrainingJob
from pipelines.settings import PRESETS
from pipelines.workers import Workers

GAUSSIANS, NOISE = "class Gaussians", "noise"
JUDGE_SEED = 7  # no other net here is drawn with it
SAMPLERS: dict[str, dict[str, dict[str, Any]]] = {
    "diffusion": {"ancestral, 100 steps": {"sampler": "ancestral", "steps": 100}, "DDIM, 50 steps": {"sampler": "ddim", "steps": 50}},
    "score_sde": {
        "reverse diffusion, 100 steps": {"sampler": "reverse_diffusion", "steps": 100},
        "DPM-Solver++ 2M, 25 steps": {"sampler": "dpm_solver", "steps": 25},
    },
    "rectified_flow": {"Euler, 20 steps": {"sampler": "euler", "steps": 20}},
    "gan": {"one pass": {}},
    "wgan": {"one pass": {}},
}


@dataclass(frozen=True)
class Asked:
    """What the command was asked for."""

    folder: str
    families: tuple[str, ...] = tuple(SAMPLERS)
    samples: int = 10_000
    minutes: tuple[float, ...] = MARKS
    preset: str = "full"
    seed: int = 0
    overrides: tuple[str, ...] = ()

    def place(self, *parts: str) -> str:
        return storage.join(self.folder, *parts)


def judge_of(asked: Asked, workers: Workers) -> Classifier:
    """A classifier that no family was trained with."""
    seed = [f"train.seed={JUDGE_SEED}"]
    job = job_of("classifier", asked.preset, seed, asked.place("data"), asked.place("runs", "judge"))
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


def place_of(job: TrainingJob, minutes: float, asked: Asked) -> str:
    """Where the model that was kept at that mark lies."""
    return asked.place("models", f"{job.family}-{job.identity()}-{minutes:g}")


def drawn(
    family: str, job: TrainingJob, minutes: float, asked: Asked, judge: Classifier, reference: Reference, rows: Rows
) -> list[dict[str, Any]]:
    """A row for each sampler, drawn from the model that was kept at that mark."""
    place, found = place_of(job, minutes, asked), []
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
            job = job_of(family, asked.preset, asked.overrides, asked.place("data"), asked.place("runs", family))
            for minutes in asked.minutes:
                keep(job, minutes, place_of(job, minutes, asked), crew)
                for row in drawn(family, job, minutes, asked, judge, reference, rows):
                    figures = (row["fd"], gaussians / row["fd"], row["kid"], row["label_entropy"], row["images_per_second"])
                    table.add(f"{family}, {row['of']['sampler']}", row["minutes"], row["step"], row["evaluations"], *figures)
    return table


def _arguments() -> argparse.Namespace:
    families = partial(some_of, known=SAMPLERS, what="family")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where everything is kept; the same folder goes on where a command stopped")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the families' training, laid over the preset")
    parser.add_argument("--families", type=families, default=tuple(SAMPLERS), help=f"some of {','.join(SAMPLERS)}")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--minutes", type=minutes_of, default=MARKS, help="of training, at which models are kept: 5,10,20")
    parser.add_argument("--preset", choices=PRESETS, default="full")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--workers", type=int, default=2, help="that train; 0: this process")
    parser.add_argument("--data", help="pictures; Fashion-MNIST as Debian has it, else the part that is shipped")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    chosen = _arguments()
    wanted = Asked(chosen.folder, chosen.families, chosen.samples, chosen.minutes, chosen.preset, chosen.seed, tuple(chosen.overrides))
    print(main(wanted, chosen.workers, chosen.data))
