"""The prior as a folder that Hugging Face's `GPT2LMHeadModel` opens: config, weights and generation settings.

Written without that library."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
from torch import Tensor

from components.networks.transformer import Transformer

_ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu": "relu"}
_NAMES = {
    "attention_norm": "ln_1",
    "attention_in": "attn.c_attn",
    "attention_out": "attn.c_proj",
    "forward_norm": "ln_2",
    "forward_in": "mlp.c_fc",
    "forward_out": "mlp.c_proj",
}


def write_gpt2(model: Transformer, folder: Path, code_count: int) -> None:
    """Writes `config.json`, `generation_config.json` and `model.safetensors`; tokens from `code_count` on are never generated."""
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(gpt2_weights(model), folder / "model.safetensors", metadata={"format": "pt"})
    vocabulary, length = model.token_embedding.num_embeddings, model.position_embedding.num_embeddings
    _write(folder / "config.json", gpt2_config(model))
    generation = {
        "do_sample": True,
        "max_new_tokens": length,
        "suppress_tokens": list(range(code_count, vocabulary)),
        "top_k": 0,
    }
    _write(folder / "generation_config.json", generation)


def gpt2_config(model: Transformer) -> dict[str, object]:
    """The settings under which GPT-2 computes what `model` computes."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": model.token_embedding.num_embeddings,
        "n_positions": model.position_embedding.num_embeddings,
        "n_embd": model.token_embedding.embedding_dim,
        "n_layer": len(model.blocks),
        "n_head": model.heads,
        "activation_function": _ACTIVATIONS[model.activation],
        "layer_norm_epsilon": model.norm.eps,
        "resid_pdrop": model.dropout.rate,
        "embd_pdrop": model.dropout.rate,
        "attn_pdrop": 0.0,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": "float32",
    }


def gpt2_weights(model: Transformer) -> dict[str, Tensor]:
    """GPT-2's names; its linear layers keep weights as (in, out). The head is the token embedding and not stored twice."""
    weights = {
        "transformer.wte.weight": model.token_embedding.weight,
        "transformer.wpe.weight": model.position_embedding.weight,
        "transformer.ln_f.weight": model.norm.weight,
        "transformer.ln_f.bias": model.norm.bias,
    }
    for number, block in enumerate(model.blocks):
        for name, parameter in block.named_parameters():
            layer, kind = name.split(".")
            weights[f"transformer.h.{number}.{_NAMES[layer]}.{kind}"] = parameter.T if parameter.ndim == 2 else parameter
    return {name: weight.detach().float().cpu().contiguous() for name, weight in weights.items()}


def _write(file: Path, value: dict[str, object]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
