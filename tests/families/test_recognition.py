"""The recognition family: sampled and whole softmax on any number of workers, what may move a row, embeddings, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from components.data.columns import Column
from components.data.dataset import Dataset
from components.data.loader import Loader
from components.data.write import write_dataset
from components.errors import UserError
from components.families.model_folder import load_model, read_model_rows
from components.families.recognition import Recognition, RecognitionConfig, margin_of
from components.training.communication import Communication
from components.training.context import Context
from components.training.job import TrainingJob, build, execute
from components.training.loop import Trainer
from components.training.measures import Measures
from components.training.outlet import Outlet
from components.training.randomness import Draws
from components.training.recompute import recompute
from tests.gang import Gang
from tests.small_data import shipped_images
from tests.test_promises import difference, here, killed_on_worker, on_worker, published

CPU = torch.device("cpu")
SMALL = {"widths": (8, 16), "depths": (1, 1), "embedding_dim": 16, "loss": "cosface", "scale": 16.0, "m3": 0.1}


@pytest.fixture
def make_job(tmp_path: Path, small_data_folders: dict[str, Path]):
    def make(run: str, model: dict[str, Any] | None = None, **train: Any) -> TrainingJob:
        settings = {"steps": 6, "batch_size": 48, "log_every": 1, "checkpoint_every": 1} | train
        values = {"family": "recognition", "model": SMALL | (model or {}), "train": settings, "run": str(tmp_path / run)}
        return TrainingJob.parse(values | {"data": str(small_data_folders["identities"])}, "test")

    return make


VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sampled, sgd": ({"sample_rate": 0.3}, {"optimizer": {"name": "sgd", "lr": 1e-2, "momentum": 0.9, "weight_decay": 1e-2}}),
    "sampled, only those rows move": (
        {"sample_rate": 0.3, "move_unsampled": False},
        {"optimizer": {"name": "sgd", "lr": 1e-2, "momentum": 0.9}},
    ),
    "softmax with biases": ({"loss": "softmax", "scale": None, "m3": None, "sample_rate": 0.5}, {"optimizer": {"name": "sgd", "lr": 1e-2}}),
    "augmented, normalised": (
        {
            "augment": {
                "flip": True,
                "turn": 5,
                "zoom": 0.1,
                "move": 0.05,
                "perspective": 0.1,
                "thicken": 0.5,
                "illuminate": 0.5,
                "erase": 0.2,
            },
            "photometric": "difference_of_gaussians",
            "dropout": 0.2,
        },
        {"optimizer": {"name": "sgd", "lr": 1e-2}},
    ),
    "gabor, virtual identities": (
        {"backbone": "gabor", "virtual_identities": 3, "widths": (32, 64, 128), "depths": (1, 1, 1)},
        {"optimizer": {"name": "sgd", "lr": 1e-2}},
    ),
    "micro-batches, clipped": ({}, {"accumulate": 2, "clip_norm": 0.05, "optimizer": {"name": "sgd", "lr": 1e-2}}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_three_workers_agree_with_one(make_job, gang: Gang, variant: str) -> None:
    model, train = VARIANTS[variant]
    job = make_job("three", model, **train)
    gang.run(on_worker, 3, job)
    assert difference(published(job), here(make_job("one", model, **train))) < 1e-6


def test_adam_on_sampled_rows_goes_on_with_another_number_of_workers(make_job, gang: Gang) -> None:
    model, train = (
        {"sample_rate": 0.3, "move_unsampled": False},
        {"optimizer": {"lr": 1e-3, "eps": 1e-3}},
    )  # a large eps: Adam magnifies the last bits of sums
    job = make_job("moved", model, **train)
    gang.run(killed_on_worker, 2, job, 3)
    gang.run(on_worker, 3, job)
    assert difference(published(job), here(make_job("still", model, **train))) < 2e-6


def test_more_workers_than_classes(tmp_path: Path, make_job, gang: Gang) -> None:
    images, labels = shipped_images("train", 400)
    two = labels < 2
    columns = {"image": Column(dtype="uint8", shape=(1, 28, 28)), "label": Column(dtype="int64")}
    rows = {"image": images[two], "label": labels[two]}
    write_dataset(str(tmp_path / "two"), {"train": [rows]}, columns, ("a", "b"))
    jobs = [make_job(run, optimizer={"name": "sgd", "lr": 1e-2}) for run in ("three", "one")]
    jobs = [job.model_copy(update={"data": str(tmp_path / "two")}) for job in jobs]
    gang.run(on_worker, 3, jobs[0])
    assert difference(published(jobs[0]), here(jobs[1])) < 1e-6


def step_rows(job: TrainingJob) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of the head after two steps and after three, and which of them take part in the third."""
    data = Dataset.open(job.data)
    trainer = Trainer(build(job, data).train(), job.train, Outlet(CPU))
    family = trainer.family
    assert isinstance(family, Recognition)
    measures = Measures(CPU, Communication(), 8)
    batches = list(Loader(data, 8, 0).batches(0, 3))
    for batch in batches[:2]:
        trainer.train_step(batch, measures)
    before = family.head.weight.detach().clone()
    ctx = Context(2, "recognition", Draws(0, 2, "recognition", 0, CPU), 8, 8, Communication())
    taken = torch.isin(torch.arange(7), batches[2]["label"]) | (ctx.random.classes("sampled", 0, 7) < family.config.sample_rate)
    trainer.train_step(batches[2], measures)
    return before, family.head.weight.detach(), taken


