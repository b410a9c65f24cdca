"""Every command of the README runs as it stands there, in a fresh folder, made short by overrides where it trains.

What cannot run inside a test is tested as far as it can be: `make` targets exist, the image's files exist.
The line with `--address` is what `python -m benchmarks.cluster` runs, on three raylets and a real S3 server.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from components.data.collections import COLLECTIONS
from components.data.collections.collection import Collection
from components.data.collections.glyphs import GlyphsConfig, fetch_glyphs
from pipelines.cli import main
from tests.data.collected import FACES as LETTER_FACES
from tests.data.collected import SMALL, orl_or_skip
from tests.ray_tokens import read_environment_again
from tests.small_data import shipped_images

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SHORT = {
    "run": [
        f"{stage}.train.{key}={value}" for stage in ("judge", "tokenizer", "prior") for key, value in (("steps", 4), ("warmup_steps", 0))
    ]
    + ["tokenizer.model.discriminator_start=1", "tokenizer.model.gan_start=2", "images.limit=300", "samples.per_class=12"],
    "train": ["train.steps=4", "train.warmup_steps=0"],
    "sweep": ["train.steps=4", "train.batch_size=16", "--trials", "2"],
}
REFLOW_SHORT = [f"{name}.train.{value}" for name in ("judge", "flow", "reflow", "distilled") for value in ("steps=4", "warmup_steps=0")] + [
    *("images.limit=300", "pairs.count=64", "pairs.sampler.steps=2", "scores.samples=144", "scores.paths=32", "scores.path_steps=4"),
]
SAMPLES = "160"  # in the place of those to be scored: more than the judge has features
FACES_SHORT = [
    f"{name}.train.{value}" for name in ("usual", "softmax", "margins") for value in ("steps=4", "warmup_steps=0", "batch_size=32")
] + [
    *("margins.train.evaluate_every=2", "margins.train.checkpoint_every=2", "margins.asha.grace_steps=2", "margins.trials=2"),
    *("recognizer.steps=4", "people.folds=3", "people.development=2"),
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


COMMANDS = [line.partition("  #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
RAYMILL = [line for line in COMMANDS if re.match(r"(\.venv/bin/)?raymill ", line) and "--address" not in line]
CLUSTER = [
    line
    for line in RAYMILL
    if line.split()[1] in ("submit", "jobs", "logs", "stop") or line.startswith(("raymill cluster up", "raymill cluster down"))
]
FACES = [line for line in RAYMILL if line not in CLUSTER and any(word in line for word in ("people", "faces", "glyphs"))]


SCHEDULE, JOB = blocks("yaml")
SCHEDULE += "workers: 0\nset: {model.train.steps: 4, model.train.warmup_steps: 0}\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the README's reader has it: the shipped data, and two classes of pictures."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("datasets", "clusters"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "fashion.yaml").write_text(SCHEDULE)
    images, labels = shipped_images("train", 200)
    for number, (image, label) in enumerate(zip(images[:, 0], labels, strict=True)):
        file = folder / "pictures" / ("cat" if label < 5 else "dog") / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    return folder


def shortened(line: str) -> list[str]:
    """The words of a command line, without Ray, on shipped data, with few steps."""
    words = shlex.split(line.replace(".venv/bin/", "").replace("/usr/share/datasets/fashion-mnist", "datasets/fashion-mnist"))[1:]
    kept = [word for word in words if not word.startswith("prior.train.steps=")]
    pipelines = {"faces": FACES_SHORT, "reflow": REFLOW_SHORT}
    more = list(pipelines.get(words[1], SHORT["run"]) if words[0] == "run" else SHORT.get(words[0], []))
    if "--judge" in words:
        kept = [SAMPLES if word == "1000" else word for word in kept]
        more = [f"samples={SAMPLES}"] if words[0] == "sweep" else []
    if "full" in words:
        more += [
            "features.train.steps=4",
            "features.train.warmup_steps=0",
            "reconstructor.train.steps=4",
            "reconstructor.train.warmup_steps=0",
        ]
    if "pbt" in words:
        more += ["--trials", "4", "pbt.interval_steps=2"]
    if words[:2] == ["schedule", "start"]:
        more += ["--once"]
    if words[0] in ("run", "prepare", "train", "sweep") and "--workers" not in words:
        more += ["--workers", "0"]
    return kept + more


def test_raymill_commands(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In the order of the page, since later lines use what earlier ones made."""
    monkeypatch.chdir(folder)
    assert {line.replace(".venv/bin/", "").split()[1] for line in RAYMILL} == {
        *("list", "fetch", "prepare", "verify", "train", "evaluate", "run", "report", "sample", "export", "faces", "sweep"),
        *("register", "promote", "rollback", "models", "schedule", "cluster", "submit", "jobs", "logs", "stop"),
    }
    for line in RAYMILL:
        if line in FACES + CLUSTER:
            continue
        if line.startswith("raymill rollback"):  # there has to be an earlier champion
            assert main(["register", "digits", "judge"]) == main(["promote", "digits", "2"]) == 0
        code = main(shortened(line))
        assert code == 0, f"{line}: {capsys.readouterr().err}"
    assert (folder / "tokens.html").exists()
    assert (folder / "drawn" / "samples.png").exists()
    assert {"rayjob.yaml", "cronjob.yaml", "raycronjob.yaml", "ray-up.yaml"} <= {path.name for path in (folder / "manifests").iterdir()}
    run_python(folder)
    run_torchrun(folder)


