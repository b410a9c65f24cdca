"""Samples as a data set: the same bytes with any number of workers and after a kill, what is there is kept, mistakes told in one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.chaos.processes import descendants
from clusters.generate import Sampling, generate
from clusters.session import ray_cluster
from components import storage
from components.config import Config
from components.data import generated
from components.data.dataset import Dataset
from components.data.index import DatasetIndex
from components.data.verify import verify_dataset
from components.errors import UserError
from components.families.classifier import Classifier
from components.families.contract import Family
from components.families.denoising_sampler import DenoisingSampler
from components.families.diffusion import Diffusion
from components.families.model_folder import load_model, save_model
from components.families.prior import Prior, PriorSampler
from components.families.vqvae import TINY, VQVAE
from pipelines import sampling_command
from pipelines.cli import main
from tests.s3 import S3Server

ROOT = Path(__file__).parents[2]
DDIM = DenoisingSampler(sampler="ddim", steps=3, batch_size=20)
COUNT, SHARD = 60, 16  # four shards, the last of twelve rows


def shaken(family: Family) -> Family:
    """An untrained network often says nothing at all; this one has something to say."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in family.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return family


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of grey pictures of three classes."""
    url = str(tmp_path_factory.mktemp("models") / "diffusion")
    torch.manual_seed(0)
    network = {"widths": (8, 8), "attention": (False, False), "blocks": 1, "groups": 4}
    values = {"image_size": (8, 8), "num_classes": 3, "levels": 50, "network": network}
    save_model(shaken(Diffusion(Diffusion.Config.parse(values, "test"))), url)
    return url


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of codes with the tokenizer that makes pictures of them."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    tokenizer = VQVAE(VQVAE.Config.parse(TINY, "test"))
    save_model(shaken(tokenizer), str(folder / "tokenizer"))
    values = {
        "code_count": tokenizer.config.num_codes,
        "grid": tokenizer.config.grid,
        "num_classes": 3,
        "layers": 1,
        "heads": 1,
        "width": 8,
    }
    save_model(shaken(Prior(Prior.Config.parse(values, "test"))), str(folder / "prior"), {"tokenizer": str(folder / "tokenizer")})
    return str(folder / "prior")


@pytest.fixture(scope="module")
def cluster(s3_server: S3Server) -> Iterator[str]:
    """The address of a Ray cluster of two CPUs, whose workers find the S3 server in the environment they were started in."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", str(ROOT))  # what workers import is this copy, wherever another is installed
        with ray_cluster(None, cpus=2):
            import ray

            yield ray.get_runtime_context().gcs_address


def draw(model: str, out: Path | str, count: int = COUNT, sampler: Config = DDIM, workers: int = 0, **changes: object) -> DatasetIndex:
    arguments = {"seed": 0, "rows_per_shard": SHARD} | changes
    return generate(model, str(out), count, sampler=sampler, workers=workers, **arguments)  # type: ignore[arg-type]


def content(folder: Path | str) -> dict[str, bytes]:
    return {name: storage.read_bytes(storage.join(str(folder), name)) for name in storage.list_files(str(folder))}


def modified(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("shard-*")}


