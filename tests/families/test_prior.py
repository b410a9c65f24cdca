"""The prior: what its loss counts, what decides its samples, and its Hugging Face form."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2LMHeadModel

from components.errors import UserError
from components.families.contract import Column, DataShape, Family
from components.families.prior import Prior, PriorConfig, PriorSampler
from components.families.vqvae import VQVAE
from components.training.communication import Communication
from components.training.context import Context
from components.training.randomness import Draws

K, CLASSES, GRID = 11, 3, (2, 3)
LENGTH = GRID[0] * GRID[1]


def make_prior(**changes: object) -> Prior:
    """A small prior whose weights are large enough that condition and codes matter."""
    torch.manual_seed(0)
    values = {"code_count": K, "num_classes": CLASSES, "grid": GRID, "layers": 2, "heads": 2, "width": 16} | changes
    prior = Prior(PriorConfig.parse(values, "test"))
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return prior.eval()


def sampler(**values: object) -> PriorSampler:
    return PriorSampler.parse(values, "test")


def context(rows: int, step: int = 0, first_row: int = 0) -> Context:
    return Context(step, "prior", Draws(0, step, "prior", first_row, torch.device("cpu")), rows, rows, Communication())


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {"codes": torch.randint(K, (16, *GRID), generator=generator), "label": torch.randint(CLASSES, (16,), generator=generator)}


def nats_one_by_one(prior: Prior, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """-log p of every code (B, L), each from a forward pass over its own prefix: no target can be seen, none is counted twice."""
    codes = batch["codes"].flatten(1)
    sequence = torch.cat([K + batch["label"][:, None], codes], 1)
    columns = []
    for i in range(LENGTH):
        hidden = prior.transformer(sequence[:, : i + 1])[:, -1]
        log_p = (hidden @ prior.transformer.token_embedding.weight[:K].T).log_softmax(-1)
        columns.append(-log_p.gather(1, codes[:, i : i + 1])[:, 0])
    return torch.stack(columns, 1)


@torch.no_grad()
def test_loss_is_the_mean_over_exactly_the_codes(batch: dict[str, torch.Tensor]) -> None:
    prior = make_prior()
    expected = nats_one_by_one(prior, batch)
    assert prior.loss("prior", batch, context(16)).loss.item() == pytest.approx(expected.mean().item(), abs=1e-5)
    scores = prior.evaluate(batch, context(16))
    assert scores["bits_per_code"][1] == 16 * LENGTH
    assert scores["bits_per_image"][1] == 16
    for total, _ in scores.values():
        assert total.item() == pytest.approx(expected.sum().item() / math.log(2), rel=1e-5)


@torch.no_grad()
def test_an_untrained_head_of_zeros_is_uniform_over_codes(batch: dict[str, torch.Tensor]) -> None:
    prior = make_prior()
    prior.transformer.token_embedding.weight.zero_()
    assert prior.loss("prior", batch, context(16)).loss.item() == pytest.approx(math.log(K), abs=1e-6)


@torch.no_grad()
def test_first_code_depends_on_the_condition_alone(batch: dict[str, torch.Tensor]) -> None:
    prior = make_prior()
    codes, labels = batch["codes"].flatten(1), K + batch["label"]
    logits = prior._logits(prior._inputs(codes, labels, None), None)
    other_codes = prior._logits(prior._inputs((codes + 1) % K, labels, None), None)
    other_label = prior._logits(prior._inputs(codes, K + (batch["label"] + 1) % CLASSES, None), None)
    assert torch.equal(logits[:, 0], other_codes[:, 0])
    assert (logits[:, 0] != other_label[:, 0]).any(-1).all()


def test_integer_columns_of_any_width_give_the_same_loss(batch: dict[str, torch.Tensor]) -> None:
    prior = make_prior()
    losses = {prior.loss("prior", {**batch, "codes": batch["codes"].to(d)}, context(16)).loss.item() for d in (torch.uint8, torch.uint16)}
    assert losses == {prior.loss("prior", batch, context(16)).loss.item()}


def test_condition_dropout_and_pkeep_replace_their_share(batch: dict[str, torch.Tensor]) -> None:
    prior = make_prior(condition_dropout=0.25, pkeep=0.6, code_count=200)
    rows = 4000
    codes, labels = torch.zeros(rows, LENGTH, dtype=torch.long), torch.full((rows,), 201)
    tokens = prior._inputs(codes, labels, context(rows).random)
    assert tokens[:, 0].unique().tolist() == [201, 203]
    assert (tokens[:, 0] == 203).double().mean().item() == pytest.approx(0.25, abs=0.03)
    assert (tokens[:, 1:] == 0).double().mean().item() == pytest.approx(0.6 + 0.4 / 200, abs=0.02)
    assert tokens[:, 1:].max() < 200
    assert torch.equal(prior._inputs(codes, labels, None), torch.cat([labels[:, None], codes[:, :-1]], 1))


def test_training_loss_is_a_function_of_the_rows_and_not_of_the_split(batch: dict[str, torch.Tensor]) -> None:
    prior = make_prior(dropout=0.3, pkeep=0.8, condition_dropout=0.3).train()
    whole = prior.loss("prior", batch, context(16)).loss
    first = prior.loss("prior", {k: v[:8] for k, v in batch.items()}, context(8)).loss
    last = prior.loss("prior", {k: v[8:] for k, v in batch.items()}, context(8, first_row=8)).loss
    assert whole.item() == pytest.approx((first.item() + last.item()) / 2, abs=1e-6)
    assert whole.item() != prior.loss("prior", batch, context(16, step=1)).loss.item()
    assert whole.item() != prior.eval().loss("prior", batch, context(16)).loss.item()


@torch.no_grad()
def greedy_reference(prior: Prior, condition: int) -> list[int]:
    """Greedy codes without cache."""
    codes: list[int] = []
    for _ in range(LENGTH):
        hidden = prior.transformer(torch.tensor([[condition, *codes]]))[0, -1]
        codes.append(int((prior.transformer.token_embedding.weight[:K] @ hidden).argmax()))
    return codes


def test_top_one_is_greedy_decoding_without_cache() -> None:
    prior = make_prior()
    drawn = prior.sample(2 * CLASSES, 0, sampler(top_k=1)).flatten(1).tolist()
    assert drawn == [greedy_reference(prior, K + label) for label in (0, 1, 2, 0, 1, 2)]
    assert prior.sample(1, 0, sampler(top_k=1, label=2)).flatten().tolist() == greedy_reference(prior, K + 2)
    assert prior.sample(1, 0, sampler(top_k=1, label=2, guidance=0)).flatten().tolist() == greedy_reference(prior, K + CLASSES)


def test_samples_follow_the_models_distribution() -> None:
    prior = make_prior(code_count=4, grid=(1, 2))
    count = 20_000
    drawn = prior.sample(count, 3, sampler(label=1, temperature=1.3)).flatten(1)
    with torch.no_grad():
        sequences = torch.cartesian_prod(torch.tensor([5]), torch.arange(4))
        log_p = (prior._logits(sequences, None) / 1.3).log_softmax(-1)
    joint = log_p[0, 0].exp()[:, None] * log_p[:, 1].exp()
    seen = torch.bincount(4 * drawn[:, 0] + drawn[:, 1], minlength=16).view(4, 4) / count
    assert (seen - joint).abs().max() < 0.015
    assert (joint - joint.mean()).abs().max() > 0.05  # or the line above would say little


@pytest.mark.parametrize("options", [{}, {"guidance": 2.0}, {"top_p": 0.9, "temperature": 0.8, "top_k": 7}])
def test_samples_depend_on_seed_and_row_and_not_on_the_batch(options: dict[str, float]) -> None:
    prior = make_prior()
    whole = prior.sample(20, 4, sampler(**options))
    assert whole.shape == (20, *GRID)
    assert whole.dtype == torch.int64
    assert torch.equal(whole, prior.sample(20, 4, sampler(batch_size=3, **options)))
    assert torch.equal(whole[:9], prior.sample(9, 4, sampler(**options)))
    assert not torch.equal(whole, prior.sample(20, 5, sampler(**options)))


def test_guidance_one_is_no_guidance_and_more_sharpens_the_class() -> None:
    prior = make_prior(grid=(1, 1))
    plain = prior.sample(3000, 0, sampler(label=0))
    nearly = prior.sample(3000, 0, sampler(label=0, guidance=1.000001))
    assert (plain == nearly).double().mean() > 0.999
    with torch.no_grad():
        scores = prior._logits(torch.tensor([[K], [K + CLASSES]]), None)[:, 0].log_softmax(-1)
    strong = prior.sample(3000, 0, sampler(label=0, guidance=3.0))
    expected = (scores[1] + 3 * (scores[0] - scores[1])).softmax(-1)
    seen = torch.bincount(strong.flatten(), minlength=K) / 3000
    assert (seen - expected).abs().max() < 0.04


def test_samples_train_a_model_again() -> None:
    prior = make_prior().train()
    codes = prior.sample(3, 0, sampler())
    prior.loss("prior", {"codes": codes, "label": torch.arange(3)}, context(3)).loss.backward()
    assert prior.transformer.token_embedding.weight.grad is not None


@pytest.mark.parametrize(("values", "culprit"), [({"label": 3}, "label=3"), ({"top_k": 12}, "top_k=12")])
def test_sampler_options_that_the_model_lacks_are_refused(values: dict[str, int], culprit: str) -> None:
    with pytest.raises(UserError, match=culprit):
        make_prior().sample(1, 0, sampler(**values))


def test_guidance_without_a_trained_null_class_is_refused() -> None:
    with pytest.raises(UserError, match=r"guidance=2\.0 needs"):
        make_prior(condition_dropout=0).sample(1, 0, sampler(guidance=2))


@pytest.mark.parametrize(("column", "value"), [("codes", K), ("label", CLASSES), ("codes", -1)])
def test_values_outside_the_vocabulary_are_refused(batch: dict[str, torch.Tensor], column: str, value: int) -> None:
    batch[column].view(-1)[2] = value
    for use in (lambda p: p.loss("prior", batch, context(16)), lambda p: p.evaluate(batch, context(16))):
        with pytest.raises(UserError, match=f"{column!r} holds {value}"):
            use(make_prior())


def test_without_classes_the_null_token_stands_first() -> None:
    shape = DataShape(columns={"codes": Column(dtype="uint8", shape=GRID)})
    config = Prior.fit(PriorConfig(code_count=K, layers=1, heads=1, width=8), shape)
    assert isinstance(config, PriorConfig)
    assert (config.num_classes, config.grid, config.condition_dropout, config.vocabulary) == (0, GRID, 0.0, K + 1)
    prior = Prior(config)
    assert prior._inputs(torch.zeros(1, LENGTH, dtype=torch.long), *prior._read({"codes": torch.zeros(1, *GRID)})[1:], None)[0, 0] == K
    assert prior.sample(4, 0, sampler()).shape == (4, *GRID)


def test_fit_takes_grid_and_classes_from_the_data() -> None:
    columns = {"codes": Column(dtype="int32", shape=GRID), "label": Column(dtype="int64")}
    config = Prior.fit(PriorConfig(code_count=K), DataShape(columns=columns, class_names=("a", "b", "c")))
    assert isinstance(config, PriorConfig)
    assert (config.grid, config.num_classes, config.code_count) == (GRID, 3, K)


@pytest.mark.parametrize(
    ("columns", "culprit"),
    [
        ({"image": Column(dtype="uint8", shape=(1, 4, 4))}, "image"),
        ({"codes": Column(dtype="float32", shape=GRID)}, "float32"),
        ({"codes": Column(dtype="uint8", shape=(6,))}, r"\(6,\)"),
    ],
)
def test_fit_refuses_data_that_holds_no_grids_of_codes(columns: dict[str, Column], culprit: str) -> None:
    with pytest.raises(UserError, match=culprit):
        Prior.fit(PriorConfig(), DataShape(columns=columns))


def test_impossible_shapes_are_refused() -> None:
    for values in ({"width": 10, "heads": 3}, {"grid": (0, 3)}, {"num_classes": 0}, {"dropout": 1.0}, {"pkeep": 0.0}):
        with pytest.raises(UserError):
            PriorConfig.parse(values, "test")


def tokenizer(num_codes: int = K) -> Family:
    torch.manual_seed(0)
    values = {"num_codes": num_codes, "image_size": (8, 12), "encoder_widths": (4, 4), "decoder_widths": (4, 4), "code_dim": 4}
    return VQVAE(VQVAE.Config.parse(values, "test"))


def test_an_adopted_tokenizer_decodes_and_is_neither_trained_nor_saved() -> None:
    prior, model = make_prior(), tokenizer()
    before = set(prior.state_dict())
    with pytest.raises(UserError, match="no tokenizer"):
        prior.decode(prior.sample(2, 0, sampler()))
    prior.adopt("tokenizer", model)
    codes = prior.sample(2, 0, sampler())
    assert torch.equal(prior.decode(codes), model.decode(codes))
    assert prior.decode(codes).shape == (2, 1, 8, 12)
    assert set(prior.state_dict()) == before
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_tokenizer_of_other_codes_is_refused() -> None:
    with pytest.raises(UserError, match="12 codes"):
        make_prior().adopt("tokenizer", tokenizer(num_codes=12))
    with pytest.raises(UserError, match="teacher"):
        make_prior().adopt("teacher", tokenizer())


@torch.no_grad()
@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu", "relu"])
def test_export_opens_in_transformers_with_equal_logits(tmp_path: Path, batch: dict[str, torch.Tensor], activation: str) -> None:
    prior = make_prior(activation=activation)
    prior.export(tmp_path)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    tokens = prior._inputs(batch["codes"].flatten(1), K + batch["label"], None)
    full = prior.transformer.logits(prior.transformer(tokens))
    assert full.shape[-1] == K + CLASSES + 1
    assert torch.allclose(theirs(tokens).logits, full, atol=1e-5)
    assert torch.allclose(theirs(tokens).logits[..., :K], prior._logits(tokens, None), atol=1e-5)
    assert F.cross_entropy(theirs(tokens).logits[..., :K].flatten(0, 1), batch["codes"].flatten()).item() == pytest.approx(
        prior.loss("prior", batch, context(16)).loss.item(), abs=1e-5
    )


@torch.no_grad()
def test_exported_folder_generates_the_same_greedy_codes(tmp_path: Path) -> None:
    prior = make_prior()
    prior.export(tmp_path)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path)
    conditions = torch.arange(K, K + CLASSES)[:, None]
    generated = theirs.generate(conditions, attention_mask=torch.ones_like(conditions), do_sample=False)
    assert generated[:, 1:].tolist() == prior.sample(CLASSES, 0, sampler(top_k=1)).flatten(1).tolist()
    drawn = theirs.generate(conditions, attention_mask=torch.ones_like(conditions))
    assert drawn.shape == (CLASSES, 1 + LENGTH)
    assert drawn[:, 1:].max() < K