DECAYING = [{"lr": 1e-2, "weight_decay": 0.1}, {"name": "sgd", "lr": 1e-2, "momentum": 0.9, "weight_decay": 0.1}]


@pytest.mark.parametrize("optimizer", DECAYING)
@pytest.mark.parametrize("moves", [False, True])
def test_rows_of_classes_left_out_move_or_stay_as_asked(make_job, tmp_path: Path, optimizer: dict[str, Any], moves: bool) -> None:
    images, labels = shipped_images("train", 4000)
    kept = (labels < 2) | (np.arange(4000) % 50 == 0)  # most batches show few of the classes
    columns = {"image": Column(dtype="uint8", shape=(1, 28, 28)), "label": Column(dtype="int64")}
    kept &= labels < 7
    rows = {"image": images[kept], "label": labels[kept]}
    write_dataset(str(tmp_path / "rare"), {"train": [rows]}, columns, tuple("abcdefg"))
    job = make_job("run", {"sample_rate": 0.01, "move_unsampled": moves}, optimizer=optimizer, batch_size=8)
    before, after, taken = step_rows(job.model_copy(update={"data": str(tmp_path / "rare")}))
    moved = (before != after).any(1)
    assert moved[taken].all()
    assert not taken.all()
    assert moved[~taken].all() if moves else not moved[~taken].any()


def test_an_embedding_is_of_the_picture_and_its_mirror_image(make_job) -> None:
    job = make_job("run")
    model = build(job, Dataset.open(job.data)).eval()
    assert isinstance(model, Recognition)
    images = torch.rand(5, 1, 28, 28)
    expected = sum(model.backbone.read(model.backbone.features(each)) for each in (images, images.flip(-1)))
    assert torch.allclose(model.embed(images), expected / expected.norm(dim=1, keepdim=True), atol=1e-6)
    assert torch.allclose(model.embed(images), model.embed(images.flip(-1)), atol=1e-6)
    plain = Recognition(model.config.model_copy(update={"flip_test": False})).eval()
    assert torch.equal(plain.embed(images), F.normalize(plain.backbone.read(plain.backbone.features(images))))


