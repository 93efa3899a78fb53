"""Minutes become the same steps for every model, beside starts, evaluations and counting, or are refused."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from mixlab.compare.budget import EVALUATION_SHARE, LEAST_SCORED, LEAST_STEPS, Fit, Speed, fit, overshoot
from mixlab.compare.evaluated import evaluated
from mixlab.compare.plan import Entry, Limits, Plan, make_plan
from mixlab.compare.request import EVALUATIONS, Request
from mixlab.data.config import DataConfig
from mixlab.errors import UserError

SPEEDS = {
    "ngram": Speed(start=2.0, train=1e-6, score=2e-6, finish=0.5),
    "rnn": Speed(start=3.0, train=5e-5, score=2e-5, finish=1.0),
    "gru": Speed(start=3.0, train=1e-4, score=4e-5, finish=1.5),
}
LONG = {"train": 270_000_000, "valid": 30_000_000}
SHORT = {"train": 900_000, "valid": 6_000}


@cache
def solved(models: tuple[str, ...], train: int) -> tuple[Entry, ...]:
    request = Request(models=models, params=20_000, minutes=1.0, context=32, batch_size=4)
    return make_plan(request.validate(), vocab_size=256, steps=1, train_tokens=train).entries


def planned(minutes: float, text: dict[str, int], *, spent: float = 20.0, **changed: Any) -> Fit:
    models = changed.pop("models", tuple(SPEEDS))
    request = Request(models=models, params=60_000, minutes=minutes, context=32, batch_size=4, **changed)
    entries = solved(models, text["train"])
    plan = Plan(request=request.validate(), steps=1, entries=entries)
    speeds = {entry.label: SPEEDS[entry.config.name] for entry in plan.entries}
    return fit(minutes, spent, plan, speeds, **text)


@pytest.mark.parametrize("minutes", [2.0, 5.0, 10.0, 60.0])
@pytest.mark.parametrize("text", [LONG, SHORT], ids=["long", "short"])
def test_all_that_is_planned_fits_and_most_of_it_is_training(minutes: float, text: dict[str, int]) -> None:
    """Each term by itself, not as the plan adds them up."""
    found, speeds = planned(minutes, text), SPEEDS.values()
    whole = found.limits.valid_tokens or text["valid"]
    counted = min(found.limits.count_tokens or text["train"], text["train"])
    full = whole * (2 * SPEEDS["ngram"].score + SPEEDS["rnn"].score + SPEEDS["gru"].score)  # two n-grams
    sampled = found.limits.eval_tokens * (EVALUATIONS - 1) * (SPEEDS["rnn"].score + SPEEDS["gru"].score)
    training = found.steps * 128 * (SPEEDS["rnn"].train + SPEEDS["gru"].train)
    starts = sum(speed.start + speed.finish for speed in speeds) + SPEEDS["ngram"].start + 0.5
    counting = SPEEDS["ngram"].train * (counted + min(counted, found.steps * 128))
    total = starts + full + sampled + training + counting
    assert full + sampled == pytest.approx(found.evaluation) and found.evaluation <= 0.15 * 60 * minutes
    assert total == pytest.approx(found.seconds, rel=0.01)
    assert 0.93 * 60 * minutes <= 20.0 + total <= 60 * minutes
    assert training >= 0.4 * 60 * minutes or minutes < 5


def test_a_short_text_is_scored_whole_and_a_long_one_on_as_much_as_fits() -> None:
    assert planned(10.0, SHORT).limits == Limits(valid_tokens=0, eval_tokens=6_000, count_tokens=0)
    few, many = planned(2.0, LONG), planned(20.0, LONG)
    assert 32 <= few.limits.eval_tokens <= few.limits.valid_tokens < many.limits.valid_tokens < 4_000_000
    assert few.limits.count_tokens < many.limits.count_tokens
    assert many.evaluation == pytest.approx(EVALUATION_SHARE * 20 * 60, rel=0.01)


def test_a_model_that_scores_slowly_is_scored_on_enough_tokens_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(SPEEDS, "rnn", replace(SPEEDS["rnn"], score=0.02))
    found = planned(10.0, LONG, models=("rnn",))
    assert found.limits.valid_tokens == LEAST_SCORED and found.steps >= LEAST_STEPS


def test_valid_tokens_that_the_user_sets_bound_it() -> None:
    data = DataConfig(valid_tokens=50_000)
    found = planned(20.0, LONG, data=data)
    assert found.limits.valid_tokens == 50_000
    assert found.steps > planned(20.0, LONG).steps
    request = Request(models=("rnn", "ngram"), params=60_000, minutes=20.0, data=data).validate()
    limits = Limits(valid_tokens=90_000, count_tokens=1_000)
    plan = make_plan(request, vocab_size=256, steps=60, limits=limits)
    assert {entry.config.data.valid_tokens for entry in plan.entries} == {50_000}
    assert {entry.config.ngram.max_tokens for entry in plan.entries if entry.config.ngram} == {1_000}


def test_too_few_steps_are_refused_with_the_minutes_that_work() -> None:
    with pytest.raises(UserError) as refused:
        planned(0.6, LONG)
    said = re.fullmatch(
        r"--minutes 0\.6 is enough for (\d+) steps of each model on this machine, and fewer than 50 say "
        r"nothing: give --minutes ([\d.]+); name fewer models \(--models\), or choose a smaller --budget or "
        r"--context",
        str(refused.value),
    )
    assert said is not None and int(said[1]) < LEAST_STEPS
    enough = float(said[2])
    assert planned(enough, LONG).steps >= LEAST_STEPS
    with pytest.raises(UserError):
        planned(enough - 0.6, LONG)


def test_what_is_spent_before_is_not_there_for_training() -> None:
    assert planned(5.0, LONG, spent=0.0).steps > planned(5.0, LONG, spent=60.0).steps
    with pytest.raises(UserError, match="for 0 steps"):
        planned(1.0, LONG, spent=61.0)


def test_ngrams_alone_have_no_steps_to_refuse() -> None:
    assert planned(0.2, LONG, models=("ngram",)).limits.count_tokens < LONG["train"]


def test_an_overshoot_is_said_only_where_there_is_one_with_what_it_came_from() -> None:
    speeds = {"rnn-seed0": SPEEDS["rnn"], "ngram-seed0": SPEEDS["ngram"]}
    one = {"curve": [{}], "tokens": 1_000_000, "seconds": 75.0}  # 50 s as measured
    results = {"rnn-seed0": one, "ngram-seed0": {"curve": [], "tokens": 9, "seconds": 9.0}}
    assert overshoot(2.0, 1.09 * 120, speeds, results) == ""
    said = "the comparison took 3.0 minutes, 50% over the 2 it was planned for"
    slower = f"{said}; its steps took 1.5 times as long as when they were measured"
    assert overshoot(2.0, 180.0, speeds, results) == slower
    assert overshoot(2.0, 180.0, speeds, {"rnn-seed0": one | {"seconds": 51.0}}) == said
    assert overshoot(2.0, 180.0, speeds, {"rnn-seed0": {"status": "failed"}}) == said


def test_what_results_rest_on_is_computed_from_them() -> None:
    one = {"status": "done", "scored": 400, "seconds": 8.0, "evaluation_seconds": 2.0}
    corpus = {"valid_tokens": 400}
    assert evaluated([one, one, {"status": "failed"}], corpus) == {
        "tokens_scored": 400,
        "valid_tokens": 400,
        "share_of_time": 0.2,
    }
    assert evaluated([one, one | {"scored": 300}], corpus)["tokens_scored"] is None
    assert evaluated([], corpus)["share_of_time"] is None
