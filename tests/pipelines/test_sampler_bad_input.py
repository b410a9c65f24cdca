"""Samplers and options that do not fit a denoising model: exit 2, one line with the value and the way out, nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.families.diffusion import Diffusion, DiffusionConfig
from components.families.model_folder import save_model
from tests.pipelines.world import require_one_line

MODELS = {
    "guided": {},
    "unguided": {"condition_dropout": 0.0},
    "unconditional": {"num_classes": 0, "condition_dropout": 0.0},
}
CASES = [
    ("guided", ("eta=1.5",), ("eta=1.5", "less than or equal to 1")),
    ("guided", ("eta=-0.1",), ("eta=-0.1", "greater than or equal to 0")),
    ("guided", ("eta=.nan",), ("eta=nan", "finite")),
    ("guided", ("steps=101",), ("101", "100 levels", "at most 100")),
    ("guided", ("sampler=ancestral", "steps=101"), ("101", "100 levels")),
    ("guided", ("sampler=euler", "steps=101"), ("steps: 101", "100 levels", "at most 100")),
    ("guided", ("spacing=uniform", "steps=4000"), ("steps: 4000", "100 levels", "at most 100")),
    ("guided", ("sampler=dpm_solver", "spacing=karras", "steps=101"), ("steps: 101", "100 levels", "at most 100")),
    ("guided", ("steps=0",), ("steps=0", "greater than 0")),
    ("guided", ("sampler=euler_maruyama",), ("sampler.sampler=euler_maruyama does not fit", "ddim, ancestral")),
    ("guided", ("sampler=ddmi",), ("sampler='ddmi'", "'ddim'")),
    ("guided", ("spacing=falling",), ("spacing='falling'", "'trailing'")),
    ("guided", ("sampler=ancestral", "eta=0.5"), ("sampler.eta=0.5 has no effect with sampler=ancestral", "ddim")),
    ("guided", ("variance=large",), ("sampler.variance=large has no effect with sampler=ddim", "ancestral")),
    ("guided", ("sampler=dopri5", "steps=5"), ("sampler.steps=5 has no effect with sampler=dopri5", "heun")),
    ("guided", ("sampler=dopri5", "spacing=uniform"), ("sampler.spacing=uniform has no effect",)),
    ("guided", ("sampler=heun", "clip=true"), ("sampler.clip=True has no effect with sampler=heun", "ddim")),
    ("guided", ("rtol=0.01",), ("sampler.rtol=0.01 has no effect", "dopri5")),
    ("guided", ("sampler=dopri5", "rtol=0"), ("rtol=0", "greater than 0")),
    ("guided", ("snr=0.2",), ("sampler.snr=0.2 has no effect with sampler=ddim; leave it out",)),
    ("guided", ("label=10",), ("sampler.label=10", "10 classes", "0 to 9")),
    ("guided", ("guidance=-1",), ("guidance=-1", "greater than or equal to 0")),
    ("guided", ("temperature=0.9",), ("'temperature'", "unknown key")),
    ("unguided", ("guidance=2",), ("sampler.guidance=2.0", "condition_dropout above 0", "guidance=1")),
    ("unguided", ("guidance=0",), ("sampler.guidance=0.0", "condition_dropout above 0")),
    ("unconditional", ("guidance=2",), ("sampler.guidance=2.0", "without classes", "leave guidance out")),
    ("unconditional", ("label=0",), ("sampler.label=0", "without classes")),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained models, a folder each."""
    folder = tmp_path_factory.mktemp("models")
    network = {"widths": (4,), "attention": (False,), "blocks": 1}
    for name, values in MODELS.items():
        config = DiffusionConfig.parse({"image_size": (4, 4), "levels": 100, "network": network} | values, "test")
        save_model(Diffusion(config), str(folder / name))
    return folder


@pytest.mark.parametrize(("model", "options", "says"), CASES, ids=lambda value: " ".join(value) if isinstance(value, tuple) else value)
def test_a_mistake_gives_one_line(
    model: str, options: tuple[str, ...], says: tuple[str, ...], models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    require_one_line(["sample", str(models / model), "--count", "2", "--out", str(out), *options], says, capsys)
    assert not out.exists()
