"""What the terminal shows of a comparison, and how minutes become steps."""

from __future__ import annotations

import io
from typing import Any

import pytest

from mixlab.cli.comparison import ComparisonProgress, footnotes, print_comparison, rows


def result(model: str, seed: int, score: float, **changed: Any) -> dict[str, Any]:
    return {
        "model": model,
        "kind": "neural",
        "seed": seed,
        "status": "done",
        "reason": "",
        "parameters": 1_000_000,
        "bits_per_byte": score,
        "tokens_per_second": 20_000.0,
        "seconds": 12.0,
        "flops_per_token": 2_000_000,
        "decode_ms_per_token": 0.5,
        "state_bytes": 2048,
        "peak_memory_bytes": 300 << 20,
    } | changed


FAILED = {"model": "bad", "seed": 0, "status": "failed", "reason": "it never works"}


def test_models_stand_best_first_and_failed_last() -> None:
    table = rows([FAILED, result("b", 0, 2.5), result("a", 0, 2.25)])
    assert [cells[0] for cells in table] == ["a", "b", "bad"]
    assert table[0][1:4] == ["1.0M", "2.250", "20.0k"]
    assert table[2][2] == "failed"


def test_several_seeds_give_the_mean_and_students_interval() -> None:
    # Mean 2.0, standard deviation 0.1; t(2 degrees of freedom) = 4.303: 4.303 * 0.1 / sqrt(3) = 0.248.
    table = rows([result("a", seed, score) for seed, score in enumerate((1.9, 2.0, 2.1))])
    assert table[0][2] == "2.000 ±0.248"
    assert "±" not in rows([result("a", 0, 2.0)])[0][2]


def test_the_printed_table_has_the_reasons_and_what_is_unequal(capsys: pytest.CaptureFixture[str]) -> None:
    budget = {"context": 256, "unequal": ["Time: a took longer."]}
    print_comparison({"results": [result("a", 0, 2.0), FAILED], "budget": budget})
    out = capsys.readouterr().out
    head, row = out.splitlines()[:2]
    assert len(head) == len(row)
    assert head.split() == [
        "model",
        "params",
        "bits/byte",
        "tokens/s",
        "time",
        "FLOPs/token",
        "ms/token",
        "state",
        "memory",
    ]
    assert "failed: bad (seed 0): it never works" in out
    assert "Time: a took longer." in out


def test_the_interval_is_explained_only_where_there_is_one() -> None:
    budget = {"context": 256, "unequal": []}
    one = [result("a", 0, 2.0)]
    assert "95%" not in footnotes({"results": one, "budget": budget})[0]
    assert "over 2 seeds" in footnotes({"results": [*one, result("a", 1, 2.1)], "budget": budget})[0]


@pytest.mark.parametrize(
    ("evaluation", "said"),
    [
        (
            {"tokens_scored": 319_069, "valid_tokens": 319_069},
            "bits/byte on the whole validation text, lower",
        ),
        (
            {"tokens_scored": 400_000, "valid_tokens": 30_000_000},
            "bits/byte on 400k of 30.0M validation tokens, the same for all, lower",
        ),
        ({"tokens_scored": None, "valid_tokens": 30_000_000}, "bits/byte on the validation text, lower"),
    ],
)
def test_the_table_says_on_how_much_text_it_rests(evaluation: dict[str, Any], said: str) -> None:
    comparison = {
        "results": [result("a", 0, 2.0), result("b", 0, 2.0)],
        "budget": {"context": 256, "unequal": []},
        "evaluation": evaluation,
    }
    assert footnotes(comparison)[0].startswith(said)


