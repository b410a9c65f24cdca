"""The classifier's features, its scores beside hand counts, and augmentation that does not depend on the number of workers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from components.errors import UserError
from components.families.classifier import Classifier, ClassifierConfig
from components.families.contract import Column, DataShape
from components.training.communication import Communication
from components.training.context import Context
from components.training.randomness import Draws
from tests.small_data import shipped_images

IMAGE = Column(dtype="uint8", shape=(1, 28, 28))
LABEL = Column(dtype="int64")


def batch(rows: int = 24) -> dict[str, Tensor]:
    images, labels = shipped_images("train", rows)
    return {"image": torch.from_numpy(images.copy()), "label": torch.from_numpy(labels)}


def context(rows: int = 24, first: int = 0) -> Context:
    return Context(3, "classifier", Draws(0, 3, "classifier", first, torch.device("cpu")), rows, 24, Communication())


def model(**changes: object) -> Classifier:
    torch.manual_seed(0)
    return Classifier(ClassifierConfig.parse({"widths": (4, 8), **changes}, "test"))


def test_features_are_the_last_hidden_layer_after_its_relu() -> None:
    family, x = model().eval(), batch()["image"].float() / 255
    features = family.features(x)
    assert features.shape == (24, 128)
    assert features.min() == 0
    torch.testing.assert_close(family.logits(x), features @ family.head.weight.T + family.head.bias)


def test_scores_are_hand_counts() -> None:
    family, data = model().eval(), batch()
    scores = family.finish(family.evaluate(data, context()), {})
    logits = family.logits(data["image"].float() / 255).double()
    right = sum(int(row.argmax()) == label for row, label in zip(logits, data["label"].tolist(), strict=True))
    assert scores["accuracy"] == right / 24
    assert scores["nll"] == pytest.approx(-logits.log_softmax(1)[torch.arange(24), data["label"]].mean().item(), rel=1e-6)


@pytest.mark.parametrize("settings", [{"flip": True}, {"shift": 2}, {"dropout": 0.4}, {"flip": True, "shift": 1, "dropout": 0.1}])
def test_random_changes_belong_to_rows_and_not_to_workers(settings: dict[str, object]) -> None:
    family, data = model(**settings), batch()
    whole = family.loss("classifier", data, context())
    again = family.loss("classifier", data, context())
    parts = [
        family.loss("classifier", {name: column[a:b] for name, column in data.items()}, context(b - a, a)).loss * (b - a) / 24
        for a, b in ((0, 8), (8, 24))
    ]
    assert torch.equal(whole.loss, again.loss)
    torch.testing.assert_close(sum(parts), whole.loss, atol=1e-6, rtol=0)
    plain = F.cross_entropy(family.logits(data["image"].float() / 255), data["label"])
    assert abs(plain - whole.loss) > 1e-5


def test_fit_takes_shape_and_classes_from_the_data() -> None:
    data = DataShape(columns={"image": IMAGE, "label": LABEL}, class_names=("a", "b", "c"))
    config = Classifier.fit(ClassifierConfig(), data)
    assert (config.image_channels, config.image_size, config.num_classes) == (1, (28, 28), 3)
    with pytest.raises(UserError, match="labelled pictures"):
        Classifier.fit(ClassifierConfig(), DataShape(columns={"image": IMAGE}))
    small = DataShape(columns={"image": Column(dtype="uint8", shape=(1, 3, 28)), "label": LABEL}, class_names=("a", "b"))
    with pytest.raises(UserError, match="cannot be halved 2 times"):
        Classifier.fit(ClassifierConfig(), small)
