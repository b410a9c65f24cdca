"""The Transformer beside transformers' GPT-2, its cache, its dropout, its tied matrix."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from components.families.contract import OptimizerConfig
from components.networks.dropout import Dropout
from components.networks.transformer import Transformer
from components.training.optimization import make_optimizer
from components.training.randomness import Draws

VOCABULARY, LENGTH, LAYERS, HEADS, WIDTH = 23, 9, 3, 4, 32
CPU = torch.device("cpu")


@pytest.fixture
def model() -> Transformer:
    """Small, with weights large enough that every part moves the logits."""
    torch.manual_seed(0)
    model = Transformer(VOCABULARY, LENGTH, LAYERS, HEADS, WIDTH, dropout=0.2).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(VOCABULARY, (5, LENGTH), generator=torch.Generator().manual_seed(1))


def draws(step: int = 0, first_row: int = 0) -> Draws:
    return Draws(0, step, "prior", first_row, CPU)


@torch.no_grad()
@pytest.mark.parametrize(("ours", "theirs"), [("gelu_tanh", "gelu_new"), ("gelu", "gelu"), ("relu", "relu")])
def test_gpt2_weights_copied_in_give_gpt2_logits(tokens: torch.Tensor, ours: str, theirs: str) -> None:
    torch.manual_seed(2)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, activation_function=theirs)
    gpt2 = GPT2LMHeadModel(config).eval()
    for parameter in gpt2.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    model = Transformer(VOCABULARY, LENGTH, LAYERS, HEADS, WIDTH, activation=ours)  # type: ignore[arg-type]
    source = gpt2.transformer
    pairs: list[tuple[nn.Module, nn.Module]] = [
        (model.token_embedding, source.wte),
        (model.position_embedding, source.wpe),
        (model.norm, source.ln_f),
    ]
    for block, layer in zip(model.blocks, source.h, strict=True):
        pairs += [(block.attention_norm, layer.ln_1), (block.attention_in, layer.attn.c_attn), (block.attention_out, layer.attn.c_proj)]
        pairs += [(block.forward_norm, layer.ln_2), (block.forward_in, layer.mlp.c_fc), (block.forward_out, layer.mlp.c_proj)]
    for mine, other in pairs:
        for name, parameter in mine.named_parameters():
            value = other.get_parameter(name)
            parameter.copy_(value.T if isinstance(mine, nn.Linear) and name == "weight" else value)
    assert torch.allclose(model.logits(model(tokens)), gpt2(tokens).logits, atol=1e-5)


@torch.no_grad()
def test_a_changed_token_changes_no_bit_before_it(model: Transformer, tokens: torch.Tensor) -> None:
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % VOCABULARY
    before, after = model.logits(model(tokens)), model.logits(model(changed))
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).any(-1).all()


@torch.no_grad()
def test_cached_steps_equal_the_whole_sequence(model: Transformer, tokens: torch.Tensor) -> None:
    cache = model.new_cache(len(tokens)).fill_(torch.nan)
    steps = torch.stack([model.step(tokens[:, i], i, cache) for i in range(LENGTH)], 1)
    assert torch.allclose(model.logits(steps), model.logits(model(tokens)), atol=1e-5)


def test_first_logits_are_those_of_the_first_tokens(model: Transformer) -> None:
    hidden = torch.randn(2, WIDTH)
    assert torch.allclose(model.logits(hidden, 7), model.logits(hidden)[:, :7], atol=1e-6)


@pytest.mark.parametrize(("width", "spread"), [(768, 0.02), (192, 0.04)])
def test_initial_weights_have_the_spread_of_gpt2_at_its_width(width: int, spread: float) -> None:
    torch.manual_seed(0)
    model = Transformer(500, 64, 4, 4, width)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            expected = spread / math.sqrt(2 * 4) if name.endswith("_out.weight") else spread
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
        else:
            assert (parameter == (0 if name.endswith("bias") else 1)).all(), name


def test_tied_matrix_gets_the_gradient_of_both_uses_and_one_optimizer_entry(model: Transformer, tokens: torch.Tensor) -> None:
    model.logits(model(tokens)).square().sum().backward()
    tied = model.token_embedding.weight
    assert tied.grad is not None
    as_input, as_head = (tied.detach().clone().requires_grad_() for _ in range(2))
    x = F.embedding(tokens, as_input) + model.position_embedding.weight
    for block in model.blocks:
        x = block(x)
    F.linear(model.norm(x), as_head).square().sum().backward()
    assert as_input.grad is not None
    assert as_head.grad is not None
    assert as_input.grad.abs().max() > 0
    assert torch.allclose(tied.grad, as_input.grad + as_head.grad, rtol=1e-5, atol=1e-4)
    optimizer = make_optimizer(dict(model.named_parameters()), OptimizerConfig())
    owned = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert sum(parameter is tied for parameter in owned) == 1
    assert [name for name in model.state_dict() if "head" in name] == []  # one matrix is saved, so the tie cannot break


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    x = torch.ones(64, 50, 100)
    dropped = Dropout(0.25, "layer")(x, draws())
    assert dropped.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert (dropped == 0).double().mean().item() == pytest.approx(0.25, abs=0.005)


def test_dropout_of_a_row_does_not_depend_on_who_computes_it() -> None:
    layer, x = Dropout(0.5, "layer"), torch.randn(32, 5, 7)
    whole = layer(x, draws())
    assert torch.equal(whole, torch.cat([layer(x[:8], draws()), layer(x[8:], draws(first_row=8))]))
    assert not torch.equal(whole[:8] == 0, whole[8:16] == 0)
    assert not torch.equal(whole, layer(x, draws(step=1)))
    assert not torch.equal(whole, Dropout(0.5, "another")(x, draws()))


def test_dropout_leaves_everything_without_draws_or_rate() -> None:
    x = torch.randn(4, 3)
    assert Dropout(0.5, "layer")(x, None) is x
    assert Dropout(0.0, "layer")(x, draws()) is x


def test_every_dropout_has_its_own_name(model: Transformer, tokens: torch.Tensor) -> None:
    names = [module.name for module in model.modules() if isinstance(module, Dropout)]
    assert len(names) == len(set(names)) == 1 + 2 * LAYERS
    assert not torch.equal(model(tokens, draws()), model(tokens))
    state = torch.get_rng_state()
    assert torch.equal(model(tokens, draws()), model(tokens, draws()))
    assert torch.equal(torch.get_rng_state(), state)
