"""The time left knows of evaluations: the one under way, those on the way, and the last."""

from __future__ import annotations

import io
from typing import Any

import pytest

from mixlab.cli.console import QUIET_SECONDS, Progress
from mixlab.cli.preparing import Evaluating
from mixlab.cli.timeleft import TimeLeft

PLAN = {"full": 9000, "sample": 600, "marks": [0.3, 0.6, 1.0], "every": 0, "share": None}


class Time:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def begun(plan: dict[str, Any]) -> tuple[TimeLeft, Time]:
    """Two of ten steps, each of 5 s and 1000 tokens."""
    now = Time()
    left = TimeLeft(now)
    left.plan = plan
    for step in (1, 2):
        left.take({"kind": "step", "step": step, "tokens_per_second": 200.0}, step / 10)
        now.seconds += 5 if step == 1 else 0
    return left, now


def test_before_any_evaluation_a_score_is_taken_for_a_third_of_training() -> None:
    left, _ = begun(PLAN)
    assert left.seconds == pytest.approx(8 * 5 + (2 * 600 + 9000) / 600)


@pytest.mark.parametrize(("every", "number"), [(2, 3), (3, 3), (5, 1), (0, 0)])
def test_evaluations_every_so_many_steps_are_counted(every: int, number: int) -> None:
    left, _ = begun(PLAN | {"marks": [], "every": every})
    assert left.seconds == pytest.approx(8 * 5 + (number * 600 + 9000) / 600)


def test_those_on_the_way_take_no_more_than_their_share() -> None:
    left, _ = begun(PLAN | {"sample": 60_000, "share": 0.1})
    assert left.seconds == pytest.approx(1.1 * 8 * 5 + 9000 / 600)


def test_an_evaluation_under_way_is_timed_and_is_no_training() -> None:
    left, now = begun(PLAN)
    for scored in (100, 300, 500):
        now.seconds += 2
        left.take({"kind": "evaluating", "step": 2, "scored": scored, "total": 600}, 0.2)
    pace = 4 / 400
    assert left.seconds == pytest.approx(8 * 5 + pace * (100 + 2 * 600 + 9000))
    now.seconds += 2
    left.take({"kind": "eval", "step": 2, "scored": 600}, 0.2)
    now.seconds += 5
    left.take({"kind": "step", "step": 3, "tokens_per_second": 200.0}, 0.3)
    assert left.seconds == pytest.approx(7 * 5 + pace * (600 + 9000))


def test_the_last_evaluation_counts_down_to_nothing() -> None:
    left, now = begun(PLAN)
    now.seconds += 40
    left.take({"kind": "step", "step": 10, "tokens_per_second": 200.0}, 1.0)
    assert left.seconds == pytest.approx(9000 / 600)
    left.take({"kind": "evaluating", "step": 10, "scored": 1000, "total": 9000}, 1.0)
    now.seconds += 1
    left.take({"kind": "evaluating", "step": 10, "scored": 3000, "total": 9000}, 1.0)
    assert left.seconds == pytest.approx(3.0)
    left.take({"kind": "eval", "step": 10, "scored": 9000}, 1.0)
    assert left.seconds is None


def test_a_log_shows_the_evaluation_as_it_goes() -> None:
    stream, now = io.StringIO(), Time()
    with Progress("gru", lambda line: line["step"] / 10, stream=stream, now=now) as progress:
        progress({"kind": "start", "run": "r", "length": {"steps": 10}, "evaluation": PLAN})
        progress({"kind": "step", "step": 10, "loss": 2.0, "tokens_per_second": 200.0})
        for scored in (1200, 1800):
            now.seconds += QUIET_SECONDS
            progress({"kind": "evaluating", "step": 10, "scored": scored, "total": 9000})
        progress({"kind": "eval", "step": 10, "scored": 9000, "bits_per_byte": 1.5})
    assert stream.getvalue().splitlines()[1:] == [
        "gru  100%  step 10  loss 2.000 nats  evaluating 13%  0:13 left",
        "gru  100%  step 10  loss 2.000 nats  evaluating 20%  1:00 left",
        "gru  100%  step 10  loss 2.000 nats  valid 1.500 bits/byte  200 tokens/s",
    ]


def test_evaluating_a_long_text_shows_how_far_it_is() -> None:
    stream, now = io.StringIO(), Time()
    with Evaluating(stream=stream, now=now) as progress:
        for scored in range(1000, 5000, 1000):
            progress(scored, 10_000)
            now.seconds += QUIET_SECONDS
    assert (
        stream.getvalue().splitlines()[-1]
        == "evaluating  scored  4.0k of 10.0k tokens  200 tokens/s  0:30 left"
    )
