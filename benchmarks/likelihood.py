"""Whole Fashion-MNIST, at most 20 minutes of training a model: how likely held-out pictures are, beside pixels that are independent.

    python -m benchmarks.likelihood runs/likelihood
    python -m benchmarks.likelihood runs/short --models made,nice --minutes 1,2 train.steps=2000

Binary models are told which pixels are ink, those over 127, and are scored in nats a picture; flows are told all grey values, and are
scored in bits for each. Every model trains with its family's preset `full` and what MODELS lays over it, and rests when its steps have
taken 5, 10 and 20 minutes (`benchmarks/marks.py`: a command that was interrupted goes on in the folder). The averaged weights of that
moment are scored on all held-out pictures. A model whose preset ends before a mark has no row for later ones.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks.marks import MARKS, Rows, job_of, keep, minutes_of, some_of
from benchmarks.table import Table
from benchmarks.work import source
from clusters.preprocess import prepare
from components import storage
from components.data.dataset import Dataset
from components.data.prepare_config import PrepareConfig
from components.evaluation.baselines import unigram_bits
from components.evaluation.scoring import evaluate
from components.families.images import IMAGE
from components.families.model_folder import load_model
from pipelines.settings import PRESETS
from pipelines.workers import Workers

INK = 127  # a pixel over it is ink
INDEPENDENT = "independent pixels"

Unit = Literal["nats", "bits_per_dim"]


@dataclass(frozen=True)
class Model:
    """A family's kind of network, what it is scored in and what it is to reach within 20 minutes on two cores."""

    family: str
    kind: str
    unit: Unit
    aim: float
    options: tuple[str, ...] = ()

    @property
    def overrides(self) -> tuple[str, ...]:
        return (f"model.network.kind={self.kind}", *self.options)


MODELS = {
    "fvsbn": Model("autoregressive", "fvsbn", "nats", 111.0),
    "nade": Model("autoregressive", "nade", "nats", 108.0),
    "made": Model("autoregressive", "made", "nats", 105.0),
    "gated_pixelcnn": Model("autoregressive", "gated_pixelcnn", "nats", 102.0),
    "nice": Model("flow", "nice", "bits_per_dim", 4.55),
    "realnvp": Model("flow", "realnvp", "bits_per_dim", 3.75),
    "glow": Model("flow", "glow", "bits_per_dim", 3.65),
}


@dataclass(frozen=True)
class Asked:
    """What the command was asked for."""

    folder: str
    models: tuple[str, ...] = tuple(MODELS)
    minutes: tuple[float, ...] = MARKS
    preset: str = "full"
    overrides: tuple[str, ...] = ()

    def place(self, *parts: str) -> str:
        return storage.join(self.folder, *parts)


def independent_pixels(train: Tensor, test: Tensor) -> dict[Unit, float]:
    """What pictures `test` (N, C, H, W) uint8 cost when each pixel has its own distribution, counted in `train` plus one each."""
    known, held_out = train.flatten(1), test.flatten(1)
    ink = unigram_bits((known > INK).long(), (held_out > INK).long(), 2)
    return {"nats": ink * known.shape[1] * math.log(2), "bits_per_dim": unigram_bits(known.long(), held_out.long(), 256)}


def pictures(asked: Asked, split: str) -> Tensor:
    data = Dataset.open(asked.place("data"), split)
    return torch.from_numpy(data.take(np.arange(data.num_rows))[IMAGE])


def baseline(asked: Asked, rows: Rows) -> dict[Unit, float]:
    of = {"who": INDEPENDENT}
    known = rows.find(of) or rows.add(of, dict(independent_pixels(pictures(asked, "train"), pictures(asked, "test"))))
    return {"nats": known["nats"], "bits_per_dim": known["bits_per_dim"]}


def scored(name: str, asked: Asked, rows: Rows, workers: Workers) -> Iterator[dict[str, float]]:
    """Of each mark: the minutes and steps that the model took, and the score of all held-out pictures."""
    model = MODELS[name]
    overrides = (*model.overrides, *asked.overrides)
    job = job_of(model.family, asked.preset, overrides, asked.place("data"), asked.place("runs", name))
    for minutes in asked.minutes:
        place = asked.place("models", f"{name}-{job.identity()}-{minutes:g}")
        keep(job, minutes, place, workers)
        of = {"who": name, "job": job.identity(), "mark": minutes}
        known = rows.find(of)
        if known is None:
            score = evaluate(load_model(place), Dataset.open(asked.place("data"), "test"))[model.unit]
            known = rows.add(of, storage.read_json(f"{place}.json") | {model.unit: score})
        yield known
        if known["step"] == known["steps"]:
            return  # later marks would show the same model


def main(asked: Asked, workers: int = 2, data: str | None = None) -> Table:
    table = Table(f"Held-out pictures, preset {asked.preset}", ["model", "minutes", "steps", "nats", "bits/dim", "aim in 20 minutes"])
    rows = Rows(asked.folder)
    prepare(data or source(), asked.place("data"), PrepareConfig())
    alone = baseline(asked, rows)
    table.add(INDEPENDENT, None, None, alone["nats"], alone["bits_per_dim"], None)
    with Workers(workers) as crew:
        for name in asked.models:
            for row in scored(name, asked, rows, crew):
                table.add(name, row["minutes"], row["step"], row.get("nats"), row.get("bits_per_dim"), MODELS[name].aim)
    return table


def _arguments() -> argparse.Namespace:
    models = partial(some_of, known=MODELS, what="model")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where everything is kept; the same folder goes on where a command stopped")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of every model's training, laid over the preset")
    parser.add_argument("--models", type=models, default=tuple(MODELS), help=f"some of {','.join(MODELS)}")
    parser.add_argument("--minutes", type=minutes_of, default=MARKS, help="of training, at which models are kept: 5,10,20")
    parser.add_argument("--preset", choices=PRESETS, default="full")
    parser.add_argument("--workers", type=int, default=2, help="that train; 0: this process")
    parser.add_argument("--data", help="pictures; Fashion-MNIST as Debian has it, else the part that is shipped")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    chosen = _arguments()
    wanted = Asked(chosen.folder, chosen.models, chosen.minutes, chosen.preset, tuple(chosen.overrides))
    print(main(wanted, chosen.workers, chosen.data))
