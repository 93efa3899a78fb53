"""A comparison in minutes, end to end: measured, planned, trained and said; or refused, leaving nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mixlab.compare import budget, runner
from mixlab.compare.budget import Speed
from mixlab.compare.request import Request
from mixlab.compare.runner import compare
from mixlab.data.config import DataConfig
from mixlab.errors import UserError
from tests.compare.conftest import TINY


def request(text: Path, minutes: float) -> Request:
    return Request(
        models=("window",),
        params=20_000,
        minutes=minutes,
        context=16,
        batch_size=2,
        overrides=TINY,
        data=DataConfig(sources=(str(text),), valid_tokens=2_000),
    )


def test_a_refusal_leaves_nothing_and_a_longer_one_has_one_schedule_for_all(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, events = tmp_path / "out", []
    with pytest.raises(UserError, match=r"give --minutes \d"):
        compare(request(text, 0.001), out)
    assert not out.exists()
    monkeypatch.setattr(budget, "LEAST_STEPS", 1)  # whatever the speed here is
    slow = Speed(start=1.0, train=0.2, score=1e-4, finish=1.0)  # for few steps of what is a fast model
    monkeypatch.setattr(runner, "speed_of", lambda line, seconds: slow)
    comparison = compare(request(text, 4.0), out, progress=events.append)
    by_model = {result["model"]: result for result in comparison["results"]}
    neural = by_model["window"]
    assert neural["status"] == "done" and comparison["budget"]["steps"] > 1
    assert neural["evals"][-1]["scored"] == comparison["evaluation"]["tokens_scored"] <= 2_000
    assert comparison["evaluation"]["valid_tokens"] > 2_000
    assert all(line["full"] for line in neural["evals"])  # of so short a text there is no smaller sample
    assert neural["bits_per_byte"] == neural["evals"][-1]["bits_per_byte"]
    assert 0 < comparison["evaluation"]["share_of_time"] < 1
    said = [str(line["message"]) for line in events if line["kind"] == "note"]
    assert sum("minutes are over; the runs take about" in sentence for sentence in said) == 1
    (scored,) = (sentence for sentence in said if sentence.startswith("evaluations score"))
    assert f"score {comparison['evaluation']['tokens_scored']:,} of the" in scored
    saved = json.loads((out / "plan.json").read_text(encoding="utf-8"))
    again: list[dict[str, Any]] = []
    assert compare(request(text, 4.0), out, progress=again.append)["results"] == comparison["results"]
    assert json.loads((out / "plan.json").read_text(encoding="utf-8")) == saved
    assert not any("measuring each model's speed" in str(line.get("message")) for line in again)