def rows_of(url: Path | str) -> dict[str, np.ndarray]:
    dataset = Dataset.open(str(url))
    return dataset.take(np.arange(dataset.num_rows))


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_any_number_of_workers_gives_the_same_bytes(diffusion: str, tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    noisy = DDIM.model_copy(update={"eta": 1.0})  # noise at the start and on the way
    alone = draw(diffusion, tmp_path / "0", sampler=noisy, pairs=True)
    for workers in (1, 3):  # more than the cluster holds: they wait for room that others might leave
        out = tmp_path / str(workers)
        assert (
            draw(diffusion, out, sampler=noisy, workers=workers, pairs=True, on_progress=lambda *numbers: progress.append(numbers)) == alone
        )
        assert content(out) == content(tmp_path / "0")
    assert [shards for _, shards in progress] == [*range(5)] * 2
    assert progress[-1] == (COUNT, 4)
    verify_dataset(str(tmp_path / "3"))


@pytest.mark.ray
def test_a_killed_command_goes_on_with_what_is_missing(cluster: str, diffusion: str, tmp_path: Path) -> None:
    sampler = DenoisingSampler(sampler="ddim", steps=10)
    words = ["sample", diffusion, "sampler=ddim", "steps=10", "--count", "100000", "--out", str(tmp_path / "out")]
    words += ["--workers", "2", "--address", cluster]
    driver = subprocess.Popen([sys.executable, "-m", "pipelines.cli", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 120
        while not modified(tmp_path / "out"):
            assert driver.poll() is None, driver.communicate()[0].decode()
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        driver.kill()
        driver.communicate()
    left = modified(tmp_path / "out")
    assert left
    assert not (tmp_path / "out" / "index.json").exists()
    progress: list[int] = []
    count = 1024 * (len(left) + 3)  # what a person may ask for instead, and this test wait for
    changes = {"rows_per_shard": None, "on_progress": lambda rows, shards: progress.append(rows)}
    index = draw(diffusion, tmp_path / "out", count, sampler, 2, **changes)
    fresh = draw(diffusion, tmp_path / "fresh", count, sampler, rows_per_shard=None)
    assert index == fresh
    assert progress[0] > 0
    assert content(tmp_path / "out") == content(tmp_path / "fresh")
    kept = {name for name, at in modified(tmp_path / "out").items() if left.get(name) == at}
    assert len(kept) * 1024 == progress[0]


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_a_worker_that_is_killed_costs_nothing_but_time(diffusion: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    killed: list[int] = []

    def kill(rows: int, shards: int) -> None:
        if shards == 1:
            killed.append(next(pid for pid, line in descendants(os.getpid()).items() if line.startswith("ray::MapWorker")))
            os.kill(killed[0], signal.SIGKILL)

    index = draw(diffusion, tmp_path / "out", 40 * SHARD, workers=1, on_progress=kill)
    assert killed
    assert index == draw(diffusion, tmp_path / "fresh", 40 * SHARD)
    assert "".join(capfd.readouterr()) == "", "Ray says nothing by itself"


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_to_s3_on_workers(s3: str, prior: str, tmp_path: Path) -> None:
    local = draw(prior, tmp_path / "out", sampler=PriorSampler(top_k=4))
    for file in storage.list_files(prior):
        storage.upload(str(Path(prior) / file), f"{s3}/model/{file}")
    for workers in (0, 2):
        assert draw(f"{s3}/model", f"{s3}/{workers}", sampler=PriorSampler(top_k=4), workers=workers) == local
        assert content(f"{s3}/{workers}") == content(tmp_path / "out")
    verify_dataset(f"{s3}/2")


def test_rows_are_those_that_the_model_draws(diffusion: str, prior: str, tmp_path: Path) -> None:
    for name, url, sampler in (("diffusion", diffusion, DDIM), ("prior", prior, PriorSampler(temperature=0.5))):
        index = draw(url, tmp_path / name, sampler=sampler)
        rows = rows_of(tmp_path / name)
        family = load_model(url)
        drawn = family.sample(COUNT, 0, family.settled(sampler))
        pictures = getattr(family, "decode", lambda samples: samples)(drawn)
        assert np.abs(rows["image"] - pictures.numpy().clip(0, 1) * 255).max() < 0.51
        assert rows["label"].tolist() == [row % 3 for row in range(COUNT)]
        assert index.class_names == ("0", "1", "2")
        assert set(rows) == {"image", "label"}
        assert (tmp_path / name / "samples.png").exists()
    assert len(np.unique(rows_of(tmp_path / "diffusion")["image"], axis=0)) == COUNT, "no row is drawn twice"


def test_pairs_are_what_the_sampler_began_with_and_came_to(diffusion: str, tmp_path: Path) -> None:
    draw(diffusion, tmp_path / "plain")
    draw(diffusion, tmp_path / "pairs", pairs=True)
    pairs = rows_of(tmp_path / "pairs")
    np.testing.assert_array_equal(pairs["image"], rows_of(tmp_path / "plain")["image"])
    family = load_model(diffusion)
    assert isinstance(family, Diffusion)
    again = family.from_noise(torch.from_numpy(pairs["noise"]), family.settled(DDIM), torch.from_numpy(pairs["label"]))
    np.testing.assert_allclose(pairs["image_float"], again.numpy(), atol=1e-4)
    assert np.abs(pairs["noise"].mean()) < 0.1
    assert np.abs(pairs["noise"].std() - 1) < 0.1


def test_threads_of_this_process_do_not_matter(diffusion: str, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    draw(diffusion, tmp_path / "one", pairs=True)
    try:
        torch.set_num_threads(2)
        draw(diffusion, tmp_path / "two", pairs=True)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_the_same_again_draws_nothing_and_more_draws_what_is_new(diffusion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    index = draw(diffusion, out)
    before = modified(out)
    with monkeypatch.context() as patch:
        patch.setattr(generated, "_draw", lambda *arguments: pytest.fail("something was drawn"))
        assert draw(diffusion, out) == index
    assert modified(out) == before
    assert draw(diffusion, out, 100) == draw(diffusion, tmp_path / "fresh", 100)
    assert content(out) == content(tmp_path / "fresh"), "the short last shard is gone"
    assert len({name for name, at in modified(out).items() if before.get(name) == at}) == 3


def test_whole_shards_without_an_index_are_kept_and_others_made_again(diffusion: str, tmp_path: Path) -> None:
    index = draw(diffusion, tmp_path / "out")
    before = content(tmp_path / "out")
    (tmp_path / "out" / "index.json").unlink()
    first, second = (tmp_path / "out" / entry.file for entry in index.shards("train")[:2])
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1000])
    progress: list[int] = []
    draw(diffusion, tmp_path / "out", on_progress=lambda rows, shards: progress.append(shards))
    assert progress == [2, 3, 4]
    assert content(tmp_path / "out") == before


def test_a_failure_leaves_no_index_and_the_earlier_shards(diffusion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, real = [], generated._draw

    def fail_at_third(*arguments: object) -> object:
        blocks.append(arguments)
        if len(blocks) == 3:
            raise UserError("the disk is full")
        return real(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(generated, "_draw", fail_at_third)
        with pytest.raises(UserError, match="the disk is full"):
            draw(diffusion, tmp_path / "out")
    assert len(modified(tmp_path / "out")) == 2
    with pytest.raises(UserError, match="is no data set"):
        Dataset.open(str(tmp_path / "out"))
    assert draw(diffusion, tmp_path / "out") == draw(diffusion, tmp_path / "fresh")


def test_a_place_with_anything_else_is_left_alone(diffusion: str, prior: str, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("dear diary")
    out = tmp_path / "out"
    draw(diffusion, out)
    before = content(tmp_path)
    cases = [
        (lambda: draw(diffusion, tmp_path / "notes"), "notes is not empty: it holds 'diary.txt'"),
        (lambda: draw(diffusion, out, seed=1), "out holds samples of seed=0 and not 1"),
        (lambda: draw(diffusion, out, sampler=DenoisingSampler(sampler="ddim", steps=4, batch_size=20)), "sampler.steps=3 and not 4"),
        (lambda: draw(diffusion, out, pairs=True), "pairs=False and not True"),
        (lambda: draw(prior, out, sampler=PriorSampler()), "out holds samples of model="),
        (lambda: draw(diffusion, out, 59), "60 samples already, more than count=59"),
    ]
    for call, message in cases:
        with pytest.raises(UserError) as caught:
            call()
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    assert content(tmp_path) == before


def test_what_cannot_be_drawn_is_told_before_anything_is_written(diffusion: str, prior: str, tmp_path: Path) -> None:
    lonely, judge = str(tmp_path / "models" / "lonely"), str(tmp_path / "models" / "judge")
    save_model(Prior(Prior.Config.parse({"layers": 1, "heads": 1, "width": 8}, "test")), lonely)
    save_model(Classifier(Classifier.Config.parse({"widths": [4], "feature_dim": 4}, "test")), judge)
    out = tmp_path / "out"
    cases = [
        (lambda: draw(diffusion, out, 0), "count=0"),
        (lambda: draw(diffusion, out, rows_per_shard=12), "rows_per_shard=12"),
        (lambda: draw(diffusion, out, sampler=DenoisingSampler(sampler="predictor_corrector")), "does not fit this model"),
        (lambda: draw(diffusion, out, sampler=DenoisingSampler(label=3)), "label=3"),
        (lambda: draw(prior, out, sampler=PriorSampler(label=3)), "label=3"),
        (lambda: draw(prior, out, sampler=PriorSampler(), pairs=True), "Prior does not make a picture of one noise"),
        (lambda: draw(lonely, out, sampler=PriorSampler()), "tokenizer"),
        (lambda: draw(judge, out), "Classifier does not generate samples"),
    ]
    for call, message in cases:
        with pytest.raises(UserError) as caught:
            call()
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not out.exists()


def test_the_command(diffusion: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["sample", diffusion, "sampler=ddim", "steps=3", "--count", "40", "--out", "made", "--workers", "0"]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines() == ["made: 40 train rows, 1 shard", "made/samples.png"]
    assert main(["verify", "made"]) == 0
    options = ["model.widths=[4]", "model.feature_dim=4", "train.steps=2", "train.batch_size=16", "--workers", "0"]
    assert main(["train", "classifier", "made", *options]) == 0, "what was made can be learnt from"
    capsys.readouterr()
    for more, message in (
        (["guidance=0", "--seed", "1"], "sampler.guidance=1.0 and not 0.0"),
        (["eta=2"], "eta=2"),
        (["snr=0.3"], "sampler.snr=0.3 has no effect"),
        (["--count", "0"], "'--count'"),
    ):
        assert main([*words, *more]) == 2
        out, err = capsys.readouterr()
        assert message in err
        assert (out, err.count("\n")) == ("", 1)
    assert main(["sample", diffusion, "--address", "h:1"]) == 2
    assert "--address h:1 has no effect without --workers" in capsys.readouterr().err
    assert not (tmp_path / "samples").exists()


def test_many_samples_are_a_data_set_without_being_told(
    diffusion: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling_command, "MOST_AT_ONCE", 20)
    monkeypatch.setattr(sampling_command, "DEFAULT_WORKERS", "0")
    words = ["sample", diffusion, "sampler=ddim", "steps=3", "--out"]
    assert main([*words, str(tmp_path / "few"), "--count", "20"]) == 0
    assert sorted(content(tmp_path / "few")) == ["samples.png", "samples.safetensors"]
    assert main([*words, str(tmp_path / "many"), "--count", "21"]) == 0
    assert f"{tmp_path / 'many'}: 21 train rows, 1 shard" in capsys.readouterr().out
    assert len(rows_of(tmp_path / "many")["image"]) == 21


@pytest.mark.parametrize("options", [[], ["--workers", "0"]])
def test_samples_that_are_no_numbers_are_told_and_none_are_left(
    options: list[str], diffusion: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family = load_model(diffusion)
    with torch.no_grad():
        next(family.parameters()).fill_(torch.nan)
    save_model(family, str(tmp_path / "broken"))
    assert main(["sample", str(tmp_path / "broken"), "sampler=ddim", "steps=2", "--out", str(tmp_path / "out"), *options]) == 2
    out, err = capsys.readouterr()
    assert "sample 0 is not finite" in err
    assert (out, err.count("\n")) == ("", 1)
    assert {name for name in storage.list_files(str(tmp_path / "out")) if not name.startswith("generation")} == set()


def test_a_worker_loads_the_model_once(diffusion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    monkeypatch.setattr("clusters.generate.load_model", lambda url: (loads.append(url), load_model(url))[1])
    draw(diffusion, tmp_path / "out")
    generation = generated.Generation.parse(storage.read_json(str(tmp_path / "out" / "generation.json")), "test")
    worker, before = Sampling(diffusion), len(loads)
    for spec in generated.cut(generation, COUNT):
        worker({"spec": spec.model_dump_json(), "out": str(tmp_path / "out"), "stop": str(tmp_path / "stop")})
    assert len(loads) == before + 1
