"""Score SDEs: the loss of the paper beside that of eps, what the network sees, samples and likelihood of an exact network, bad input."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.schedulers.deprecated.scheduling_sde_vp import ScoreSdeVpScheduler
from scipy.stats import norm
from torch import Tensor

from components.errors import UserError
from components.families.denoising_sampler import DenoisingSampler
from components.families.score_sde import SAMPLERS, ScoreSDE, ScoreSDEConfig
from components.functional.predictions import Coefficients
from components.training.randomness import Draws
from tests.families.denoising import CLASSES, SIZE, GaussianNetwork, batch_of, context, make
from tests.functional.exact import DeviceCopies

EQUATIONS = sorted(SAMPLERS)


def make_sde(sde: str, **values: object) -> ScoreSDE:
    family = make(ScoreSDE, sde=sde, **values)
    assert isinstance(family, ScoreSDE)
    return family


def sampler(**values: object) -> DenoisingSampler:
    return DenoisingSampler.parse(values, "test")


def standard_deviation(sde: str, t: Tensor) -> Tensor:
    """Of the noise, as section 11 of the specification writes it."""
    mean = torch.exp(-(t**2) * 19.9 / 4 - 0.05 * t)
    return {"vp": (1 - mean**2).sqrt(), "ve": 0.01 * 5000**t, "subvp": 1 - mean**2}[sde]


@pytest.mark.parametrize("sde", EQUATIONS)
@torch.no_grad()
def test_s3_the_loss_is_weighted_denoising_score_matching(sde: str) -> None:
    family, batch = make_sde(sde), batch_of(16)
    data, eps = 2 * batch["image"].float() / 255 - 1, torch.randn(16, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    t = torch.linspace(0.01, 1, 16, dtype=torch.float64)
    std = standard_deviation(sde, t).float().view(-1, 1, 1, 1)
    alpha = torch.exp(-(t**2) * 19.9 / 4 - 0.05 * t).float().view(-1, 1, 1, 1) if sde != "ve" else 1.0
    score = family.denoiser(batch["label"], clip=False).predict("score", alpha * data + std * eps, t)
    expected = (std * score + eps).square().flatten(1).mean(1)
    torch.testing.assert_close(family.losses(data, eps, t, batch["label"]), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sde", EQUATIONS)
@torch.no_grad()
def test_the_error_of_v_is_that_of_eps_with_another_weight(sde: str) -> None:
    family, batch = make_sde(sde, prediction="v"), batch_of(16)
    data, eps = 2 * batch["image"].float() / 255 - 1, torch.randn(16, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    t = torch.linspace(0.01, 0.7, 16, dtype=torch.float64)
    std = standard_deviation(sde, t).float()
    alpha = torch.exp(-(t**2) * 19.9 / 4 - 0.05 * t).float() if sde != "ve" else torch.ones(16)
    x = alpha.view(-1, 1, 1, 1) * data + std.view(-1, 1, 1, 1) * eps
    error = (family.denoiser(batch["label"], clip=False).predict("eps", x, t) - eps).square().flatten(1).mean(1)
    expected = error * (alpha**2 + std**2) / alpha**2
    torch.testing.assert_close(family.losses(data, eps, t, batch["label"]), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("sde", "start"), [("vp", 1e-3), ("ve", 1e-5), ("subvp", 1e-3)])
def test_times_are_uniform_from_the_start_and_told_as_999_steps(sde: str, start: float) -> None:
    family = make_sde(sde)
    uniform = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(family.time_of(uniform), start + (1 - start) * uniform)
    told = []
    family.network.register_forward_pre_hook(lambda module, inputs: told.append(inputs[1]))
    family.losses(*torch.randn(2, 3, 1, SIZE, SIZE), torch.tensor([start, 0.5, 1.0], dtype=torch.float64), torch.arange(3))
    torch.testing.assert_close(told[0], torch.tensor([999 * start, 499.5, 999.0]))


@pytest.mark.parametrize("sde", EQUATIONS)
def test_lognormal_times_are_normal_in_the_logarithm_of_noise_over_data(sde: str) -> None:
    family = make_sde(sde, time_density="lognormal")
    t = family.time_of(torch.linspace(0, 1, 20_001, dtype=torch.float64))
    assert (t.diff() >= 0).all()
    assert (t[0].item(), t[-1].item()) == pytest.approx((family.schedule.start, 1))
    log_noise = (family.schedule.sigma(t) / family.schedule.alpha(t)).log()
    inner = log_noise[1000:-1000]  # without the tails that the ends of time cut off
    places = torch.linspace(0.05, 0.95, len(inner), dtype=torch.float64)
    torch.testing.assert_close(inner, torch.from_numpy(norm.ppf(places, -1.2 + math.log(2), 1.2)), rtol=0, atol=1e-2)


@pytest.mark.parametrize("t", [1e-5, 0.3, 0.6, 1.0])
def test_the_network_sees_unit_variance_under_ve(t: float) -> None:
    family, seen = make_sde("ve"), []
    family.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    data, eps = 0.5 * torch.randn(64, 1, SIZE, SIZE), torch.randn(64, 1, SIZE, SIZE)
    family.losses(data, eps, torch.full((64,), t, dtype=torch.float64), torch.arange(64) % CLASSES)
    assert seen[0].std().item() == pytest.approx(1, abs=0.1)


class GaussianNetworkOfV(GaussianNetwork):
    """Says v by its standard deviation, sqrt(alpha^2 + std^2)."""

    def forward(self, x: Tensor, steps: Tensor, labels: Tensor | None, random: Draws | None) -> Tensor:
        at = Coefficients.at(self.exact.schedule, steps.double() / self.scale, x.double())
        return (super().forward(x, steps, labels, random) / (at.alpha**2 + at.sigma**2).sqrt()).to(x.dtype)


def exact(sde: str, mean: float, std: float, prediction: str = "eps") -> ScoreSDE:
    """A family whose network knows that every pixel is N(mean, std^2)."""
    family = make_sde(sde, prediction=prediction)

    def unscaled(x: Tensor, t: Tensor) -> Tensor:
        return x * (0.25 + Coefficients.at(family.schedule, t, x).sigma ** 2).sqrt()

    network = GaussianNetwork if prediction == "eps" else GaussianNetworkOfV
    family.network = network(family, mean, std, unscaled if sde == "ve" else None)
    return family


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("sde", EQUATIONS)
@pytest.mark.parametrize("name", sorted({name for names in SAMPLERS.values() for name in names}))
def test_samples_of_an_exact_network_are_the_data(sde: str, name: str, prediction: str) -> None:
    if name not in SAMPLERS[sde]:
        return
    options = (
        {"sampler": name}
        if name == "dopri5"
        else {"sampler": name, "steps": {"rk4": 60, "euler": 800, "reverse_diffusion": 400}.get(name, 200)}
    )
    pictures = exact(sde, 0.2, 0.1, prediction).sample(64, 0, sampler(**options))
    assert pictures.mean().item() == pytest.approx((0.2 + 1) / 2, abs=0.01)
    assert pictures.std().item() == pytest.approx(0.1 / 2, rel=0.05)


def test_ve_is_sampled_with_noise_on_the_way_unless_told_otherwise() -> None:
    """Its probability flow makes poor pictures."""
    assert make_sde("ve").settled(sampler()).sampler == "predictor_corrector"


@torch.no_grad()
@pytest.mark.parametrize("sde", EQUATIONS)
def test_a_training_step_copies_nothing_to_the_device(sde: str) -> None:
    family = make_sde(sde, prediction="v", time_density="lognormal").to("meta")
    data, noise = torch.zeros(2, 4, 1, SIZE, SIZE, device="meta")
    uniform, labels = torch.rand(4, device="meta").double(), torch.zeros(4, dtype=torch.int64, device="meta")
    family.losses(data, noise, family.time_of(uniform), labels)  # the first step brings the tables there
    with DeviceCopies() as copies:
        family.losses(data, noise, family.time_of(uniform), labels)
    assert copies.count == 0


@pytest.mark.parametrize("sde", EQUATIONS)
def test_evaluations_are_counted_before_any_is_made(sde: str) -> None:
    family, calls = make_sde(sde), []
    family.network.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    for name in SAMPLERS[sde]:
        if name == "dopri5":
            continue
        calls.clear()
        options = sampler(sampler=name, steps=4)
        assert torch.isfinite(family.sample(2, 0, options)).all()
        assert sum(calls) / 2 == family.evaluations(options), name


@pytest.mark.parametrize("sde", EQUATIONS)
def test_bits_per_dim_of_an_exact_network_are_those_of_the_gaussian(sde: str) -> None:
    mean, std, grey = 0.2, 0.4, 153  # a flat picture at the mean
    images = torch.full((8, 1, SIZE, SIZE), grey, dtype=torch.uint8)
    edges = torch.tensor([grey, grey + 1]) / 128 - 1
    expected = -math.log2(norm.cdf(edges[1], mean, std) - norm.cdf(edges[0], mean, std))
    found = exact(sde, mean, std).bits_per_dim(images, context(8), torch.arange(8) % CLASSES)
    assert found.mean().item() == pytest.approx(expected, abs=0.01)


def test_a_vp_model_opens_in_diffusers_with_its_scheduler(tmp_path: Path) -> None:
    family = make_sde("vp", num_classes=0, condition_dropout=0.0)
    family.export(tmp_path)
    network = UNet2DModel.from_pretrained(tmp_path, subfolder="unet")
    scheduler = ScoreSdeVpScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    scheduler.set_timesteps(10)
    x, t = torch.randn(2, 1, SIZE, SIZE), torch.tensor(0.7, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(network(x, 999 * t.float()).sample, family.predict(x, t, None), rtol=1e-4, atol=1e-5)
    assert (scheduler.config.beta_min, scheduler.config.beta_max) == (0.1, 20.0)


@pytest.mark.parametrize(("sde", "prediction"), [("ve", "eps"), ("subvp", "eps"), ("vp", "v")])
def test_other_models_go_to_diffusers_as_weights_alone(sde: str, prediction: str, tmp_path: Path) -> None:
    family = make_sde(sde, prediction=prediction)
    family.export(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["unet"]
    network = UNet2DModel.from_pretrained(tmp_path, subfolder="unet")
    x, t, labels = torch.randn(2, 1, SIZE, SIZE), torch.tensor([0.1, 0.7], dtype=torch.float64), torch.tensor([0, 2])
    scale = (0.25 + Coefficients.at(family.schedule, t, x).sigma ** 2).sqrt() if sde == "ve" else 1.0
    with torch.no_grad():
        theirs = network(x / scale, 999 * t.float(), class_labels=labels).sample
        torch.testing.assert_close(theirs, family.predict(x, t, labels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("sde", "options", "message"),
    [
        ("subvp", {"sampler": "ddim"}, "sampler=ddim does not fit"),
        ("subvp", {"sampler": "dpm_solver"}, "sampler=dpm_solver does not fit"),
        ("ve", {"sampler": "ancestral"}, "sampler=ancestral does not fit"),
        ("vp", {"sampler": "euler_maruyama", "eta": 0.5}, "eta=0.5 has no effect"),
        ("vp", {"sampler": "euler_maruyama", "spacing": "leading"}, "'leading' chooses among levels"),
        ("vp", {"label": CLASSES}, f"label={CLASSES}"),
    ],
)
def test_samplers_that_do_not_fit_are_refused(sde: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_sde(sde).sample(2, 0, sampler(**options))


def test_guidance_without_classes_is_refused() -> None:
    with pytest.raises(UserError, match=r"guidance=2.0: the model was trained without classes"):
        make_sde("vp", num_classes=0, condition_dropout=0.0).sample(2, 0, sampler(guidance=2.0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sigma_max": 30.0}, "sigma_max=30.0 has no effect with sde=vp"),
        ({"sde": "ve", "sigma_max": 0.5}, "sigma_max"),
        ({"sde": "vpsde"}, "sde"),
    ],
)
def test_bad_configs_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ScoreSDEConfig.parse(values, "test")
