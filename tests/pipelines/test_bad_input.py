"""What a user can get wrong: each mistake gives exit 2 and one line on stderr that names the culprit, and leaves the store as it was."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pipelines.cli import main
from pipelines.store import Store
from tests.pipelines.world import LOCAL, TINY, TRAIN, digest, idx, png, require_one_line, write_npz, write_tar

CLASSIFIER = ("train", "classifier", "{data}", *TINY["classifier"], *TRAIN)


@dataclass(frozen=True)
class Case:
    """A command line in which `{name}` is a place of the world, what is spoilt before it runs, and what its one line must say."""

    name: str
    argv: tuple[str, ...]
    says: tuple[str, ...]
    spoil: Callable[[Path], object] = lambda root: None


def model_of(root: Path, family: str) -> Path:
    return Path(Store(str(root / "store")).resolve(family).url) / "model"


def shard_of(root: Path) -> Path:
    return max((root / "data").glob("shard-*.arrow"), key=lambda file: file.stat().st_size)


def edit_json(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def flip_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def images(shape: tuple[int, ...], dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, shape).astype(dtype)


def alien_checkpoint(root: Path) -> None:
    """Puts a checkpoint of a prior where the classifier's run would go on."""
    name = Store(str(root / "store")).resolve("classifier").name
    shutil.rmtree(root / "store" / "artifacts" / name)
    place = root / "store" / "runs" / name / "checkpoints" / "step_00000001"
    place.mkdir(parents=True)
    (place / "checkpoint.json").write_text(json.dumps({"format_version": 1, "step": 1, "family": "prior", "score": None, "sha256": {}}))


def prepare_pictures(root: Path, shape: tuple[int, ...] = (32, 1, 28, 28)) -> None:
    """A data set of pictures without labels."""
    write_npz(root / "pictures.npz", image=images(shape))
    assert main(["prepare", str(root / "pictures.npz"), str(root / "prepared"), *LOCAL, "--json"]) == 0


NAMES = [
    Case("unknown command", ("trian",), ("'trian'", "Did you mean 'train'")),
    Case("unknown option", ("list", "--stroe", "x"), ("--stroe", "--store")),
    Case("missing argument", ("train", "vqvae"), ("'data'", "raymill train --help")),
    Case("option without value", ("list", "--store"), ("--store", "requires an argument")),
    Case("unknown pipeline", ("run", "tokns", *LOCAL), ("'tokns'", "did you mean 'tokens'")),
    Case("unknown family", ("train", "vqgn", "{data}", *LOCAL), ("'vqgn'", "did you mean 'vqgan'")),
    Case("unknown preset", ("run", "tokens", "--preset", "ful", *LOCAL), ("'ful'", "did you mean 'full'")),
    Case("unknown preset among overrides", ("run", "tokens", "preset=qick", *LOCAL), ("'qick'", "did you mean 'quick'")),
    Case("two presets", ("run", "tokens", "--preset", "full", "preset=quick", *LOCAL), ("full and quick",)),
    Case("unknown key", ("run", "tokens", "prior.train.step=3", *LOCAL), ("prior.train.step'", "did you mean 'steps'")),
    Case("unknown section", ("run", "tokens", "prio.train.steps=3", *LOCAL), ("'prio'", "did you mean 'prior'")),
    Case("unknown artifact", ("report", "classifer"), ("'classifer'", "did you mean 'classifier'")),
    Case("unknown split", ("evaluate", "classifier", "{data}", "--split", "tset"), ("'tset'", "did you mean 'test'")),
    Case("unknown sampler option", ("sample", "prior", "temprature=1"), ("'temprature'", "did you mean 'temperature'")),
]

