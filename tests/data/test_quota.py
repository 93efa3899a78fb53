"""Turns are dealt out in the proportions asked for, to the turn, after any number of them."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixlab.data.quota import Quota

weights = st.lists(
    st.integers(1, 50) | st.floats(0.001, 100, allow_nan=False).map(lambda x: round(x, 3)),
    min_size=1,
    max_size=7,
)


@given(weights, st.integers(1, 150))
def test_nobody_is_ever_a_whole_turn_away_from_its_share(weights, n):
    quota = Quota(weights)
    exact = [Fraction(str(weight)) for weight in weights]
    for turn in range(1, n + 1):
        quota.next()
        assert sum(quota.turns) == turn
        for had, weight in zip(quota.turns, exact, strict=True):
            assert abs(had - turn * weight / sum(exact)) < 1


@given(weights, st.integers(0, 40), st.integers(1, 40))
def test_the_turns_are_all_the_state(weights, before, after):
    whole, resumed = Quota(weights), Quota(weights)
    for _ in range(before):
        whole.next()
    resumed.turns = list(whole.turns)
    assert [whole.next() for _ in range(after)] == [resumed.next() for _ in range(after)]


@pytest.mark.parametrize(
    ("weights", "order"),
    [
        ([3, 1], "00010001"),
        ([1, 1, 2], "20122012"),
        ([0.1, 0.2], "101101"),
        ([7], "000"),
        ([5, 3, 1], "010010102"),
    ],
)
def test_the_order_is_pinned(weights, order):
    """Changing it would make every saved mixture resume elsewhere."""
    quota = Quota(weights)
    assert "".join(str(quota.next()) for _ in order) == order
