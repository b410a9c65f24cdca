"""A U-Net as a folder that Hugging Face's diffusers opens: `unet/` for `UNet2DModel`, `scheduler/`, and a pipeline where one fits.

Written without that library. Of its schedulers, `DDIMScheduler` samples discrete noise levels as we do (its `DDPMScheduler` opens the same
file), `FlowMatchEulerDiscreteScheduler` rectified flow and `ScoreSdeVpScheduler`, deprecated there and kept in
`diffusers.schedulers.deprecated`, the VP equation. None is right for the VE equation (`ScoreSdeVeScheduler` tells the network sigma instead
of the time and takes its output for the score) and for sub-VP: there are weights alone. Its pipelines give no labels to the network, so a
`model_index.json` is for networks without classes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from components.errors import UserError
from components.functional.noise_schedules import Discrete, VariancePreserving
from components.functional.predictions import Prediction
from components.networks.unet import Attention, ResidualBlock, UNet

_PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
_PIPELINES = {"DDPMScheduler": "DDPMPipeline", "DDIMScheduler": "DDIMPipeline"}
_NAMES = {
    "conv_in": "conv_in",
    "time_in": "time_embedding.linear_1",
    "time_out": "time_embedding.linear_2",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}


def write_diffusers(network: UNet, scheduler: dict[str, Any] | None, folder: Path, image_size: tuple[int, int] | None = None) -> None:
    """Writes `unet/`, with a `scheduler` also `scheduler/`, and with `image_size` (height, width) a pipeline's `model_index.json`.

    `scheduler` is a config with its `_class_name`, as the functions below give. Raises UserError for a network that packs pixels.
    """
    config = unet_config(network) | ({"sample_size": list(image_size)} if image_size else {})
    (folder / "unet").mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(unet_weights(network), folder / "unet" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    _write(folder / "unet" / "config.json", config)
    if scheduler is None:
        return
    (folder / "scheduler").mkdir(exist_ok=True)
    _write(folder / "scheduler" / "scheduler_config.json", scheduler)
    name = scheduler["_class_name"]
    if image_size and not network.num_classes and name in _PIPELINES:
        parts = {"scheduler": ["diffusers", name], "unet": ["diffusers", "UNet2DModel"]}
        _write(folder / "model_index.json", {"_class_name": _PIPELINES[name], **parts})


def ddim_scheduler(schedule: Discrete, prediction: Prediction) -> dict[str, Any]:
    """`DDIMScheduler` of the same noise levels, which are what the network is told, set as our `ddim` is unless told otherwise.

    Predicted data are clipped; that the noise is computed again from them, as ours is, is an argument of its `step` and of `DDIMPipeline`:
    `use_clipped_model_output=True`. Its steps are ours where their number divides that of the levels.

    Raises UserError for a prediction that it does not know.
    """
    if prediction not in _PREDICTIONS:
        raise UserError(f"prediction={prediction!r} has no scheduler in diffusers; a model of {', '.join(_PREDICTIONS)} can be exported")
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": schedule.levels,
        "trained_betas": schedule.betas.tolist(),
        "prediction_type": _PREDICTIONS[prediction],
        "timestep_spacing": "trailing",
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "set_alpha_to_one": True,
        "steps_offset": 0,
    }


def flow_scheduler() -> dict[str, Any]:
    """`FlowMatchEulerDiscreteScheduler` for a network that predicts `velocity` and is told 1000 t.

    N equal steps are its `set_timesteps(sigmas=linspace(1, 1 / N, N))`.
    """
    return {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}


def vp_scheduler(schedule: VariancePreserving) -> dict[str, Any]:
    """`ScoreSdeVpScheduler` for a network that predicts `eps`: its `step_pred(eps, x, t)` is a step of Euler-Maruyama, t from 1 down."""
    return {
        "_class_name": "ScoreSdeVpScheduler",
        "num_train_timesteps": 1000,
        "beta_min": schedule.beta_min,
        "beta_max": schedule.beta_max,
        "sampling_eps": schedule.start,
    }


def unet_config(network: UNet) -> dict[str, Any]:
    """The settings under which `UNet2DModel` computes what `network` computes; raises UserError where there are none."""
    if network.patch > 1:
        raise UserError(
            f"network.patch={network.patch} has no counterpart in diffusers: UNet2DModel cannot pack pixels into channels; export a model"
            " trained with network.patch=1"
        )
    down = ["AttnDownBlock2D" if attends else "DownBlock2D" for attends in network.attention]
    return {
        "_class_name": "UNet2DModel",
        "sample_size": None,
        "in_channels": network.image_channels,
        "out_channels": network.image_channels,
        "block_out_channels": list(network.widths),
        "layers_per_block": network.blocks,
        "down_block_types": down,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
        "attention_head_dim": network.head_width,
        "norm_num_groups": network.norm_out.num_groups,
        "norm_eps": network.norm_out.eps,
        "num_class_embeds": network.num_classes + 1 if network.num_classes else None,
        "dropout": network.residual_blocks()[0].dropout.rate,
        "time_embedding_type": "positional",
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "downsample_padding": 1,
        "act_fn": "silu",
    }


def unet_weights(network: UNet) -> dict[str, Tensor]:
    """`UNet2DModel`'s names; time and class are projected in each block there."""
    weights: dict[str, Tensor] = {}
    for ours, theirs in _NAMES.items():
        weights |= _layer(network.get_submodule(ours), theirs)
    if network.class_embedding is not None:
        weights |= _layer(network.class_embedding, "class_embedding")
    blocks = network.residual_blocks()
    outputs = [block.conv1.out_channels for block in blocks]
    shifts = zip(network.shift.weight.split(outputs), network.shift.bias.split(outputs), strict=True)
    for block, (place, number), (weight, bias) in zip(blocks, _places(network), shifts, strict=True):
        name = f"{place}.resnets.{number}"
        weights |= {f"{name}.time_emb_proj.weight": weight, f"{name}.time_emb_proj.bias": bias}
        weights |= _block(block, name, f"{place}.attentions.{number}")
    levels = len(network.widths)
    for level in range(levels - 1):
        weights |= _layer(network.shrink[level], f"down_blocks.{level}.downsamplers.0.conv")
        weights |= _layer(network.grow[level].get_submodule("conv"), f"up_blocks.{level}.upsamplers.0.conv")
    return {name: weight.detach().float().cpu().contiguous() for name, weight in weights.items()}


