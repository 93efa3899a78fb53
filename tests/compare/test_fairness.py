from __future__ import annotations

from typing import Any

from mixlab.compare.fairness import compact, unequal

BUDGET = {"params": 1_000_000, "steps": 100, "tokens": 400_000, "context": 256, "batch_size": 16}
CORPUS = {"train_tokens": 2_000_000}


def result(model: str, **changed: Any) -> dict[str, Any]:
    return {
        "model": model,
        "seed": 0,
        "status": "done",
        "parameters": 1_000_000,
        "flops_per_token": 2_000_000,
        "seconds": 10.0,
        "peak_memory_bytes": 4 << 20,
        "state_bytes": 2048,
        "state_bytes_per_token": 0.0,
        "config": {"model": {"dim": 8}, "train": {"optimizer": {"kind": "muon", "lr": 0.01}}},
    } | changed


def test_ratios_are_computed_and_named_for_the_extremes() -> None:
    text = "\n".join(
        unequal(
            [
                result("a", parameters=990_000),
                result("b", flops_per_token=5_000_000, seconds=35.0, peak_memory_bytes=10 << 20),
            ],
            BUDGET,
            CORPUS,
        )
    )
    assert "990,000 (a) to 1,000,000 (b), at most 1.0% from the budget" in text
    assert "6M FLOPs (a) to 15M FLOPs (b), a ratio of 2.5" in text
    assert "10.0 s (a) to 35.0 s (b), a ratio of 3.5" in text
    assert "4.0 MiB (a) to 10.0 MiB (b), a ratio of 2.5" in text


def test_what_is_equal_is_not_mentioned() -> None:
    text = "\n".join(unequal([result("a"), result("b", seconds=10.5)], BUDGET, CORPUS))
    assert "Time" not in text
    assert "Compute" not in text
    assert "Decoding state" not in text


def test_the_ngram_is_said_to_be_unbound_and_to_have_read_everything() -> None:
    counted = {"parameters": 3_000_000, "config": {"ngram": {"order": 6}}, "kind": "baseline"}
    every = result("ngram (all of the text)", tokens=2_000_000, counted_on="all", **counted)
    same = result("ngram (same text)", tokens=380_000, counted_on="same", **counted)
    text = "\n".join(unequal([every, same, result("a")], BUDGET, CORPUS))
    assert "ngram (all of the text) stores 3M numbers (3.0 times the budget) after reading 2M tokens" in text
    assert "ngram (same text) stores 3M numbers (3.0 times the budget) after reading 380k tokens" in text
    assert "the others were trained on 400k tokens, 20% of the training text" in text
    little = unequal([every, same, result("a")], BUDGET | {"tokens": 9_000}, CORPUS)
    assert any("9k tokens, under 1% of the training text" in sentence for sentence in little)
    whole = unequal([every, result("a")], BUDGET | {"tokens": 2_000_000}, CORPUS)
    assert any("so that the same text and all of it are one" in sentence for sentence in whole)


def test_a_state_that_grows_is_named_with_its_rate() -> None:
    text = "\n".join(
        unequal([result("a", state_bytes=1 << 20, state_bytes_per_token=4096.0), result("b")], BUDGET, CORPUS)
    )
    assert "a's is 1.0 MiB at 256 tokens and grows by 4.0 KiB a token; b keeps 2.0 KiB at any length" in text


def test_learning_rates_are_listed_where_they_differ() -> None:
    other = {"model": {"dim": 8}, "train": {"optimizer": {"kind": "adamw", "lr": 0.003}}}
    text = "\n".join(unequal([result("a"), result("b", config=other)], BUDGET, CORPUS))
    assert "muon at 0.01 (a), adamw at 0.003 (b)" in text
    assert "muon at 0.01 for all models" in "\n".join(unequal([result("a"), result("b")], BUDGET, CORPUS))


def test_a_rate_is_stated_without_a_word_on_where_it_comes_from() -> None:
    """--set may have changed a preset's rate, and a sweep tunes it."""
    text = "\n".join(unequal([result("a"), result("b")], BUDGET, CORPUS))
    assert "Learning rate: muon at 0.01 for all models." in text
    assert "preset" not in text and "tuned" not in text


def test_times_that_are_not_fit_to_conclude_from_have_no_ratio() -> None:
    slow = [result("a"), result("b", seconds=35.0)]
    assert any(sentence.startswith("Time:") for sentence in unequal(slow, BUDGET, CORPUS))
    assert not any(sentence.startswith("Time:") for sentence in unequal(slow, BUDGET, CORPUS, timed=False))


def test_one_seed_is_said_to_leave_chance_open_and_two_are_not() -> None:
    one = [result("a"), result("b")]
    assert any("one seed each" in sentence for sentence in unequal(one, BUDGET, CORPUS))
    two = [r | {"seed": seed} for r in one for seed in (0, 1)]
    some = "\n".join(unequal(two[:-1], BUDGET, CORPUS))
    assert "b finished with one seed" in some and "one seed each" not in some
    assert not any("one seed each" in sentence for sentence in unequal(two, BUDGET, CORPUS))


def test_failed_models_and_nothing_at_all_are_no_error() -> None:
    failed = {"model": "a", "seed": 0, "status": "failed", "reason": "x", "config": {"model": {}}}
    assert unequal([failed], BUDGET, CORPUS) == []
    assert unequal([], BUDGET, {}) == []


def test_numbers_read_short() -> None:
    assert [compact(n) for n in (7, 950, 1_070_000, 999_999, 2.5e9)] == ["7", "950", "1.07M", "1M", "2.5G"]


def test_equal_parameters_are_said_once() -> None:
    assert "Parameters: 1,000,000 each, 0.0% from the budget." in unequal(
        [result("a"), result("b")], BUDGET, {}
    )