VALUES = [
    Case("not an override", ("run", "tokens", "train.steps", *LOCAL), ("'train.steps'", "key=value")),
    Case("wrong type", (*CLASSIFIER, "train.steps=many"), ("train.steps='many'", "valid integer")),
    Case("zero steps", (*CLASSIFIER, "train.steps=0"), ("train.steps=0", "greater than 0")),
    Case("negative rate", (*CLASSIFIER, "train.optimizer.lr=-1"), ("train.optimizer.lr=-1", "greater than 0")),
    Case("value that is no number", (*CLASSIFIER, "train.optimizer.lr=.nan"), ("train.optimizer.lr=nan", "finite")),
    Case("value that is no YAML", (*CLASSIFIER, "train.steps=[1"), ("'train.steps=[1'", "not valid YAML")),
    Case("option without effect", (*CLASSIFIER, "train.keep_best=2"), ("keep_best", "evaluate_every")),
    Case("too many halvings", (*CLASSIFIER, "model.widths=[4,4,4,4,4,4]"), ("image_size=(28, 28)", "6 times")),
    Case("sections that do not fit", ("run", "tokens", "tokenizer.model.num_codes=512", *LOCAL), ("num_codes=512", "code_count=256")),
    Case("family for another stage", ("run", "tokens", "judge.family=vqvae", *LOCAL), ("judge.family=vqvae", "classifier")),
    Case("workers that are no number", ("run", "tokens", "--workers", "two"), ("--workers two", "1..3")),
    Case("negative workers", ("run", "tokens", "--workers", "-1"), ("--workers -1",)),
    Case("address without workers", ("run", "tokens", "--address", "h:1", *LOCAL), ("--address h:1", "--workers 0")),
    Case("label out of range", ("sample", "prior", "label=10"), ("label=10", "0 to 9")),
    Case("top_k out of range", ("sample", "prior", "top_k=17"), ("top_k=17", "16 codes")),
    Case("more workers than rows", (*CLASSIFIER, "train.accumulate=9"), ("batch", "16")),
]

INK = ("train", "autoregressive", "{data}", *TRAIN)
FLOW = ("train", "flow", "{data}", *TRAIN)

DENSITIES = [
    Case(
        "grey values for ink",
        (*INK, "model.network.kind=made", "model.threshold=null"),
        ("threshold=null", "model.threshold=127"),
    ),
    Case(
        "order of another length",
        (*INK, "model.network.kind=nade", "model.network.order=[1,0,2]"),
        ("order has 3 numbers", "784 pixels", "order=raster"),
    ),
    Case(
        "colours for ink",
        ("train", "autoregressive", "{root}/prepared", *TRAIN, "model.network.kind=fvsbn"),
        ("3 channels", "head=binary"),
        lambda root: prepare_pictures(root, (32, 3, 28, 28)),
    ),
    Case("squeeze that does not divide", (*FLOW, "model.network.squeezes=[8]"), ("squeezes=[8] cannot divide 28 x 28 pixels by 8",)),
    Case(
        "patch that does not divide",
        (*FLOW, "model.network.kind=continuous", "model.network.patch=3"),
        ("patch=3 does not divide 28 x 28",),
    ),
    Case("squeeze by nothing", (*FLOW, "model.network.squeezes=[0]"), ("squeezes", "greater than 0")),
    Case(
        "pictures that cannot be halved",
        ("train", "gan", "{root}/prepared", *TRAIN),
        ("27", "halved", "even height and width"),
        lambda root: prepare_pictures(root, (32, 1, 27, 27)),
    ),
]

CONFIG_FILES = [
    Case("config file missing", (*CLASSIFIER, "--config", "{root}/no.yaml"), ("no.yaml", "No such file")),
    Case(
        "config file not YAML",
        (*CLASSIFIER, "--config", "{root}/c.yaml"),
        ("c.yaml", "cannot be read"),
        lambda root: (root / "c.yaml").write_text("a: [1"),
    ),
    Case(
        "config file a list",
        (*CLASSIFIER, "--config", "{root}/c.yaml"),
        ("c.yaml", "list", "mapping"),
        lambda root: (root / "c.yaml").write_text("- 1"),
    ),
    Case(
        "config file with unknown key",
        (*CLASSIFIER, "--config", "{root}/c.yaml"),
        ("c.yaml", "train.step", "did you mean 'steps'"),
        lambda root: (root / "c.yaml").write_text("train: {step: 3}"),
    ),
]