def _places(network: UNet) -> list[tuple[str, int]]:
    """The part of `UNet2DModel` and the number in it of each residual block."""
    levels = range(len(network.widths))
    down = [(f"down_blocks.{level}", number) for level in levels for number in range(network.blocks)]
    up = [(f"up_blocks.{level}", number) for level in levels for number in range(network.blocks + 1)]
    return [*down, ("mid_block", 0), ("mid_block", 1), *up]


def _block(block: ResidualBlock, name: str, attention_name: str) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for layer in ("norm1", "conv1", "norm2", "conv2"):
        weights |= _layer(block.get_submodule(layer), f"{name}.{layer}")
    weights |= _layer(block.shortcut, f"{name}.conv_shortcut")
    if isinstance(block.attention, Attention):
        weights |= _layer(block.attention.norm, f"{attention_name}.group_norm")
        weights |= _layer(block.attention.outward, f"{attention_name}.to_out.0")
        for kind, parameter in block.attention.inward.named_parameters():
            parts = zip("qkv", parameter.chunk(3), strict=True)
            weights |= {f"{attention_name}.to_{letter}.{kind}": part for letter, part in parts}
    return weights


def _layer(layer: Any, name: str) -> dict[str, Tensor]:
    return {f"{name}.{kind}": parameter for kind, parameter in layer.named_parameters()}


def _write(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
