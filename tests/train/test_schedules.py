from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixlab.train.config import ScheduleConfig
from mixlab.train.schedules import lr_factor

KINDS = ("cosine", "wsd", "constant")
kinds = st.sampled_from(KINDS)
fraction = st.floats(0, 0.5)


@given(kinds, fraction, st.floats(0.01, 0.5), st.floats(0, 1), st.floats(-0.5, 1.5))
def test_the_factor_is_a_fraction_whatever_the_progress(kind, warmup, decay, final, progress):
    factor = lr_factor(ScheduleConfig(kind=kind, warmup=warmup, decay=decay, final=final), progress)
    assert 0 <= factor <= 1 + 1e-12


@given(kinds, st.floats(0.01, 0.5))
def test_warm_up_is_linear_to_the_peak(kind, warmup):
    config = ScheduleConfig(kind=kind, warmup=warmup, final=0.3)
    assert lr_factor(config, warmup / 4) == pytest.approx(0.25)
    assert lr_factor(config, warmup) == pytest.approx(1.0)


@given(kinds, fraction, st.floats(0, 1))
def test_after_the_peak_the_factor_never_rises(kind, warmup, final):
    config = ScheduleConfig(kind=kind, warmup=warmup, final=final)
    values = [lr_factor(config, warmup + (1 - warmup) * i / 50) for i in range(51)]
    assert all(b <= a + 1e-12 for a, b in pairwise(values))
    assert values[-1] == pytest.approx(1.0 if kind == "constant" else final)


def test_wsd_holds_the_peak_until_its_decay():
    config = ScheduleConfig(kind="wsd", warmup=0.1, decay=0.2, final=0.0)
    assert lr_factor(config, 0.8) == 1.0
    assert lr_factor(config, 0.85) == pytest.approx(0.5)  # 1 - sqrt(1/4)
    assert lr_factor(config, 1.0) == 0.0


def test_cosine_is_half_way_down_in_the_middle():
    assert lr_factor(ScheduleConfig(kind="cosine", warmup=0.2, final=0.0), 0.6) == pytest.approx(0.5)
