from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from mixlab.report import curves, facts, palette, readings, units
from mixlab.report.figures import HEIGHT, LABEL_GAP, MARGIN, labels
from mixlab.report.view import clean, group
from tests.report.synthetic import comparison


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (units.count, 950, "950"),
        (units.count, 9_500, "9,500"),
        (units.count, 1_234_567, "1.23M"),
        (units.count, 999_999, "1.00M"),
        (units.count, 12_345, "12.3k"),
        (units.count, None, "–"),
        (units.size, 512, "512 B"),
        (units.size, 262_144, "256 KiB"),
        (units.size, 1024**2 * 1.5, "1.50 MiB"),
        (units.duration, 0.42, "0.42 s"),
        (units.duration, 48.24, "48.2 s"),
        (units.duration, 192, "3 min 12 s"),
        (units.duration, 3_840, "1 h 04 min"),
        (units.work, 2.53e9, "2.53 GFLOP"),
        (units.bits, -0.0111, "−0.011"),
        (units.bits, -0.0001, "0.000"),
        (units.percent, 0.0213, "2.1%"),
        (units.date, "2026-02-11T15:32:07+01:00", "11 February 2026, 14:32 UTC"),
        (units.date, "yesterday", "yesterday"),
    ],
)
def test_units_are_the_ones_people_read(show, value, text):
    assert show(value) == text


def test_clean_makes_strict_json_of_anything():
    odd = {"a": math.nan, "b": [math.inf, np.float32(2.0), np.arange(2)], 3: ("x\ud800", None), "t": True}
    assert clean(odd) == {"a": None, "b": [None, 2.0, [0, 1]], "3": ["x?", None], "t": True}


def test_reach_interpolates_and_never_guesses():
    curve = curves.Curve(x=[0.0, 10.0, 20.0], y=[4.0, 3.0, 1.0])
    assert curves.reach(curve, 2.0) == 15.0
    assert curves.reach(curve, 5.0) == 0.0
    assert curves.reach(curve, 0.5) is None


