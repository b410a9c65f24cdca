"""Samples of denoising families: guidance, one row whatever the batch, the way back, and what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from components.errors import UserError
from components.families.denoising_sampler import METHODS, noise_by_row
from components.families.diffusion import Diffusion
from components.families.model_folder import load_model, save_model
from components.functional.ancestral import ancestral
from components.functional.ddim import ddim, slerp
from components.functional.dpm_solver import dpm_solver_pp_2m
from components.functional.ode_samplers import dopri5, ode
from components.functional.timesteps import times_of
from tests.families.small_diffusion import CLASSES, CPU, LEVELS, SIZE, make, named, sampler
from tests.functional.exact import DeviceCopies


@torch.no_grad()
def test_guidance_is_no_class_at_0_the_class_at_1_and_linear_between_and_beyond() -> None:
    family, labels = make(), torch.tensor([0, 1, 2])
    x, t = torch.randn(3, 1, *SIZE), torch.tensor(0.5, dtype=torch.float64)
    without, with_class = family.predict(x, t, torch.full_like(labels, CLASSES)), family.predict(x, t, labels)
    assert (without - with_class).abs().max() > 0.01
    asked = {scale: family.denoiser(labels, scale).model(x, t) for scale in (0.0, 1.0, 0.5, 3.0)}
    assert torch.equal(asked[0.0], without)
    assert torch.equal(asked[1.0], with_class)
    assert torch.allclose(asked[0.5], (without + with_class) / 2, atol=1e-6)
    assert torch.allclose(asked[3.0], without + 3 * (with_class - without), atol=1e-5)
    assert torch.allclose(family.denoiser(labels, 3.0).model(x, t.expand(3)), asked[3.0], atol=1e-5)
    assert torch.allclose(family.denoiser(None).model(x, t), without, atol=1e-6)


@pytest.mark.parametrize("name", Diffusion.samplers)
def test_samples_depend_on_seed_and_row_and_not_on_the_batch(name: str) -> None:
    family, more = make(), {"eta": 0.7} if name == "ddim" else {}
    whole = family.sample(20, 4, named(name, **more))
    assert whole.shape == (20, *family.sample_shape)
    assert whole.min() >= 0
    assert whole.max() <= 1
    assert ((whole > 0) & (whole < 1)).double().mean() > 0.01  # not all of it is cut off
    assert not whole.is_inference()
    close = {"atol": 0.05 if name == "dopri5" else 1e-5, "rtol": 0.0}
    assert torch.allclose(whole, family.sample(20, 4, named(name, batch_size=13, **more)), **close)
    assert torch.allclose(whole[8:17], family.sample(9, 4, named(name, **more), first=8), **close)
    assert not torch.allclose(whole, family.sample(20, 5, named(name, **more)), **close)


@torch.no_grad()
def test_a_samplers_name_is_the_function_of_that_name() -> None:
    family, labels = make(), torch.arange(6) % CLASSES
    x = noise_by_row(9, 0, CPU)(torch.empty(6, 1, *SIZE))

    def noise() -> Any:
        draw = noise_by_row(9, 0, CPU)
        draw(x)  # the first is the start
        return draw

    clipped, free = family.denoiser(labels), family.denoiser(labels, clip=False)
    schedule = family.schedule
    direct = {
        "ddim": (ddim(clipped, x, times_of(schedule, "trailing", 5)), {}),
        "ddim eta": (ddim(clipped, x, times_of(schedule, "leading", 5), noise(), eta=0.5), {"eta": 0.5, "spacing": "leading"}),
        "ddim free": (ddim(free, x, times_of(schedule, "trailing", 5)), {"clip": False}),
        "ancestral": (ancestral(clipped, x, times_of(schedule, "trailing", 5), noise(), variance="large"), {"variance": "large"}),
        "dpm_solver": (dpm_solver_pp_2m(clipped, x, times_of(schedule, "karras", 5)), {"spacing": "karras"}),
        "heun": (ode(free, x, times_of(schedule, "uniform", 5), method="heun"), {}),
        "dopri5": (dopri5(free, x, rtol=1e-4, atol=1e-4), {}),
    }
    for name, (expected, options) in direct.items():
        drawn = family.sample_pairs(6, 9, named(name.split()[0], **options))
        assert torch.equal(drawn[0], x)
        assert torch.allclose(drawn[1], expected, atol=1e-5), name
        assert torch.allclose(family.sample(6, 9, named(name.split()[0], **options)), ((expected + 1) / 2).clamp(0, 1), atol=1e-5)


def test_samples_are_of_each_class_in_turn() -> None:
    family = make()
    each = family.sample(5, 1, named("ddim"), first=8)
    assert family.sample_labels(5, sampler(), first=8).tolist() == [2, 0, 1, 2, 0]  # type: ignore[union-attr]
    for label in range(CLASSES):
        alone = family.sample(5, 1, named("ddim", label=label), first=8)
        rows = (torch.arange(8, 13) % CLASSES) == label
        assert torch.allclose(each[rows], alone[rows], atol=1e-5)
        assert not torch.allclose(each[~rows], alone[~rows], atol=1e-5)


@pytest.mark.parametrize("name", Diffusion.samplers)
@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.0])
def test_evaluations_are_those_that_are_made(name: str, guidance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    family, passes = make(), []
    predict = family.predict
    monkeypatch.setattr(family, "predict", lambda x, *rest: (passes.append(len(x)), predict(x, *rest))[1])
    options = named(name, guidance=guidance)
    family.sample(2, 0, options)
    expected = family.evaluations(options)
    assert expected == (sum(passes) / 2 if name != "dopri5" else None)


def test_samplers_of_their_own_steps_fit_the_levels() -> None:
    assert make().evaluations(sampler(sampler="ancestral")) == LEVELS
    assert make().evaluations(sampler()) == LEVELS
    assert make(levels=1000).evaluations(sampler()) == METHODS["ddim"].steps


@pytest.mark.parametrize("name", ["ddim", "heun", "dopri5"])
def test_encoded_pictures_come_back(name: str) -> None:
    family, labels, images = make(prediction="v"), torch.tensor([0, 2]), torch.rand(2, 1, *SIZE) * 0.8 + 0.1
    options = named(name) if name == "dopri5" else named(name, steps=40 if name == "ddim" else 12)
    if name == "ddim":
        options = options.model_copy(update={"clip": False})
    noise = family.encode(images, options, labels)
    back = (family.from_noise(noise, options, labels) + 1) / 2
    assert (back - images).abs().max() < {"ddim": 0.1, "heun": 0.03, "dopri5": 0.03}[name]  # noise of the first level is cut off
    ends = family.interpolate(images[:1], images[1:], [0.0, 0.5, 1.0], options, labels[:1])
    assert ends.shape == (3, 1, 1, *SIZE)
    assert (ends[0] - images[0]).abs().max() < 0.1
    other = family.encode(images[1:], options, labels[:1]), family.encode(images[:1], options, labels[:1])
    middle = (family.from_noise(slerp(*other, 0.5), options, labels[:1]) + 1) / 2
    assert torch.allclose(ends[1], middle.clamp(0, 1), atol=1e-5)


@pytest.mark.parametrize("options", [{"sampler": "ancestral"}, {"sampler": "ddim", "eta": 0.5}, {"sampler": "dpm_solver"}])
def test_samplers_with_no_way_back_do_not_encode(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="cannot be walked from data to noise; choose"):
        make().encode(torch.rand(1, 1, *SIZE), sampler(**options))


def test_a_saved_model_draws_the_same_samples(tmp_path: Path) -> None:
    family = make(prediction="v", loss_weight="min_snr", snr_cap=3.0)
    save_model(family, str(tmp_path / "model"))
    again = load_model(str(tmp_path / "model"), "diffusion")
    assert again.config == family.config
    assert torch.equal(again.sample(4, 0, named("ddim", guidance=2.0)), family.sample(4, 0, named("ddim", guidance=2.0)))


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_exported_folder_draws_the_same_samples_in_diffusers(tmp_path: Path, prediction: str) -> None:
    from diffusers import DDIMScheduler, UNet2DModel  # here: the processes of the gang read this file too

    family = make(prediction=prediction)
    family.export(tmp_path)
    network, scheduler = UNet2DModel.from_pretrained(tmp_path / "unet"), DDIMScheduler.from_pretrained(tmp_path / "scheduler")
    start, ours = family.sample_pairs(3, 0, sampler(steps=8))
    scheduler.set_timesteps(8)
    theirs = start
    for step in scheduler.timesteps:
        said = network(theirs, step, class_labels=torch.arange(3)).sample
        theirs = scheduler.step(said, step, theirs, use_clipped_model_output=True).prev_sample
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_a_model_that_always_knew_the_class_is_not_asked_without() -> None:
    with pytest.raises(UserError, match="give labels"):
        make(condition_dropout=0.0).denoiser(None)
    make(condition_dropout=0.0, num_classes=0).denoiser(None)


def test_noise_becomes_pictures_of_the_labels_given_or_named_or_of_none() -> None:
    family, start = make(), torch.randn(2, 1, *SIZE)
    named_class = family.from_noise(start, named("ddim", label=1))
    assert torch.equal(named_class, family.from_noise(start, named("ddim"), torch.tensor([1, 1])))
    assert torch.allclose(family.from_noise(start, named("ddim", label=1, guidance=0)), family.from_noise(start, named("ddim")), atol=1e-5)
    assert not torch.allclose(named_class, family.from_noise(start, named("ddim")), atol=1e-3)
    nobody = family.from_noise(start, named("ddim", guidance=0))
    assert torch.allclose(nobody, family.from_noise(start, named("ddim")), atol=1e-5)
    assert family.encode(torch.rand(1, 1, *SIZE), named("heun", guidance=0)).isfinite().all()
    with pytest.raises(UserError, match="guidance=2 leads towards a class; give labels"):
        family.from_noise(start, named("ddim", guidance=2))


def test_what_is_given_goes_to_the_device_of_the_model() -> None:
    family, asked = make().to("meta"), []
    family.network.register_forward_pre_hook(lambda module, inputs: asked.extend(inputs[:3]))
    rows, labels = torch.rand(2, 1, *SIZE), torch.tensor([0, 2])
    for found in (family.from_noise(rows, named("ddim"), labels), family.encode(rows, named("heun"), labels)):
        assert found.device.type == "meta"
    assert family.interpolate(rows, rows, [0.5], named("heun"), labels).device.type == "meta"
    assert {value.device.type for value in asked} == {"meta"}


@pytest.mark.parametrize("name", ["ddim", "dpm_solver", "heun"])
def test_a_sampler_copies_nothing_to_the_device_on_its_way(name: str) -> None:
    family, start, labels = make().to("meta"), torch.rand(2, 1, *SIZE, device="meta"), torch.tensor([0, 2], device="meta")
    with DeviceCopies() as copies:
        family.from_noise(start, named(name, guidance=2), labels)
    assert copies.count == 0
