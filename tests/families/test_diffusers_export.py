"""Exported folders open in diffusers: equal outputs of the U-Net, equal samples by its schedulers' loops and ours; what has no match."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.schedulers.deprecated import ScoreSdeVpScheduler
from torch import Tensor

from components.errors import UserError
from components.families.denoising import CLIP
from components.families.diffusers_export import ddim_scheduler, flow_scheduler, vp_scheduler, write_diffusers
from components.functional.ddim import ddim
from components.functional.noise_schedules import Discrete, Schedule, StraightLine, VariancePreserving, cosine_betas, linear_betas
from components.functional.ode_samplers import ode
from components.functional.predictions import Denoiser, Prediction
from components.functional.sde_samplers import euler_maruyama
from components.functional.timesteps import times_of
from components.networks.unet import UNet, UNetConfig

SMALL = UNetConfig(widths=(8, 16), attention=(False, True), blocks=1)
DISCRETE = Discrete(linear_betas())
SHAPE = (3, 1, 8, 8)


def network(config: UNetConfig = SMALL, channels: int = 1, num_classes: int = 0) -> UNet:
    torch.manual_seed(0)
    model = config.build(channels, num_classes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def opened(folder: Path) -> Any:
    model, report = diffusers.UNet2DModel.from_pretrained(folder / "unet", output_loading_info=True, low_cpu_mem_usage=False)
    assert not any(report.values()), report
    return model


def denoiser(model: UNet, prediction: Prediction, schedule: Schedule, clip: tuple[float, float] | None = None) -> Denoiser:
    def ask(x: Tensor, t: Tensor) -> Tensor:
        steps = schedule.level_of(t) if isinstance(schedule, Discrete) else 1000 * t
        return model(x, steps.float())

    return Denoiser(ask, prediction, schedule, clip)


@torch.no_grad()
@pytest.mark.parametrize(
    ("config", "channels", "num_classes"),
    [
        (SMALL, 1, 0),
        (UNetConfig(widths=(8, 16, 24), attention=(True, False, True), head_width=4, groups=4, dropout=0.25), 3, 10),
        (UNetConfig(widths=(16,), attention=(False,), blocks=2), 2, 1),
    ],
)
def test_the_unet_opens_with_equal_outputs(tmp_path: Path, config: UNetConfig, channels: int, num_classes: int) -> None:
    ours = network(config, channels, num_classes)
    write_diffusers(ours, None, tmp_path)
    theirs = opened(tmp_path)
    x, steps = torch.randn(40, channels, 8, 12), 999 * torch.rand(40)
    labels = torch.arange(40) % (num_classes + 1) if num_classes else None
    assert torch.allclose(ours(x, steps, labels), theirs(x, steps, labels).sample, atol=1e-5)
    exact = ours.double()(x.double(), steps, labels), theirs.double()(x.double(), steps, labels).sample
    assert torch.allclose(*exact, atol=1e-12)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["unet"]


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_ddim_samples_are_equal(tmp_path: Path, prediction: Prediction) -> None:
    schedule = Discrete(cosine_betas()) if prediction == "v" else DISCRETE
    model = network()
    write_diffusers(model, ddim_scheduler(schedule, prediction), tmp_path)
    theirs, scheduler = opened(tmp_path), diffusers.DDIMScheduler.from_pretrained(tmp_path / "scheduler")
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    scheduler.set_timesteps(10)
    x = start
    for level in scheduler.timesteps:
        x = scheduler.step(theirs(x, level).sample, level, x, use_clipped_model_output=True).prev_sample
    ours = ddim(denoiser(model, prediction, schedule, CLIP), start, times_of(schedule, "trailing", 10))
    assert (ours - x).abs().max() < 1e-4 * max(1, float(x.abs().max()))


@torch.no_grad()
def test_rectified_flow_samples_are_equal(tmp_path: Path) -> None:
    model, steps = network(), 5
    write_diffusers(model, flow_scheduler(), tmp_path)
    theirs, scheduler = opened(tmp_path), diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "scheduler")
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist())
    x = start
    for step in scheduler.timesteps:
        x = scheduler.step(theirs(x, step).sample, step, x).prev_sample
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    assert torch.allclose(ode(denoiser(model, "velocity", StraightLine()), start, times, method="euler"), x, atol=1e-4)


@torch.no_grad()
def test_a_step_of_the_vp_equation_is_equal(tmp_path: Path) -> None:
    schedule, model = VariancePreserving(), network()
    write_diffusers(model, vp_scheduler(schedule), tmp_path)
    theirs, scheduler = opened(tmp_path), ScoreSdeVpScheduler.from_pretrained(tmp_path / "scheduler")
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    scheduler.set_timesteps(100)
    now = scheduler.timesteps[3]
    after, mean = scheduler.step_pred(theirs(start, now * 1000).sample, start, now, torch.Generator().manual_seed(2))
    times = torch.tensor([float(now), float(now) - 1 / 100], dtype=torch.float64)
    drawn = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    ours = euler_maruyama(denoiser(model, "eps", schedule), start, times, lambda x: drawn)
    assert torch.allclose(ours, after, atol=1e-4)
    assert not torch.allclose(ours, mean, atol=1e-2)


def test_a_pipeline_opens_without_classes_and_there_is_none_with_them(tmp_path: Path) -> None:
    scheduler = ddim_scheduler(DISCRETE, "eps")
    write_diffusers(network(), scheduler, tmp_path / "plain", (8, 8))
    pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "plain")
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline).__name__ == "DDIMPipeline"
    assert pipeline(batch_size=2, num_inference_steps=2, output_type="np").images.shape == (2, 8, 8, 1)
    write_diffusers(network(num_classes=2), scheduler, tmp_path / "classes", (8, 8))
    assert not (tmp_path / "classes" / "model_index.json").exists()


def test_what_has_no_counterpart_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"network\.patch=2 .*network\.patch=1"):
        write_diffusers(network(UNetConfig(patch=2)), None, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"prediction='score'.*eps, x0, v"):
        ddim_scheduler(DISCRETE, "score")
