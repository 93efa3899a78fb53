"""Sampling keeps exactly what it says it keeps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixlab.decode import sample_next
from mixlab.decode.sampling import truncate
from mixlab.errors import RunFailed, UserError


def kept(logits: list[float], top_k: int | None = None, top_p: float | None = None) -> list[int]:
    return truncate(torch.tensor([logits]), top_k, top_p)[0].isfinite().nonzero().flatten().tolist()


def test_temperature_zero_takes_the_likeliest_and_of_equals_the_first() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0], [5.0, -math.inf, 5.0]])
    assert sample_next(logits, temperature=0).tolist() == [1, 0]


def test_top_k_keeps_exactly_k_even_among_equals() -> None:
    assert kept([1.0, 1.0, 1.0, 1.0], top_k=2) == [0, 1]
    assert kept([0.0, 2.0, 1.0, 2.0], top_k=3) == [1, 2, 3]
    assert kept([0.0, 2.0], top_k=50) == [0, 1]


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    logits = [math.log(p) for p in (0.1, 0.5, 0.25, 0.15)]
    assert kept(logits, top_p=0.5) == [1]
    assert kept(logits, top_p=0.51) == [1, 2]
    assert kept(logits, top_p=0.75) == [1, 2]
    assert kept(logits, top_p=0.76) == [1, 2, 3]
    assert kept(logits, top_p=1e-9) == [1]
    assert kept([1.0] * 4, top_p=0.5) == [0, 1]


def test_top_p_counts_within_what_top_k_left() -> None:
    logits = [math.log(p) for p in (0.4, 0.3, 0.2, 0.1)]
    # Of {0.4, 0.3}, renormalised to {0.571, 0.429}: the first alone reaches 0.55, though 0.4 < 0.55.
    assert kept(logits, top_k=2, top_p=0.55) == [0]
    assert kept(logits, top_p=0.55) == [0, 1]


@settings(max_examples=60)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=12),
    st.floats(0, 5),
    st.none() | st.integers(1, 15),
    st.none() | st.floats(0.01, 1),
)
def test_a_drawn_token_is_always_among_the_kept(
    logits: list[float], temperature: float, top_k: int | None, top_p: float | None
) -> None:
    drawn = sample_next(torch.tensor([logits] * 5), temperature=temperature, top_k=top_k, top_p=top_p)
    scaled = torch.tensor([logits], dtype=torch.float64) - max(logits)
    allowed = truncate(scaled / temperature if temperature else scaled, top_k, top_p)[0].isfinite()
    assert drawn.dtype == torch.int64
    assert allowed[drawn].all()


def test_frequencies_are_the_softmax_of_the_scaled_logits() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0])
    drawn = sample_next(logits.expand(40_000, 3), temperature=2.0, generator=torch.Generator().manual_seed(0))
    frequency = torch.bincount(drawn, minlength=3) / len(drawn)
    # Three standard errors of a proportion near 1/2 over 40,000 draws.
    assert torch.allclose(frequency, (logits / 2).softmax(-1), atol=3 * 0.5 / 200)


def test_a_tiny_temperature_is_greedy_and_not_nan() -> None:
    logits = torch.tensor([[3e4, 3e4 - 1, -math.inf, -3e4]])
    assert sample_next(logits, temperature=1e-30).item() == 0


def test_an_impossible_token_is_never_drawn() -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf]]).expand(100, 3)
    assert (sample_next(logits, temperature=100.0) == 1).all()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"temperature": -0.1}, "temperature -0.1 is out of range"),
        ({"temperature": math.nan}, "temperature nan is out of range"),
        ({"temperature": math.inf}, "temperature inf is out of range"),
        ({"top_k": 0}, "top-k 0 is out of range"),
        ({"top_p": 0.0}, "top-p 0.0 is out of range"),
        ({"top_p": 1.5}, "top-p 1.5 is out of range"),
        ({"top_p": math.nan}, "top-p nan is out of range"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        sample_next(torch.zeros(1, 4), **settings)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_fail_the_run(bad: float) -> None:
    with pytest.raises(RunFailed, match="not finite"):
        sample_next(torch.tensor([[0.0, bad]]))
    with pytest.raises(RunFailed, match="not finite"):
        sample_next(torch.full((1, 3), -math.inf))
