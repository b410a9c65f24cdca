"""Pictures to a flow that needs few steps: rectified flow, reflow on its own pairs, one step (Liu et al. 2022, arXiv 2209.03003).

    raymill run reflow --preset quick

A flow is trained; it simulates pairs of a noise and the picture that the noise becomes, by many steps; trained again on those pairs, with
the pairing kept, its paths become straighter; `distilled` learns the whole path as one step. A judge, trained apart, looks at each stage at
few steps and at many, since what few steps gain, many may lose.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components import storage
from components.evaluation.few_steps import FewStepsConfig, Subjects, score
from components.families.classifier import Classifier
from components.families.model_folder import load_model
from components.families.rectified_flow import RectifiedFlow
from pipelines.reflow_config import AgainConfig, PairsConfig, ReflowConfig
from pipelines.reporting import PAGE, page_of
from pipelines.settings import Training, read_presets
from pipelines.stage import Pipeline, Task, stage
from pipelines.store import Artifact
from pipelines.tokens import images, judge
from pipelines.tokens_config import with_class_names
from pipelines.training import MODEL, adopt_run, train_model, training_job


@stage(version=1)
def flow(images: Artifact, task: Task[Training]) -> None:
    """Noise to pictures along curved paths."""
    train_model(task, images.url)


@stage(version=1)
def pairs(flow: Artifact, task: Task[PairsConfig]) -> None:
    """Noises, and the pictures that the flow makes of them by many steps: what it is trained on again."""
    from clusters.generate import generate

    config, report = task.config, task.report
    place = storage.join(task.draft.work, "pairs")  # where a killed run finds the shards that it made
    generate(
        flow.path(MODEL),
        place,
        config.count,
        config.seed,
        config.sampler,
        task.workers.make_room(),
        pairs=True,
        rows_per_shard=config.rows_per_shard,
        on_progress=lambda rows, *shards: report({"step": rows, "steps": config.count}),
    )
    for file in storage.list_files(place):
        storage.copy(storage.join(place, file), storage.join(task.draft.out, file))


@stage(version=1)
def reflow(pairs: Artifact, flow: Artifact, task: Task[AgainConfig]) -> None:
    """The flow, trained again on its own pairs: straighter paths."""
    _train_again(task, pairs, flow, {"transport": False})  # the pairing is kept


@stage(version=1)
def distilled(pairs: Artifact, reflow: Artifact, task: Task[AgainConfig]) -> None:
    """The straightened flow, trained again to go the whole way in one step."""
    _train_again(task, pairs, reflow, {"times": "uniform", "distill": True})  # of all times one is learnt


@stage(version=1)
def scores(
    images: Artifact,
    judge: Artifact,
    flow: Artifact,
    reflow: Artifact,
    distilled: Artifact | None,
    task: Task[FewStepsConfig],
) -> None:
    """What few steps gained, and what many lost."""
    classifier = load_model(judge.path(MODEL), expect="classifier")
    assert isinstance(classifier, Classifier)
    stages = {each.manifest.stage: _open(each) for each in (flow, reflow, distilled) if each is not None}
    score(Subjects(images.url, classifier, stages), task.config, task.draft.folder, task.report)


@stage(version=1)
def report(
    images: Artifact,
    judge: Artifact,
    flow: Artifact,
    pairs: Artifact,
    reflow: Artifact,
    distilled: Artifact | None,
    scores: Artifact,
    task: Task[None],
) -> None:
    """One page about it all."""
    made = [images, judge, flow, pairs, reflow, distilled, scores]
    page = page_of([each for each in made if each is not None], "reflow", REFLOW.about, task.command)
    storage.write_bytes(str(task.draft.folder / PAGE), page)


def _train_again(task: Task[AgainConfig], pairs: Artifact, before: Artifact, changes: Mapping[str, Any]) -> None:
    """Trains on the pairs what `before` became, from its weights on."""
    model = _open(before).config
    settings = Training(family="rectified_flow", model=model, train=task.config.train)
    job = training_job(settings, pairs.url, task.draft.work, {"start": before.path(MODEL)}, changes)
    task.workers.train(job, task.report)
    adopt_run(task.draft)


def _open(artifact: Artifact) -> RectifiedFlow:
    model = load_model(artifact.path(MODEL), expect="rectified_flow")
    assert isinstance(model, RectifiedFlow)
    return model


REFLOW = Pipeline(
    "reflow",
    "Pictures to a rectified flow, straightened on its own pairs and distilled to one step.",
    ReflowConfig,
    [images, judge, flow, pairs, reflow, distilled, scores, report],
    read_presets("reflow"),
    complete=with_class_names,
)
