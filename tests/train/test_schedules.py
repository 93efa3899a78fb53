from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixlab.train.config import SCHEDULES, ScheduleConfig
from mixlab.train.counters import Clock
from mixlab.train.loop import train
from mixlab.train.metrics import read_metrics
from mixlab.train.schedules import lr_factor

KINDS = SCHEDULES
PLAIN = [kind for kind in KINDS if kind != "onecycle"]
kinds = st.sampled_from(KINDS)
fraction = st.floats(0, 0.5)


@given(kinds, fraction, st.floats(0.01, 0.5), st.floats(0, 1), st.floats(-0.5, 1.5))
def test_the_factor_is_a_fraction_whatever_the_progress(kind, warmup, decay, final, progress):
    factor = lr_factor(ScheduleConfig(kind=kind, warmup=warmup, decay=decay, final=final), progress)
    assert 0 <= factor <= 1 + 1e-12


@given(st.sampled_from(PLAIN), st.floats(0.01, 0.5))
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


def test_linear_is_a_straight_line_to_its_end():
    config = ScheduleConfig(kind="linear", warmup=0.2, final=0.1)
    assert lr_factor(config, 0.4) == pytest.approx(0.1 + 0.9 * 0.75)
    assert lr_factor(config, 0.8) == pytest.approx(0.1 + 0.9 * 0.25)


def test_one_cycle_rises_from_a_twenty_fifth_to_the_peak_and_falls_to_nothing():
    config = ScheduleConfig(kind="onecycle")
    assert lr_factor(config, 0.0) == pytest.approx(0.04)
    assert lr_factor(config, 0.15) == pytest.approx(0.52)  # half-way up
    assert lr_factor(config, 0.3) == 1.0
    assert lr_factor(config, 0.65) == pytest.approx(0.5)  # half-way down
    assert lr_factor(config, 1.0) == 0.0
    rising = [lr_factor(config, 0.3 * i / 20) for i in range(21)]
    assert rising == sorted(rising)


def test_one_cycle_is_that_of_torch():
    steps, parameter = 50, torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=steps, cycle_momentum=False
    )
    for step in range(steps):  # theirs peaks at step 0.3 * 50 - 1 and ends at step 49
        peak, last = 0.3 * steps - 1, steps - 1
        ours = 0.3 * step / peak if step <= peak else 0.3 + 0.7 * (step - peak) / (last - peak)
        assert theirs.get_last_lr()[0] == pytest.approx(
            lr_factor(ScheduleConfig(kind="onecycle"), ours), abs=1e-4
        )
        optimizer.step()
        theirs.step()


HORIZONS = {
    "steps": {"steps": 5},
    "tokens": {"tokens": 5 * 64 - 40},  # the last step goes past the end by more than half of itself
    "epochs": {"epochs": 0.05},
    "minutes": {"minutes": 4.5 / 60},  # of steps of a second each
    "flops": {"flops": 1_000_000},
}


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("horizon", HORIZONS)
def test_no_step_of_any_horizon_has_a_rate_of_0(config, tmp_path, monkeypatch, horizon, kind):
    monkeypatch.setattr(Clock, "lap", lambda self: 1.0)
    train_config = replace(config.train, schedule=ScheduleConfig(kind=kind), eval_every=0)
    small = replace(config.model, depth=1, dim=8)
    config = replace(config, model=small, train=train_config.with_horizon(**HORIZONS[horizon]))
    train(config, tmp_path / "run", progress=lambda line: None)
    rates = [line["lr"] for line in read_metrics(tmp_path / "run/metrics.jsonl", "step")]
    assert len(rates) >= 3
    assert all(0 < rate <= config.train.optimizer.lr for rate in rates)
