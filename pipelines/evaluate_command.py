"""The command `raymill evaluate`: a model on the rows of a data set, the samples that it draws, or its likelihood."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from components.errors import UserError
from components.seeds import LANE
from pipelines.options import KEY_VALUE, ConfigOption, JsonOption, Overrides, StoreOption, VerboseOption, refuse, table
from pipelines.shell import Answer
from pipelines.store import Store

if TYPE_CHECKING:
    from components.families.contract import Family

SAMPLES, BATCH_SIZE = 1000, 256


def evaluate(
    model: Annotated[str, typer.Argument(help="Model folder or URL, or an artifact of the store.")],
    data: Annotated[str, typer.Argument(help="Data set folder or URL, or an artifact of the store.")],
    overrides: Overrides = None,
    split: Annotated[str | None, typer.Option("--split", help="Which part of the data set (default test; with --judge train).")] = None,
    judge: Annotated[str | None, typer.Option("--judge", metavar="MODEL", help="Score samples by a classifier's features.")] = None,
    samples: Annotated[int | None, typer.Option("--samples", min=1, help=f"How many samples (default {SAMPLES}).")] = None,
    likelihood: Annotated[bool, typer.Option("--likelihood", help="Bits per dimension of the model's own density.")] = False,
    bound: Annotated[bool, typer.Option("--bound", help="With --likelihood: a diffusion's variational bound.")] = False,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of samples, or of what a likelihood draws (default 0).")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, help=f"Rows at a time (default {BATCH_SIZE}).")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first rows.")] = None,
    config: ConfigOption = None,
    store: StoreOption = "store",
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> Answer:
    """Scores a model on a data set, or with --judge the samples that it draws against the data set's pictures.

    Samples are scored by their Fréchet distance (FD-cnn, not FID), kernel distance (KID) and, of up to 2,000, exact W1 on the features of
    the judge, a classifier of the same pictures, and by how evenly it spreads its labels. KEY=VALUE are options of the model's sampler,
    over those that `raymill sweep --write` chose for it.

    \b
    raymill evaluate tokenizer images
    raymill evaluate store/artifacts/prior-0123456789abcdef/model codes --split train --limit 1000 --json
    raymill evaluate prior images --judge judge --samples 10000 temperature=0.9
    raymill evaluate diffusion images --likelihood --bound --limit 100
    """
    of_samples = {KEY_VALUE: overrides, "--config": config, "--samples": samples}
    of_rows = {"--batch-size": batch_size, "--limit": limit}
    place = Store(store)
    if judge is not None:
        refuse(of_rows | {"--likelihood": likelihood, "--bound": bound}, "with --judge, which scores samples")
        return _samples(model, data, judge, samples or SAMPLES, seed or 0, split or "train", config, overrides or [], place)
    refuse(of_samples, "without --judge; name a classifier to score samples by")
    if batch_size is not None and batch_size % LANE:
        raise UserError(f"--batch-size {batch_size} is no multiple of {LANE}, by which random numbers are drawn; choose one that is")
    refuse({"--seed": seed, "--bound": bound} if not likelihood else {}, "without --judge or --likelihood")
    from components.data.dataset import Dataset
    from pipelines.training import find_data

    loaded, dataset, rows = _load(model, place), Dataset.open(find_data(data, place), split or "test"), batch_size or BATCH_SIZE
    told = {"model": model, "data": data, "split": dataset.split}
    if likelihood:
        from components.evaluation.likelihood import evaluate_likelihood

        return _answer(told | {"seed": seed or 0, "bound": bound}, evaluate_likelihood(loaded, dataset, rows, limit, seed or 0, bound))
    from components.evaluation.scoring import evaluate as score

    return _answer(told, score(loaded, dataset, batch_size=rows, limit=limit))


def _samples(
    model: str, data: str, judge: str, count: int, seed: int, split: str, config: str | None, overrides: list[str], store: Store
) -> Answer:
    from components.evaluation.generation import require_enough, score_samples
    from components.evaluation.sampling import picture_shape
    from components.evaluation.wasserstein import w1_of_features
    from pipelines.references import Judging, held_out_first
    from pipelines.settings import sampler_settings
    from pipelines.source import SourceReader
    from pipelines.training import find_data, find_model

    loaded = _load(model, store)
    sampler = sampler_settings(loaded, config, overrides)
    loaded.settled(sampler)
    picture_shape(loaded)
    reader = SourceReader(store)
    judging = Judging(store, reader.read(find_model(judge, store), "--judge"), reader.read(find_data(data, store), "DATA"), split)
    judging.require_pictures_of(loaded)
    require_enough(judging.judge, count, f"--samples {count}:")
    made = score_samples(loaded, judging.judge, judging.reference, count, seed, sampler, shown=0)
    points = judging.points(count)
    reader.remember()
    judged = made.scores | w1_of_features(made.features, judging.reference.features)
    scores = judged | {"evaluations": made.evaluations, "images_per_second": made.images_per_second}
    values = {"model": model, "data": data, "split": split, "judge": judge, "seed": seed, "sampler": sampler.to_json()}
    beside = {name: {"fd": found["fd"], "kid": found["kid"], "samples": found["samples"]} for name, found in points.items()}
    rows = [
        ("FD-cnn", _beside(made.scores["fd"], held_out_first(points, "fd"))),
        ("KID", _beside(made.scores["kid"], held_out_first(points, "kid"))),
        ("W1", _beside(judged["w1"], {"as many real pictures": judged["w1_of_real"]})),
        ("label entropy, bits", f"{made.scores['label_entropy']:.4g}"),
        ("samples", f"{count:,}"),
        ("evaluations a sample", f"{made.evaluations:.6g}"),
        ("images/s", f"{made.images_per_second:.4g}"),
    ]
    return Answer(values | {"scores": scores, "reference_points": beside}, table(rows))


def _load(model: str, store: Store) -> Family:
    from components.families.model_folder import load_model
    from pipelines.training import find_model

    return load_model(find_model(model, store))


def _beside(value: float, points: dict[str, float]) -> str:
    return f"{value:.4g}  ({', '.join(f'{name} {found:.4g}' for name, found in points.items())})"


def _answer(told: dict[str, Any], scores: Mapping[str, float | list[float]]) -> Answer:
    return Answer(told | {"scores": scores}, table([(name, f"{value:.6g}") for name, value in scores.items() if isinstance(value, float)]))