def test_a_runs_evaluations_move_the_whole_too() -> None:
    stream = io.StringIO()
    progress = ComparisonProgress(stream=stream, now=lambda: 0.0)
    run = {"kind": "run", "runs": 2, "seed": 0, "status": "begun"}
    step = {"kind": "step", "step": 10, "loss": 2.0, "tokens_per_second": 1000.0}
    with progress:
        work = {"step_tokens": 100, "scored": 1000, "full": 600}  # 3 * 10 * 100 forwards, and 1000
        progress({"kind": "plan", "steps": 10, **work, "counted": [True, False]})
        progress(run | {"index": 1, "model": "ngram", "counted": True})
        progress({"kind": "evaluating", "step": 1, "scored": 300, "total": 600})
        assert progress.done == pytest.approx(0.75 * 0.3 / 1.3)
        progress(run | {"index": 1, "model": "ngram", "counted": True, "status": "done"})
        progress(run | {"index": 2, "model": "a", "counted": False})
        progress(step)
        assert progress.done == pytest.approx((0.3 + 0.75) / 1.3)
        progress({"kind": "evaluating", "step": 10, "scored": 100, "total": 400})
        assert progress.done == pytest.approx((0.3 + 0.775) / 1.3)
        progress({"kind": "eval", "step": 10, "scored": 400, "bits_per_byte": 2.5})
        assert progress.done == pytest.approx((0.3 + 0.85) / 1.3)
        progress({"kind": "evaluating", "step": 10, "scored": 600, "total": 600})
        assert progress.done == 1.0


def test_progress_is_of_the_whole_comparison() -> None:
    clock = iter(range(1_000))
    stream = io.StringIO()
    progress = ComparisonProgress(stream=stream, now=lambda: 10.0 * next(clock))
    run = {"kind": "run", "runs": 2, "model": "a", "seed": 0, "counted": False}
    with progress:
        progress({"kind": "plan", "steps": 10, "counted": [False, False]})
        progress(run | {"index": 1, "status": "begun"})
        progress({"kind": "step", "step": 5, "loss": 2.0, "tokens_per_second": 1000.0})
        assert progress.done == 0.25
        progress(run | {"index": 1, "status": "failed", "reason": "it never works"})
        progress(run | {"index": 2, "status": "begun"})
        progress({"kind": "step", "step": 5, "loss": 2.0, "tokens_per_second": 1000.0})
        assert progress.done == 0.75
    said = stream.getvalue()
    assert "1/2 a: starts" in said
    assert "1/2 a: failed: it never works" in said
    assert "2/2 a   75%  step 5  loss 2.000" in said
    assert "left for all" in said


STEP = {"kind": "step", "step": 5, "loss": 2.0, "tokens_per_second": 1000.0}


def progress_of_two(*second: dict[str, Any]) -> list[str]:
    """What a log gets of two short runs; `second`: the lines of the second after its beginning."""
    stream = io.StringIO()
    run = {"kind": "run", "runs": 2, "model": "a", "seed": 0, "counted": False}
    with ComparisonProgress(stream=stream, now=lambda: 10.0) as progress:
        progress({"kind": "plan", "steps": 10, "counted": [False, False]})
        progress(run | {"index": 1, "status": "begun"})
        progress(STEP)
        progress(run | {"index": 1, "status": "done"})
        progress(run | {"index": 2, "model": "b", "status": "begun"})
        for line in second:
            progress(run | line if line["kind"] == "run" else line)
    return stream.getvalue().splitlines()


def test_a_last_model_that_fails_before_its_first_step_ends_the_progress_in_order() -> None:
    failed = {"kind": "run", "index": 2, "model": "b", "status": "failed", "reason": "it never works"}
    begun = ["1/2 a: starts", "1/2 a: done", "2/2 b: starts"]
    assert progress_of_two(failed) == [*begun, "2/2 b: failed: it never works"]
    assert progress_of_two()[-1] == "2/2 b: starts"  # interrupted there


def test_progress_in_a_log_ends_with_the_last_run() -> None:
    done = {"kind": "run", "index": 2, "model": "b", "status": "done"}
    assert progress_of_two(STEP, done)[-1] == "2/2 b: done"
    assert progress_of_two(STEP)[-1].startswith("2/2 b   75%  step 5")