def test_light_is_taken_out_in_training_and_in_use(make_job) -> None:
    noise = torch.randint(0, 128, (6, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    bright, dark = ({"image": image, "label": torch.arange(6)} for image in (noise * 2, noise + 60))
    ctx = Context(0, "recognition", Draws(0, 0, "recognition", 0, CPU), 6, 6, Communication())
    differences = {}
    for photometric in ("none", "standardise"):
        job = make_job(photometric, {"photometric": photometric})
        model = build(job, Dataset.open(job.data)).eval()
        assert isinstance(model, Recognition)
        model.head.cut(0, 1, 0)
        losses = [model.loss("recognition", batch, ctx).loss.item() for batch in (bright, dark)]
        embeddings = [model.embed(batch["image"].float() / 255) for batch in (bright, dark)]
        differences[photometric] = abs(losses[0] - losses[1]), (embeddings[0] - embeddings[1]).abs().max().item()
    assert min(differences["none"]) > 1e-3
    assert max(differences["standardise"]) < 1e-4


def test_a_published_model_embeds_without_its_head_and_gives_rows_when_asked(make_job) -> None:
    job = make_job("run")
    weights = here(job)
    model = load_model(f"{job.run}/model", expect="recognition")
    assert isinstance(model, Recognition)
    assert model.head.weight.shape == (0, 16)
    assert model.embed(torch.rand(2, 1, 28, 28)).shape == (2, 16)
    assert torch.equal(
        read_model_rows(f"{job.run}/model", {"head": (2, 5)})["head"].tensors["model/weight"], weights["head/model/weight"][2:5]
    )
    again = make_job("again", steps=1).model_copy(update={"children": {"start": f"{job.run}/model"}})
    started = build(again, Dataset.open(job.data))
    assert torch.equal(started.state_dict()["backbone.out.weight"], model.state_dict()["backbone.out.weight"])


@pytest.mark.parametrize(("backbone", "parameters", "within"), [("resnet18", 11_176_512, 0.3), ("resnet50", 23_508_032, 0.1)])
def test_large_backbones_are_about_as_large_as_the_published_ones(backbone: str, parameters: int, within: float) -> None:
    """Their convolutions, without the last layer: He et al.'s have 11.2 and 23.5 million weights."""
    config = RecognitionConfig.parse({"backbone": backbone, "image_channels": 3, "embedding_dim": 512, "num_classes": 10}, "test")
    model = Recognition(config)
    assert model.embed(torch.rand(2, 3, 112, 112)).shape == (2, 512)
    assert sum(p.numel() for p in model.backbone.blocks.parameters()) == pytest.approx(parameters, rel=within)


def test_the_curve_is_drawn_where_there_is_one() -> None:
    (chart,) = Recognition.charts({"eer": 0.1, "roc_far": [0.1, 1.0], "roc_tar": [0.5, 1.0]})
    assert (chart.series[0].x, chart.series[0].y) == ((0.1, 1.0), (0.5, 1.0))
    assert Recognition.charts({}) == ()


def test_margins_grow_and_scales_follow_the_number_of_classes() -> None:
    config = RecognitionConfig(loss="arcface", margin_warmup_steps=10, num_classes=2000)
    assert [margin_of(config, step).strength for step in (0, 4, 9, 50)] == [0.1, 0.5, 1.0, 1.0]
    assert margin_of(config, 0).scale == 64.0
    assert margin_of(RecognitionConfig(num_classes=32), 0).scale == 30.0
    assert margin_of(RecognitionConfig(loss="sphereface"), 0).annealing == 1000.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": "arcface", "m2": 2.0}, "m2"),
        ({"loss": "sphereface", "m1": 2.5}, "m1"),
        ({"loss": "cosface", "m2": 0.5}, "m2"),
        ({"loss": "softmax", "scale": 10.0}, "scale"),
        ({"loss": "adacos", "scale": 10.0}, "scale"),
        ({"loss": "normface", "margin_warmup_steps": 5}, "margin_warmup_steps"),
        ({"loss": "arcface", "annealing": {"floor": 1.0}}, "annealing"),
        ({"move_unsampled": False}, "move_unsampled"),
        ({"backbone": "resnet18", "widths": (8,), "depths": (1,)}, "widths"),
        ({"widths": (8,)}, "depths"),
        ({"threshold": 0.4}, "false_accept_rate"),
        ({"loss": "archface"}, "loss"),
        ({"sample_rate": 0.0}, "sample_rate"),
    ],
)
def test_options_out_of_range_or_without_effect_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RecognitionConfig.parse(values, "test")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 0, 0, 0], "1 class, expected 2"),
        ([0, 0, 2, 2], "label 1 .b. has no training pictures"),
        ([0, 0, 1, 1, 2], "one picture of c"),
    ],
)
def test_data_that_nothing_can_be_learnt_from_are_refused(tmp_path: Path, make_job, labels: list[int], message: str) -> None:
    images, _ = shipped_images("train", len(labels))
    columns = {"image": Column(dtype="uint8", shape=(1, 28, 28)), "label": Column(dtype="int64")}
    rows = {"image": images, "label": np.array(labels, np.int64)}
    write_dataset(str(tmp_path / "bad"), {"train": [rows]}, columns, ("a", "b", "c"))
    with pytest.raises(UserError, match=message):
        build(make_job("run").model_copy(update={"data": str(tmp_path / "bad")}), Dataset.open(str(tmp_path / "bad")))


def test_a_run_does_not_go_on_with_another_list_of_classes(tmp_path: Path, make_job, small_data_folders: dict[str, Path]) -> None:
    job = make_job("run")
    here(job)
    (Path(job.run) / "model" / "config.json").unlink()
    images, labels = shipped_images("train", 600)
    columns = {"image": Column(dtype="uint8", shape=(1, 28, 28)), "label": Column(dtype="int64")}
    kept = labels < 7
    write_dataset(str(tmp_path / "other"), {"train": [{"image": images[kept], "label": labels[kept]}]}, columns, tuple("abcdefg"))
    with pytest.raises(UserError, match="classes"):
        execute(job.model_copy(update={"data": str(tmp_path / "other")}), Outlet(CPU))


def test_a_gabor_bank_has_no_blocks_to_recompute() -> None:
    family = Recognition(Recognition.Config(num_classes=4, backbone="gabor", image_channels=1, image_size=(56, 56)))
    with pytest.raises(UserError, match="set recompute=0"):
        recompute(family, family.recomputed, 1)