SOURCES = [
    Case("source missing", ("run", "tokens", "data={root}/nowhere", *LOCAL), ("data=", "nowhere", "does not exist")),
    Case("source empty", ("run", "tokens", "data={root}/void", *LOCAL), ("void", "no files"), lambda root: (root / "void").mkdir()),
    Case(
        "source of no known kind",
        ("run", "tokens", "data={root}/folders", *LOCAL),
        ("folders", "no file of a known kind"),
        lambda root: (shutil.rmtree(root / "folders"), (root / "folders").mkdir(), (root / "folders" / "a.txt").write_text("a")),
    ),
    Case(
        "source of two kinds",
        ("run", "tokens", "data={root}/folders", *LOCAL),
        ("folders", "mixes kinds"),
        lambda root: write_npz(root / "folders" / "a.npz", image=images((2, 1, 8, 8))),
    ),
    Case(
        "pictures of mixed size",
        ("run", "tokens", "data={root}/folders", *LOCAL),
        ("odd.png", "8 x 9", "size="),
        lambda root: (root / "folders" / "right" / "odd.png").write_bytes(png(images((8, 9)))),
    ),
    Case(
        "damaged picture",
        ("run", "tokens", "data={root}/folders", *LOCAL),
        ("03.png", "no readable PNG"),
        lambda root: (root / "folders" / "right" / "03.png").write_bytes(b"\x89PNG\r\n\x1a\nno"),
    ),
    Case(
        "IDX file cut short",
        ("run", "tokens", "data={root}/idx", *LOCAL),
        ("train-images-idx3-ubyte.gz",),
        lambda root: (root / "idx" / "train-images-idx3-ubyte.gz").write_bytes(
            gzip.compress(b"\0\0\x08\x03" + b"\0\0\0\x30" * 3 + b"x" * 99)
        ),
    ),
    Case(
        "fewer labels than pictures",
        ("run", "tokens", "data={root}/idx", *LOCAL),
        ("train-labels-idx1-ubyte.gz", "47", "48"),
        lambda root: (root / "idx" / "train-labels-idx1-ubyte.gz").write_bytes(idx(np.zeros(47))),
    ),
    Case(
        "numbers that are none",
        ("prepare", "{root}/a.npz", "{root}/out", *LOCAL),
        ("a.npz", "NaN", "row 1"),
        lambda root: write_npz(root / "a.npz", x=np.array([[1.0, 2.0], [3.0, np.nan]] * 10, np.float32)),
    ),
    Case(
        "labels out of range",
        ("prepare", "{root}/a.npz", "{root}/out", "class_names=[a,b]", *LOCAL),
        ("a.npz", "label", "2"),
        lambda root: write_npz(root / "a.npz", image=images((30, 1, 8, 8)), label=np.arange(30) % 3),
    ),
    Case(
        "tar that climbs out of its folder",
        ("prepare", "{root}/a.tar", "{root}/out", *LOCAL),
        ("a.tar", "../../escaped.cls"),
        lambda root: write_tar(root / "a.tar", "../../escaped.cls"),
    ),
    Case(
        "option without effect on the source", ("prepare", "{root}/folders", "{root}/out", "columns=[a]", *LOCAL), ("columns", "no effect")
    ),
    Case("foreign scheme", ("prepare", "ftp://host/data", "{root}/out", *LOCAL), ("ftp",)),
    Case(
        "wrong checksum of a file",
        ("prepare", "{root}/idx", "{root}/out", "checksums={t10k-labels-idx1-ubyte.gz: " + "f" * 64 + "}", *LOCAL),
        ("t10k-labels-idx1-ubyte.gz", "f" * 64),
    ),
]

DATA_SETS = [
    Case("no data set", ("train", "classifier", "{root}/idx", *LOCAL), ("idx", "no data set", "raymill prepare")),
    Case("shard cut short", (*CLASSIFIER, "train.seed=1"), ("shard-", "sha256"), lambda root: os.truncate(shard_of(root), 100)),
    Case("shard missing", (*CLASSIFIER, "train.seed=1"), ("shard-", "missing"), lambda root: shard_of(root).unlink()),
    Case("shard altered", ("verify", "{data}"), ("shard-", "sha256"), lambda root: flip_byte(shard_of(root))),
    Case(
        "index of another version",
        CLASSIFIER,
        ("index.json", "format_version 99"),
        lambda root: edit_json(root / "data" / "index.json", format_version=99),
    ),
    Case(
        "index that is no JSON", CLASSIFIER, ("index.json", "not valid JSON"), lambda root: (root / "data" / "index.json").write_text("{")
    ),
    Case("data of another kind", ("train", "prior", "{data}", *TINY["prior"], *TRAIN), ("image", "codes")),
    Case("pictures without labels", ("train", "classifier", "{root}/prepared", *TRAIN), ("label",), prepare_pictures),
]

