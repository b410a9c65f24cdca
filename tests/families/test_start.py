"""A warm start: every family begins with the weights of an earlier model of its kind, child by child."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from components.data.dataset import Dataset
from components.errors import UserError
from components.families.catalogue import FAMILIES
from components.families.classifier import Classifier, ClassifierConfig
from components.families.contract import Family
from components.families.model_folder import load_model, save_model

SMALL = ClassifierConfig(widths=(4, 8), feature_dim=8)


@pytest.mark.parametrize("name", [name for name in sorted(FAMILIES) if name != "recognition"])  # whose class rows begin anew
def test_a_family_begins_with_every_weight_and_buffer(name: str, small_data_folders: dict[str, Path], tmp_path: Path) -> None:
    cls = FAMILIES[name]
    shape = Dataset.open(str(small_data_folders[cls.proof.data]), "train").shape
    config = cls.fit(cls.Config.parse(dict(cls.proof.model), "proof"), shape)
    torch.manual_seed(0)
    earlier, fresh = cls(config), cls(config)
    assert _differ(earlier, fresh)
    save_model(earlier, str(tmp_path / "model"))
    fresh.adopt("start", load_model(str(tmp_path / "model")))
    assert not _differ(earlier, fresh)
    assert all(value.requires_grad for value in fresh.parameters())


def test_a_head_for_other_classes_begins_anew(caplog: pytest.LogCaptureFixture) -> None:
    earlier, fresh = Classifier(SMALL), Classifier(SMALL.model_copy(update={"num_classes": 12}))
    head = fresh.head.weight.clone()
    with caplog.at_level(logging.WARNING):
        fresh.adopt("start", earlier)
    assert torch.equal(fresh.head.weight, head)
    assert torch.equal(fresh.hidden.weight, earlier.hidden.weight)
    assert "head of the start has another shape" in caplog.text


def test_what_cannot_be_a_start() -> None:
    with pytest.raises(UserError, match="no part of it has the shapes"):
        Classifier(SMALL).adopt("start", Classifier(ClassifierConfig(widths=(6, 12), feature_dim=12, num_classes=3)))
    with pytest.raises(UserError, match="start is a VQVAE, expected a Classifier"):
        Classifier(SMALL).adopt("start", FAMILIES["vqvae"](FAMILIES["vqvae"].Config()))
    with pytest.raises(UserError, match="no use for a model named 'teacher'"):
        Classifier(SMALL).adopt("teacher", Classifier(SMALL))


def _differ(a: Family, b: Family) -> bool:
    return any(not torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())