def test_smoothing_is_a_mean_and_thinning_keeps_the_ends():
    assert curves.moving_average([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]
    kept = curves.thin(10_000, 240)
    assert len(kept) == 240 and kept[0] == 0 and kept[-1] == 9_999
    assert curves.thin(5, 240) == [0, 1, 2, 3, 4]


def test_log_bins_use_every_position_once():
    values = list(np.random.default_rng(0).normal(size=300))
    bins = curves.log_bins(values)
    assert bins.x[0] == 1.0 and bins.x[-1] <= 300 and bins.x == sorted(bins.x)
    assert curves.log_bins([2.5] * 300).y == pytest.approx([2.5] * len(bins.x))
    assert curves.log_bins(list(range(8))).y[:3] == [0, 1, 2]


def test_seeds_become_a_mean_with_the_lowest_and_the_highest_on_shared_steps():
    def evals(values: list[float], extra: int) -> dict:
        lines = [{"step": s, "tokens": 10 * s, "bits_per_byte": v} for s, v in enumerate(values, 1)]
        return {
            "model": "m",
            "seed": extra,
            "evals": [*lines, {"step": 90 + extra, "tokens": 1, "bits_per_byte": 9}],
        }

    (model,) = group({"results": [evals([3.0, 2.0], 1), evals([5.0, 3.0], 2)]})
    curve = curves.eval_curve(model, "tokens")
    assert curve == curves.Curve(x=[10.0, 20.0], y=[4.0, 2.5], low=[3.0, 2.0], high=[5.0, 3.0])


def test_labels_never_overlap_and_stay_in_the_figure():
    models = group(comparison())
    ends = [(model, 2.0 + 0.001 * index) for index, model in enumerate(models)]
    plot = HEIGHT - MARGIN["t"] - MARGIN["b"]
    for span in ([1.9, 2.1], [2.0, 9.0], [0.0, 2.005]):
        heights = sorted(label["y"] * plot for label in labels(ends, span))
        assert all(b - a >= LABEL_GAP - 1e-9 for a, b in pairwise(heights))
        assert heights[0] >= -1e-9 and heights[-1] <= plot + 1e-9


def test_readings_are_computed_from_the_numbers():
    models = group(clean(comparison()))
    assert "transformer ends lowest at 2.143" in readings.tokens(models)
    assert "it passes ngram (2.314) after" in readings.tokens(models)
    assert "every neural model does, transformer needs the least" in readings.loss(models, "seconds")["valid"]
    assert "transformer does the most work per token, 2.47M FLOPs, 57%" in readings.component_flops(models)
    assert "window spends 62%" in readings.component_parameters(models)
    assert "transformer uses the most" in readings.position(models)


def test_contexts_used_alike_are_not_told_apart():
    def read(**losses: list[float]) -> str:
        results = [{"model": name, "curve": [{}], "loss_by_position": ys} for name, ys in losses.items()]
        return readings.position(group({"results": results}))

    early, late = [4.0, 2.0, 2.0, 2.0], [5.0, 5.0, 5.0, 3.0]
    assert "; both have made 95% of their gain by position 2." in read(a=early, b=[y + 1 for y in early])
    assert "; all have made 95%" in read(a=early, b=early, c=early)
    assert "b uses the most of it, making 95% of its gain only by position 4, while a" in read(
        a=early, b=late
    )


def test_a_reading_follows_when_the_numbers_change():
    def result(model: str, ys: list[float]) -> dict:
        return {
            "model": model,
            "bits_per_byte": ys[-1],
            "evals": [{"step": i, "tokens": 100 * i, "bits_per_byte": y} for i, y in enumerate(ys, 1)],
        }

    late = group({"results": [result("a", [3.0, 2.5, 2.0]), result("b", [2.9, 2.6, 2.2])]})
    assert "a ends lowest at 2.000 bits per byte, and led from 200 tokens on" in readings.tokens(late)
    never = group({"results": [result("a", [3.0, 2.5]), {"model": "n", "bits_per_byte": 1.0}]})
    assert "no neural model ends below n (1.000)" in readings.tokens(never)
    always = group({"results": [result("a", [3.0, 2.5]), result("b", [3.1, 2.7])]})
    assert "led at every evaluation" in readings.tokens(always)


def luminance(colour: str) -> float:
    """WCAG 2.2's relative luminance of "#rrggbb"."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("name", ["light", "dark"])
def test_every_line_and_every_text_stands_out_from_the_paper(name):
    theme = palette.THEMES[name]

    def contrast(colour: str, ground: str = "paper") -> float:
        a, b = sorted((luminance(theme[colour]), luminance(theme[ground])))
        return (b + 0.05) / (a + 0.05)

    assert all(contrast(slot) >= 3.0 for slot in (*palette.SLOTS, "neutral"))
    assert all(
        contrast(text, ground) >= 4.5 for text in ("ink", "soft", "warn") for ground in ("paper", "wash")
    )
    assert contrast("accent", "wash") >= 4.5
    assert len({theme[slot] for slot in palette.SLOTS}) == len(palette.SLOTS)


def test_sampled_text_is_made_visible():
    assert facts.visible("a\x00b\tc\n\x1b[0m\x7f\u202e\x9b") == "a␀b\tc\n␛[0m␡��"
    assert facts.visible("x" * 7_000) == "x" * 6_000 + "…"


def test_facts_take_any_shape():
    found = dict(
        facts.pairs(
            {"train_bytes": 2_048, "tokenizer": {"kind": "byte"}, "files": list("abcdefgh"), "x": None}
        )
    )
    assert found == {
        "Training bytes": "2,048 bytes (2.00 KiB)",
        "Tokenizer": "byte",
        "Files": "a, b, c, d, e, f and 2 more",
    }