MODELS = [
    Case("no model", ("evaluate", "{root}/idx", "{data}"), ("idx", "no model folder")),
    Case(
        "pickle where weights should be",
        ("evaluate", "classifier", "{data}"),
        ("model.safetensors", "pickle"),
        lambda root: (
            (model_of(root, "classifier") / "model.safetensors").write_bytes(pickle.dumps({"weight": [1.0]}).ljust(10_384, b"\0"))
            and _refit(root)
        ),
    ),
    Case(
        "only a pickle beside the header",
        ("evaluate", "{root}/copy", "{data}"),
        ("weights.pt", "never loaded"),
        lambda root: (
            shutil.copytree(model_of(root, "classifier"), root / "copy"),
            (root / "copy" / "model.safetensors").rename(root / "copy" / "weights.pt"),
        ),
    ),
    Case(
        "model of another version",
        ("evaluate", "{root}/copy", "{data}"),
        ("config.json", "format version 9"),
        lambda root: (
            shutil.copytree(model_of(root, "classifier"), root / "copy"),
            edit_json(root / "copy" / "config.json", format_version=9),
        ),
    ),
    Case(
        "weights altered",
        ("verify", "{root}/copy"),
        ("model.safetensors", "sha256"),
        lambda root: (shutil.copytree(model_of(root, "classifier"), root / "copy"), flip_byte(root / "copy" / "model.safetensors")),
    ),
    Case("checkpoint of another family", CLASSIFIER, ("'prior'", "'classifier'"), alien_checkpoint),
    Case(
        "model of the wrong family",
        ("train", "prior", "{root}/codes", *TINY["prior"], *TRAIN, "--with", "tokenizer=classifier"),
        ("tokenizer",),
    ),
    Case("model without a name", (*CLASSIFIER, "--with", "classifier"), ("'classifier'", "NAME=MODEL")),
    Case("model that is of no use", (*CLASSIFIER, "--with", "friend=vqvae"), ("'friend'", "no use")),
    Case("model that does not generate", ("sample", "classifier"), ("Classifier", "does not generate")),
    Case("prior without a tokenizer", ("sample", "prior", "--out", "{root}/samples"), ("tokenizer",)),
    Case("model without an export", ("export", "classifier", "{root}/out"), ("Classifier", "no export")),
    Case("export onto something", ("export", "prior", "{root}/idx"), ("idx", "not empty")),
    Case("image of two sizes", ("evaluate", "prior", "{data}"), ("codes",)),
]

STORES = [
    Case(
        "artifact altered",
        ("verify", "vqvae"),
        ("model.safetensors", "sha256"),
        lambda root: flip_byte(model_of(root, "vqvae") / "model.safetensors"),
    ),
    Case(
        "artifact of another version",
        ("verify", "{root}/copy"),
        ("artifact.json", "format version 7"),
        lambda root: (
            shutil.copytree(model_of(root, "vqvae").parent, root / "copy"),
            edit_json(root / "copy" / "artifact.json", format_version=7),
        ),
    ),
    Case(
        "artifact with a file cut short",
        CLASSIFIER,
        ("run.json", "bytes"),
        lambda root: os.truncate(model_of(root, "classifier").parent / "run.json", 3),
    ),
    Case("nothing to verify", ("verify", "{root}/idx"), ("idx", "neither")),
    Case(
        "artifact without a model", ("evaluate", "{root}/copy", "{data}"), ("vqvae-", "holds no model"), lambda root: _without_model(root)
    ),
    Case(
        "store below a file",
        (*CLASSIFIER, "train.seed=1", "--store", "{root}/idx/t10k-labels-idx1-ubyte.gz/store"),
        ("t10k-labels", "file"),
    ),
    Case("store of a foreign scheme", ("list", "--store", "gs://bucket/store"), ("gs", "s3://bucket")),
    Case("bucket without a name", ("list", "--store", "s3://"), ("s3://", "bucket")),
]

TABLE = [*NAMES, *VALUES, *DENSITIES, *CONFIG_FILES, *SOURCES, *DATA_SETS, *MODELS, *STORES]


def _refit(root: Path) -> None:
    """Gives the manifest the size of the changed weights, so that it is the model's own check that finds them."""
    artifact = model_of(root, "classifier").parent
    manifest = json.loads((artifact / "artifact.json").read_text())
    manifest["files"]["model/model.safetensors"]["bytes"] = (artifact / "model" / "model.safetensors").stat().st_size
    (artifact / "artifact.json").write_text(json.dumps(manifest))


def _without_model(root: Path) -> None:
    shutil.copytree(model_of(root, "vqvae").parent, root / "copy")
    manifest = json.loads((root / "copy" / "artifact.json").read_text())
    edit_json(root / "copy" / "artifact.json", files={"run.json": manifest["files"]["run.json"]})
    shutil.rmtree(root / "copy" / "model")


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
def test_a_mistake_gives_one_line_and_leaves_the_store(case: Case, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case.spoil(root)
    argv = [word.replace("{root}", str(root)).replace("{data}", str(root / "data")) for word in case.argv]
    before, codes = digest(root / "store"), digest(root / "data")
    require_one_line(argv, case.says, capsys)
    assert digest(root / "store") == before
    assert digest(root / "data") == codes
    assert not (root / "out").exists()
    assert not [path for path in root.parent.rglob("*escaped*")]


def test_the_table_is_long_enough() -> None:
    assert len(TABLE) >= 40
    assert len({case.name for case in TABLE}) == len(TABLE)
