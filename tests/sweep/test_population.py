"""Who copies whom and with what values: the rules by hand, bounds over many draws, and nothing but the seed decides."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from components.sweep.population import changed_values, copied_members
from components.sweep.space import Space

LR, DROPOUT, COUNT = "train.optimizer.lr", "model.dropout", "model.count"
SPACES = {
    LR: Space(log=(1e-4, 1e-1)),
    DROPOUT: Space(uniform=(0.0, 0.5)),
    COUNT: Space(integer=(1, 6)),
}
VALUES = {LR: 1e-2, DROPOUT: 0.2, COUNT: 3}
FACTORS = (0.8, 1.25)


def test_the_bottom_quantile_copies_one_of_the_top() -> None:
    scores = [0.5, 0.9, 0.1, 0.8, 0.3, 0.7, 0.2, 0.6]
    chosen = [copied_members(scores, "max", 0.25, seed, 1) for seed in range(40)]
    for copied in chosen:
        assert [number for number, source in enumerate(copied) if source is not None] == [2, 6]
    assert {copied[2] for copied in chosen} == {1, 3}
    turned = copied_members([-score for score in scores], "min", 0.25, 0, 1)
    assert turned == copied_members(scores, "max", 0.25, 0, 1)


def test_each_member_and_generation_chooses_for_itself() -> None:
    scores = [float(number) for number in range(40)]
    first, again, later = (copied_members(scores, "min", 0.5, 3, generation) for generation in (1, 1, 2))
    assert first == again
    assert first != later
    chosen = Counter(source for source in first if source is not None)
    assert sum(chosen.values()) == 20
    assert set(chosen) <= set(range(20))
    assert len(chosen) > 5


def test_of_equals_the_first_is_better_and_there_is_always_one_that_copies() -> None:
    assert copied_members([1.0] * 4, "max", 0.01, 0, 1) == [None, None, None, 0]


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_who_has_no_score_copies_however_many_they_are(lost: float) -> None:
    assert copied_members([lost, 0.2, lost, lost], "max", 0.25, 0, 1) == [1, None, 1, 1]
    assert copied_members([lost, 0.2, lost, lost], "max", 0.5, 0, 1) == [1, None, 1, 1]
    with pytest.raises(ValueError, match="none of 2"):
        copied_members([lost, lost], "max", 0.25, 0, 1)


def test_values_are_multiplied_or_drawn_anew_and_never_leave_their_space() -> None:
    resampled = 0
    for member in range(400):
        drawn = changed_values(SPACES, VALUES, FACTORS, 0.25, (0, 1, member), lambda values: True)
        assert all(SPACES[key].low <= drawn[key] <= SPACES[key].high for key in SPACES)
        assert isinstance(drawn[COUNT], int)
        assert drawn[COUNT] in range(1, 7)
        resampled += not any(math.isclose(drawn[LR], VALUES[LR] * factor) for factor in FACTORS)
    assert 60 < resampled < 140  # of 400 draws at 0.25: five standard deviations are 43


def test_without_resampling_values_are_the_products_clipped() -> None:
    seen = set()
    for member in range(50):
        drawn = changed_values(SPACES, {LR: 0.09, DROPOUT: 0.2, COUNT: 4}, FACTORS, 0.0, (0, 1, member), lambda values: True)
        seen.add((drawn[LR], drawn[DROPOUT], drawn[COUNT]))
    assert seen == {(lr, dropout, count) for lr in (0.072, 0.1) for dropout in (0.16, 0.25) for count in (3, 5)}


def test_another_key_more_changes_none_of_the_others() -> None:
    both = changed_values(SPACES, VALUES, FACTORS, 0.25, (0, 2, 3), lambda values: True)
    alone = changed_values({LR: SPACES[LR]}, {LR: VALUES[LR]}, FACTORS, 0.25, (0, 2, 3), lambda values: True)
    assert alone[LR] == both[LR]


def test_values_that_do_not_go_together_are_drawn_again_or_stay() -> None:
    drawn = changed_values(SPACES, VALUES, FACTORS, 0.0, (0, 1, 0), lambda values: values[LR] > VALUES[LR])
    assert drawn[LR] == 0.0125
    assert changed_values(SPACES, VALUES, FACTORS, 0.0, (0, 1, 0), lambda values: False) == VALUES
