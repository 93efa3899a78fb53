from __future__ import annotations

import random

import pytest

from mixlab.report.statistics import difference, half_width, student_t
from mixlab.report.verdict import headline
from mixlab.report.view import ModelView, group


def models(**scores: list[float]) -> list[ModelView]:
    """Trained models, each with a score per seed."""
    results = [
        {"model": name, "seed": seed, "bits_per_byte": value, "curve": [{"loss": 1.0}]}
        for name, values in scores.items()
        for seed, value in enumerate(values)
    ]
    return group({"results": results})


def test_the_interval_is_students():
    # 1, 2, 3, 4: mean 2.5, standard deviation 1.290994, t(3) = 3.182446: 3.182446 * 1.290994 / 2 = 2.054260
    assert half_width([1.0, 2.0, 3.0, 4.0]) == pytest.approx(2.05426, abs=1e-3)
    assert half_width([1.0]) is None
    assert student_t(1) == pytest.approx(12.706, abs=1e-3)
    assert student_t(4, 0.99) == pytest.approx(4.604, abs=1e-3)
    assert student_t(60) == pytest.approx(2.000, abs=1e-3)
    assert student_t(31.9) == pytest.approx(2.040, abs=1e-3)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = random.Random(3)
    hits = 0
    for _ in range(2000):
        values = [rng.gauss(0.0, 1.0) for _ in range(3)]
        half = half_width(values)
        assert half is not None
        hits += abs(sum(values) / 3) <= half
    assert 0.93 < hits / 2000 < 0.97


def test_differences_are_paired_by_seed():
    # the seeds move both models together: each score is noisy, their difference is not
    gap = difference(*models(a=[2.0, 2.2, 2.4], b=[2.1, 2.3, 2.5]))
    assert gap is not None and gap.value == pytest.approx(0.1) and gap.half == pytest.approx(0.0, abs=1e-9)
    assert gap.clear


def test_a_clear_win_names_the_winner_the_margin_and_the_interval():
    text = headline(models(b=[2.11, 2.12], a=[2.01, 2.02]))
    assert "a wins with 2.015 bits per byte, 0.100 (4.7%) below b" in text
    assert "95% interval 0.100 to 0.100 over 2 seeds" in text


def test_a_difference_within_the_noise_is_said_to_be_none():
    text = headline(models(a=[2.00, 2.10], b=[2.08, 2.04], c=[2.9, 2.99]))
    assert text.startswith("Not settled: the seeds cannot separate a and b. At this budget a has")
    assert "95% interval −" in text
    assert "wins with" not in text


def test_one_seed_is_said_to_leave_the_noise_unknown():
    text = headline(models(a=[2.0], b=[2.1]))
    assert "a has the lowest loss, 2.000 bits per byte, 0.100 (4.8%) below b" in text
    assert text.startswith("Not settled: with one seed each the noise") and "interval" not in text


def test_a_tie_has_no_winner():
    words = headline(models(a=[2.0], b=[2.0]))
    assert "a and b reach the same loss, 2.000 bits per byte." in words and "lowest" not in words


def test_a_model_with_one_seed_beside_others_is_named():
    text = headline(models(a=[2.0], b=[2.1, 2.2]))
    assert "Not settled: a ran with one seed only." in text


def test_a_counted_model_has_no_seed_noise():
    counted = {"model": "ngram", "seed": 0, "bits_per_byte": 2.5, "curve": [], "evals": []}
    trained = [
        {"model": "rnn", "seed": s, "bits_per_byte": b, "curve": [{}]}
        for s, b in enumerate([2.400, 2.402, 2.404])
    ]
    gap = difference(*group({"results": [counted, *trained]}))
    assert gap is not None and gap.value == pytest.approx(0.098)
    assert gap.half == pytest.approx(half_width([2.400, 2.402, 2.404]))


def test_seeds_that_do_not_pair_get_welchs_interval():
    def result(model: str, seed: int, value: float) -> dict:
        return {"model": model, "seed": seed, "bits_per_byte": value, "curve": [{}]}

    a, b = [1.0, 1.2], [2.0, 2.4]
    views = group(
        {
            "results": [
                *(result("a", i, v) for i, v in enumerate(a)),
                *(result("b", 9 + i, v) for i, v in enumerate(b)),
            ]
        }
    )
    gap = difference(*views)
    # s2 = 0.02 and 0.08: se = sqrt(0.05), freedom = 0.05^2 / (0.01^2 + 0.04^2) = 1.47 -> 1
    assert gap is not None and gap.half == pytest.approx(12.7062 * 0.05**0.5)


def test_a_single_model_is_described_and_failures_are_named():
    one = [{"model": "gru", "bits_per_byte": 2.25, "tokens": 1_600_000, "seconds": 48.2, "curve": [{}]}]
    assert (
        headline(group({"results": one})) == "gru reaches 2.250 bits per byte after 1.60M tokens in 48.2 s."
    )
    failed = [{"model": "x", "status": "failed", "reason": "NaN"}]
    assert "x" in headline(group({"results": [*one, *failed]}))
    assert headline(group({"results": failed})).startswith("No model finished.")
    assert headline(group({})) == "No model finished."
