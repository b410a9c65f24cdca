"""W1 between rows beside POT, charts of a run's record, and a critic trained alone beside the W1 that it must come to."""

from __future__ import annotations

import numpy as np
import ot
import pytest
import torch

from benchmarks.duality import SHIFT, train_critic
from components.evaluation.wasserstein import GRID, SHOWN, critic_plane, plane_chart, w1_chart, w1_of_features, w1_of_rows


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_rows_may_be_pictures() -> None:
    x, y = normal(30, 1, 4, 4), normal(30, 1, 4, 4, seed=1)
    costs = ot.dist(x.flatten(1).double().numpy(), y.flatten(1).double().numpy(), metric="euclidean")
    assert w1_of_rows(x, y) == pytest.approx(ot.emd2([], [], costs), abs=1e-10)


def test_with_classes_nothing_leaves_its_class() -> None:
    """The same as POT with a price on leaving that nothing pays."""
    x, y, labels = normal(60, 3), normal(60, 3, seed=1), torch.arange(60) % 7 % 3
    costs = torch.cdist(x.double(), y.double()).numpy() + 1e4 * (labels[:, None] != labels).numpy()
    assert w1_of_rows(x, y, labels) == pytest.approx(ot.emd2([], [], costs), abs=1e-9)
    assert w1_of_rows(x, y, labels) > w1_of_rows(x, y)


def test_features_stand_beside_other_real_ones() -> None:
    real = normal(400, 2)
    found = w1_of_features(normal(150, 2, seed=1) + torch.tensor([3.0, 4.0]), real)
    assert found["w1"] == pytest.approx(5.0, abs=0.3)
    assert 0 < found["w1_of_real"] < 0.5
    assert found["w1_of_real"] == w1_of_features(real[torch.linspace(0, 399, 300).long()][1::2], real)["w1"]


def test_the_plane_has_the_critics_scores_where_they_are() -> None:
    real, fake = normal(300, 2), normal(300, 2, seed=1) + 3
    scores = critic_plane(lambda x: x[:, 0] - 10 * x[:, 1], real, fake)
    (chart,) = plane_chart(scores)
    assert chart.field is not None
    np.testing.assert_allclose(chart.field.values, np.array(chart.field.x) - 10 * np.array(chart.field.y)[:, None], atol=1e-4)
    assert np.shape(chart.field.values) == (GRID, GRID)
    assert chart.field.x[0] < torch.cat([real, fake])[:, 0].min()
    assert chart.field.y[-1] > torch.cat([real, fake])[:, 1].max()
    assert [len(series.x) for series in chart.series] == [SHOWN, SHOWN]
    assert chart.series[1].y == tuple(fake[:SHOWN, 1].tolist())
    assert plane_chart({"critic_w1": 1.0}) == ()


def test_the_chart_over_steps_has_what_the_record_has() -> None:
    rows = [{"step": step, "critic_w1": 1.0 + step, "critic_slope": 0.5} for step in (20, 40)]
    assert w1_chart(rows) == ()
    rows[1] |= {"held_out.critic_w1": 3.0, "held_out.exact_w1": 2.5}
    (chart,) = w1_chart(rows)
    assert {series.name: (series.x, series.y) for series in chart.series} == {
        "critic, training rows": ((20, 40), (21, 41)),
        "critic over its slope": ((20, 40), (42, 82)),
        "critic, held-out rows": ((40,), (3,)),
        "exact, held-out rows": ((40,), (2.5,)),
    }
    for row in rows:
        del row["critic_slope"]  # without a penalty nobody measures it
    assert len(w1_chart(rows)[0].series) == 3


def test_a_critic_alone_comes_to_w1() -> None:
    """Two Gaussians 2 apart: a penalty of weight 10 lets slope and estimate go a tenth too far, but not their quotient."""
    family, (moment,) = train_critic(2, {"width": 32}, steps=250)
    assert [phase.name for phase in family.phases] == ["critic"]
    assert moment.estimate / moment.slope == pytest.approx(SHIFT, rel=0.05)
    assert moment.estimate == pytest.approx(SHIFT * (1 + SHIFT / 20), rel=0.1)
