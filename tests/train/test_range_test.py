from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mixlab
from mixlab.errors import RunFailed, UserError
from mixlab.model.ngram import NGramConfig
from mixlab.report.rates import rates_figure, write_rates
from mixlab.train.advice import NotFinite
from mixlab.train.config import OptimizerConfig
from mixlab.train.loop import train
from mixlab.train.range_test import HIGH, LOW, WINDOW, WORSE, find_lr, smoothed, suggest
from mixlab.train.step import Stepper

from .helpers import record, with_train


def ran(config, steps=30, **more):
    return find_lr(config, mixlab.data.prepare(config.data), steps=steps, **more)


def test_the_rates_rise_exponentially_and_the_losses_are_those_of_the_runs_own_batches(config, tmp_path):
    lines = []
    found = ran(with_train(config, optimizer=OptimizerConfig(kind="sgd")), progress=lines.append)
    train(config, tmp_path / "run", progress=lambda line: None)
    first = record(tmp_path / "run", "step")[0]["loss"]
    assert found.start == first == lines[0]["loss"]
    for i, rate in enumerate(found.rates):
        assert rate == pytest.approx(LOW * (HIGH / LOW) ** (i / 29))
    assert found.losses == [line["loss"] for line in lines[1:]]
    assert len(found.rates) == len(found.losses) == len(found.smooth)


def test_each_step_is_taken_at_its_rate(config, monkeypatch):
    from mixlab.train.optimizers import Optimizers

    used, real = [], Optimizers.set_lr
    monkeypatch.setattr(Optimizers, "set_lr", lambda self, lr: (used.append(lr), real(self, lr))[1])
    found = ran(config, steps=8)
    assert used[: len(found.rates)] == found.rates


def test_a_rate_that_undoes_all_ends_the_test(config):
    config = with_train(config, optimizer=OptimizerConfig(kind="adamw", clip=0.0))
    found = ran(config, steps=60)
    assert len(found.losses) < 59
    assert "the loss rose past 1.2 times" in found.stopped or "not finite" in found.stopped
    assert found.suggestion is not None
    assert LOW < found.suggestion < HIGH
    assert min(found.smooth) < found.start < max(found.smooth) * WORSE


def test_a_loss_that_is_not_finite_ends_the_test_too(config, monkeypatch):
    real, calls = Stepper.loss, []

    def loss(self, inputs, targets):
        calls.append(1)
        return real(self, inputs, targets) * (float("nan") if len(calls) > 2 * 12 else 1.0)

    monkeypatch.setattr(Stepper, "loss", loss)
    found = ran(config, steps=40)
    assert "not finite after a step at" in found.stopped
    assert len(found.losses) == 11


@pytest.mark.parametrize("step", [1, 2])
def test_a_loss_that_is_not_finite_from_the_beginning_is_said(config, monkeypatch, step):
    real, calls = Stepper.loss, []

    def loss(self, inputs, targets):
        calls.append(1)
        return real(self, inputs, targets) * (float("nan") if len(calls) > 2 * (step - 1) else 1.0)

    monkeypatch.setattr(Stepper, "loss", loss)
    with pytest.raises(NotFinite, match="the loss is nan at step 1"):  # no step counts here
        ran(config)


def test_another_failure_is_not_put_down_to_the_rate(config, monkeypatch):
    real, calls = Stepper.gradient, []

    def gradient(self):
        calls.append(1)
        if len(calls) == 5:
            raise RunFailed("out of memory: not even one row fits")
        return real(self)

    monkeypatch.setattr(Stepper, "gradient", gradient)
    with pytest.raises(RunFailed, match="not even one row fits"):
        ran(config)


def test_a_requested_stop_ends_it_with_a_line_and_the_handlers_are_put_back(config):
    taken = []

    def stop(line):
        taken.append(line["step"])
        signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RunFailed, match="stopped at rate 2 of 30, too early to suggest one"):
        ran(config, progress=stop)
    assert taken == [1] and signal.getsignal(signal.SIGTERM) is before


def test_nothing_is_written_and_the_callers_random_state_is_not_moved(config, tmp_path, monkeypatch):
    dataset = mixlab.data.prepare(config.data)
    monkeypatch.chdir(tmp_path)
    before, state = set(Path().rglob("*")), torch.get_rng_state()
    find_lr(config, dataset, steps=4)
    assert set(Path().rglob("*")) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_the_suggestion_is_where_nine_tenths_of_the_fall_are_made():
    rates = [1.0, 2.0, 4.0, 8.0, 16.0]
    assert suggest(rates, [10.0, 6.0, 1.1, 0.9, 7.0], 10.0) == 4.0  # 10 - 0.9 * 9.1 = 1.81
    assert suggest(rates, [10.0, 6.0, 2.0, 0.9, 7.0], 10.0) == 8.0
    assert suggest(rates, [10.0, 11.0, 12.0, 13.0, 14.0], 10.0) is None
    assert suggest([], [], 10.0) is None


def test_the_mean_is_of_what_lies_around():
    values = [float(i * i) for i in range(20)]
    half = WINDOW // 2
    assert smoothed(values)[10] == pytest.approx(sum(values[10 - half : 11 + half]) / WINDOW)
    assert smoothed(values)[0] == pytest.approx(sum(values[: half + 1]) / (half + 1))


def test_an_ngram_has_no_rate(config):
    with pytest.raises(UserError, match="it has no learning rate to find"):
        ran(replace(config, model=None, ngram=NGramConfig()))


def test_the_page_draws_what_was_found_and_asks_nobody(config, tmp_path):
    found = ran(with_train(config, optimizer=OptimizerConfig(lr=1e-3)))
    page = write_rates(found, replace(config, name="<b>mine</b>"), tmp_path / "rates.html")
    html = page.read_text()
    payload = json.loads(html.split('id="payload">')[1].split("</script>")[0])
    each, mean = payload["figures"]["rates"]["all"]["data"]
    assert (each["x"], mean["x"]) == (found.rates, found.rates)
    assert each["y"] == [round(loss, 5) for loss in found.losses]
    assert mean["y"] == [round(loss, 5) for loss in found.smooth]
    marks = payload["figures"]["rates"]["all"]["layout"]["shapes"]
    assert [mark["y0"] for mark in marks if mark["yref"] == "y"] == [found.start]
    assert [mark["x0"] for mark in marks if mark["xref"] == "x"] == [found.suggestion]
    assert "&lt;b&gt;mine&lt;/b&gt;" in html
    assert "default-src 'none'" in html
    never = replace(found, suggestion=None)
    assert "no rate can be suggested" in rates_figure(never).reading
    write_rates(found, config, page)  # over its like, but not over anything else
    other = tmp_path / "other.html"
    other.write_text("mine")
    with pytest.raises(UserError, match="is not a report of mixlab"):
        write_rates(found, config, other)
