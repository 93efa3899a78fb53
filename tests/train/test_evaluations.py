"""When a run is evaluated and on how much: the schedule, the sample, and what may be compared."""

from __future__ import annotations

from itertools import pairwise

import pytest

from mixlab.data import prepare
from mixlab.errors import UserError
from mixlab.train import evaluations
from mixlab.train.counters import Counters
from mixlab.train.evaluate import evaluate
from mixlab.train.evaluations import Evaluations, marks
from mixlab.train.loop import train
from mixlab.train.metrics import best_step, read_metrics
from mixlab.train.run import open_run

from .helpers import record, stop_at, with_train


@pytest.fixture
def sampled(config):
    """Five evaluations in 40 steps, of 64 tokens but for the last."""
    return with_train(config, steps=40, evaluations=5, eval_tokens=64, accumulate=1, watch_every=0)


def evals(path):
    return read_metrics(path / "metrics.jsonl", "eval")


def test_marks_are_evenly_spaced_logarithms_up_to_the_end() -> None:
    found = marks(10)
    assert len(found) == 10 and (found[0], found[-1]) == (pytest.approx(1 / 40), 1.0)
    ratios = [b / a for a, b in pairwise(found)]
    assert ratios == pytest.approx([40 ** (1 / 9)] * 9)
    assert (marks(0), marks(1)) == ([], [1.0])


def test_a_run_scores_a_small_sample_on_a_logarithmic_schedule_and_the_whole_at_the_end(sampled, tmp_path):
    seen = []
    train(sampled, tmp_path / "run", progress=seen.append)
    whole = len(prepare(sampled.data).valid) - 1
    found = evals(tmp_path / "run")
    assert [line["step"] for line in found] == [1, 3, 7, 16, 40]
    assert [line["scored"] for line in found] == [64, 64, 64, 64, whole]
    assert [line["full"] for line in found] == [False, False, False, False, True]
    last = {line["step"]: line for line in seen if line["kind"] == "evaluating"}
    assert [(line["scored"], line["total"]) for line in last.values()] == [(64, 64)] * 4 + [(whole, whole)]


def test_the_sample_is_the_same_every_time_and_what_a_loaded_model_scores_of_it(sampled, tmp_path):
    config = with_train(sampled, steps=16, evaluations=2, dtype="float32")
    train(config, tmp_path / "run", progress=lambda line: None)
    dataset = prepare(config.data)
    part = Evaluations(config.train, dataset, 16).sample
    assert part is not dataset.valid
    run = open_run(tmp_path / "run")
    whole = evaluate(run.load(), dataset.valid, context=16, dtype="float32").bits_per_byte
    assert evals(tmp_path / "run")[-1]["bits_per_byte"] == whole
    assert evaluate(run.load(), part, context=16, dtype="float32").bits_per_byte != whole


def test_no_sampled_evaluation_is_compared_with_a_full_one(sampled, tmp_path, monkeypatch):
    """The sample's number is made the lowest of all: the best is still the one of the whole text."""
    made = Evaluations.make

    def flattered(self, model, done, **how):
        line = made(self, model, done, **how)
        return line if line["full"] else {**line, "bits_per_byte": 0.001}

    monkeypatch.setattr(Evaluations, "make", flattered)
    summary = train(sampled, tmp_path / "run", progress=lambda line: None)
    last = evals(tmp_path / "run")[-1]
    assert summary["best_step"] == best_step(tmp_path / "run/metrics.jsonl") == 40
    assert summary["best_bits_per_byte"] == summary["bits_per_byte"] == last["bits_per_byte"] > 0.001
    assert open_run(tmp_path / "run").step == 40


def test_a_resumed_run_makes_the_evaluations_that_are_left(sampled, tmp_path):
    train(sampled, tmp_path / "whole", progress=lambda line: None)
    stopped = train(sampled, tmp_path / "run", progress=stop_at(9))
    assert stopped["bits_per_byte"] is None and stopped["status"] == "stopped"
    train(sampled, tmp_path / "run", resume=True, progress=lambda line: None)
    assert record(tmp_path / "run", "eval") == record(tmp_path / "whole", "eval")


def test_in_minutes_evaluations_before_the_last_keep_to_their_share(config, monkeypatch):
    config = with_train(config, steps=None, minutes=10.0, eval_every=10)
    schedule = Evaluations(config.train, prepare(config.data), 16)
    scored = schedule.plan()["full"]

    # A third of a training token's time each: 1 s of scoring at 3 * scored tokens trained in 3 s.
    def at(step: int, seconds: float) -> Counters:
        return Counters(step=step, tokens=round(scored * seconds), seconds=seconds)

    allowed = 1 / 3 / evaluations.SHARE  # seconds of training that pay for the first
    assert not schedule.due(at(10, 0.9 * allowed), None)
    assert schedule.due(at(20, 1.1 * allowed), None)
    assert not schedule.due(at(21, 1.1 * allowed), None)
    schedule.seconds = 1.0
    assert not schedule.due(at(30, 1.1 * allowed), None)
    assert schedule.due(at(31, 600.0), None)  # the last is made in any case


def test_numbers_that_make_no_sense_are_refused(config) -> None:
    for key in ("evaluations", "eval_tokens"):
        with pytest.raises(UserError, match=f"train.{key} must be 0"):
            with_train(config, **{key: -1}).validate()
