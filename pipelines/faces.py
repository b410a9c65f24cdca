"""Pictures of people to a recogniser of faces: aligned faces, a margin sweep, the best margin trained, verification of strangers.

    raymill fetch orl people
    raymill run faces --preset quick

People are cut into three: most are trained on; development people judge the sweep and choose the threshold; test people are seen by no
stage before the last.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from components import storage
from components.config import override
from components.data.dataset import Dataset
from components.data.identities import IdentityFold, split_identities
from components.data.index import read_index
from components.evaluation.calibration import calibrate
from components.evaluation.recognition_report import compare
from components.families.model_folder import copy_model, load_model
from components.families.recognition import Recognition
from components.report.findings import Findings, Score
from components.report.sweep import TRIALS
from components.training.config import TrainConfig
from pipelines.faces_config import AlignedConfig, FacesConfig, RecognizerConfig, VerificationConfig
from pipelines.preparing import align_people
from pipelines.reporting import PAGE, page_of
from pipelines.settings import Training, read_presets
from pipelines.source import Source
from pipelines.stage import Pipeline, Task, stage
from pipelines.store import Artifact
from pipelines.sweep import sweep_into
from pipelines.sweep_config import SweepConfig, assignments_of, resolve, train_command
from pipelines.training import MODEL, train_model


@stage(version=1)
def aligned(data: Source, task: Task[AlignedConfig]) -> None:
    """Every picture's face, in one form."""
    align_people(data.url, task.draft.out, task.config, task.report)


@stage(version=1)
def people(aligned: Artifact, task: Task[IdentityFold]) -> None:
    """Who is trained on, who judges, and who is met at the end."""
    split_identities(aligned.url, task.draft.out, task.config)


@stage(version=1)
def margins(people: Artifact, task: Task[SweepConfig]) -> None:
    """Which scale and margin suit the development people."""
    index = read_index(people.url)
    config, told = resolve(task.config, index.shape, index.splits, people.url)
    alone = partial(train_command, data=people.url, children=[], preset=None)
    sweep_into(replace(task, config=config), {"data": Source(people.url, people.fingerprint)}, told, alone)


@stage(version=1)
def usual(people: Artifact, task: Task[Training]) -> None:
    """The settings that the sweep starts from."""
    train_model(task, people.url)


@stage(version=1)
def softmax(people: Artifact, task: Task[Training]) -> None:
    """The same model without angles and margins."""
    train_model(task, people.url)


@stage(version=1)
def recognizer(people: Artifact, margins: Artifact, task: Task[RecognizerConfig]) -> None:
    """The sweep's best settings, trained once more, with a threshold from the development people."""
    config = task.config
    found = storage.read_json(margins.path(TRIALS))
    values = found["trials"][found["best"]]["values"]
    sweep = SweepConfig.parse(margins.manifest.config, margins.url)
    settings = override(sweep.base, assignments_of(values), f"best trial of {margins.name}")
    train = TrainConfig.parse(settings.train.to_json() | {"steps": config.steps, "seed": config.seed, "evaluate_every": 0}, "recognizer")
    training = settings.model_copy(update={"train": train})
    train_model(Task(training, task.draft, task.workers, task.report, task.command, task.store), people.url)
    model = _open(storage.join(task.draft.work, MODEL))
    chosen = calibrate(model, Dataset.open(people.url, "validation"), config.false_accept_rate)
    known = model.config.model_copy(update={"threshold": chosen.threshold, "false_accept_rate": chosen.false_accept_rate})
    copy_model(storage.join(task.draft.work, MODEL), str(task.draft.folder / MODEL), known)
    note = f"cosine {chosen.threshold:.3f} at a false-accept rate of {chosen.false_accept_rate:g}, over {chosen.pairs:,} pairs"
    accepted = Score(name="accepted rightly on the development people", value=chosen.true_accept_rate, better="higher", unit="%", note=note)
    folder = str(task.draft.folder)
    Findings.read(folder).model_copy(update={"scores": (accepted,)}).write(folder)


@stage(version=1)
def verification(people: Artifact, usual: Artifact, softmax: Artifact, recognizer: Artifact, task: Task[VerificationConfig]) -> None:
    """How well people are told apart whom no stage has seen."""
    models = {"plain softmax": softmax, "the usual margin": usual, "the sweep's best": recognizer}
    opened = {name: _open(artifact.path(MODEL)) for name, artifact in models.items()}
    targets = {str(name): value for name, value in task.config.targets.items()}
    compare(opened, people.url, "the sweep's best", targets).write(str(task.draft.folder))


@stage(version=1)
def report(
    aligned: Artifact,
    people: Artifact,
    margins: Artifact,
    usual: Artifact,
    softmax: Artifact,
    recognizer: Artifact,
    verification: Artifact,
    task: Task[None],
) -> None:
    """One page about it all."""
    made = [aligned, people, margins, usual, softmax, recognizer, verification]
    storage.write_bytes(str(task.draft.folder / PAGE), page_of(made, "faces", FACES.about, task.command))


def _open(url: str) -> Recognition:
    model = load_model(url, expect="recognition")
    assert isinstance(model, Recognition)
    return model


FACES = Pipeline(
    "faces",
    "Pictures of people to a recogniser of faces: aligned faces, a margin sweep, verification of people never seen.",
    FacesConfig,
    [aligned, people, margins, usual, softmax, recognizer, verification, report],
    read_presets("faces"),
)