def test_commands_about_faces_and_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The same, with twelve of the people and a few letters; skipped where the ORL faces cannot be had."""
    orl_or_skip(tmp_path / "got")
    for name in sorted(path.name for path in (tmp_path / "got").iterdir())[:12]:
        shutil.copytree(tmp_path / "got" / name, tmp_path / "people" / name)
    letters = Collection("letters", GlyphsConfig, partial(fetch_glyphs, faces=LETTER_FACES))
    monkeypatch.setitem(COLLECTIONS, "glyphs", letters)
    monkeypatch.chdir(tmp_path)
    for line in FACES:
        if line == "raymill fetch orl people":
            continue  # it was run for the first lines of this test
        words = shortened(line)
        if words[0] == "fetch":
            words += [
                f"{name}={value}"
                for name, value in SMALL.to_json().items()
                if name in ("characters", "test_characters", "least_pictures", "fonts")
            ]
            words += ["block=[33,383]"]
        assert main(words) == 0, f"{line}: {capsys.readouterr().err}"
    assert (tmp_path / "team.arrow").exists()


def run_python(folder: Path) -> None:
    model = min(folder.glob("store/artifacts/prior-*/model"), key=lambda place: place.stat().st_mtime)  # the first: of ten classes
    for code in blocks("python"):
        scope: dict[str, object] = {}
        exec(code.replace("exported-from/prior/model", str(model)), scope)
        shapes = {name: tuple(scope[name].shape) for name in ("codes", "pictures")}  # type: ignore[attr-defined]
        assert shapes == {"codes": (16, 7, 7), "pictures": (16, 1, 28, 28)}


def run_torchrun(folder: Path) -> None:
    (folder / "job.yaml").write_text(JOB.replace("steps: 200", "steps: 3"))
    line = next(line for line in COMMANDS if line.startswith("torchrun"))
    words = [str(Path(sys.executable).parent / "torchrun"), *shlex.split(line)[1:]]
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, env={"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert (folder / "runs" / "vqvae" / "model" / "config.json").exists()


@pytest.mark.ray
def test_commands_about_clusters(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As a person types them: the cluster's own lines are exported, and the job is the short run, without workers of its own."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RAYMILL_METRICS_PORT", "0")
    try:
        for line in CLUSTER:
            words = shlex.split(line)[1:]
            if words[0] == "submit":
                start = words.index("--") + 1
                job = [*shortened(f"raymill {shlex.join(words[start:])}"), f"data={ROOT / 'datasets' / 'fashion-mnist'}"]
                words[start:] = [*job, "--store", str(folder / "store-of-jobs")]
            assert main(words) == 0, f"{line}: {capsys.readouterr().err}"
            said = capsys.readouterr().out
            if words[:2] == ["cluster", "up"]:
                for name, value in re.findall(r"(RAY_[A-Z_]+)=(\S+)", said):
                    monkeypatch.setenv(name, value)
                read_environment_again()
    finally:
        assert main(["cluster", "down"]) == 0
        monkeypatch.undo()
        read_environment_again()
    assert list((folder / "store-of-jobs" / "artifacts").glob("report-*"))


def test_make_targets_and_image() -> None:
    for line in COMMANDS:
        if line.startswith("make "):
            assert subprocess.run(["make", "-n", *line.split()[1:]], cwd=ROOT, capture_output=True).returncode == 0, line
    copied = re.findall(r"^COPY (.*) \S+$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    assert all((ROOT / name).exists() for names in copied for name in names.split())


def test_no_command_goes_untested() -> None:
    others = [line for line in COMMANDS if line not in RAYMILL]
    assert {line.split()[0] for line in others} == {"make", "torchrun", "docker", "raymill"}
    assert [line for line in others if line.startswith("raymill")] == [line for line in COMMANDS if "--address" in line]


def test_places_on_the_map_exist() -> None:
    for name in re.findall(r"`((?:components|clusters|pipelines|benchmarks|datasets|tests|docs)/[^`]*)`", README):
        assert (ROOT / name).exists(), name
