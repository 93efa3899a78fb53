"""A run's meters on its page: exact figures in the sentences, thin curves, bands, and runs in any state."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mixlab.report import from_run, render
from mixlab.report.curves import MAX_POINTS
from mixlab.report.joined import merge
from mixlab.report.meter_figures import _ticks
from mixlab.report.meters import gather, series
from tests.report.test_from_run import CONFIG, evaluation, run, step
from tests.report.test_page import Page, payload

ALL = {
    "meter-grad_norm", "meter-update_ratio", "meter-lr", "meter-tokens_per_second", "meter-peak_fraction",
    "meter-memory_bytes",
    "meter-attention_logit", "meter-attention_entropy", "meter-effective_rank", "meter-dead_units",
}  # fmt: skip


def metered(n: int, **more: Any) -> dict[str, Any]:
    """A step's line with its meters; the third has the largest gradient."""
    norm = 40.0 if n == 3 else (2.0 if n % 2 == 0 else 0.5)
    rate = 0.01 * (1 - n / 1000)
    return {
        **step(n),
        "lr": rate,
        "learning_rates": {"muon/matrix": rate, "adamw/head": rate / 2, "adamw/gain": rate / 2},
        "grad_norm": norm,
        "grad_norm_clipped": min(norm, 1.0),
        "clipped_fraction": 0.5,
        "tokens_per_second": 1000.0 + n,
        "peak_fraction": 0.4,
        "memory_bytes": 2**29 + n * 2**20,
        **more,
    }


def look(n: int, logits: list[float | None], **warnings: str) -> dict[str, Any]:
    return {
        "kind": "watch",
        "step": n,
        "attention_logit": logits,
        "attention_entropy": [3.0, 2.0],
        "effective_rank": [20.0, 30.0],
        "dead_units": [0.0, 0.25],
        "warnings": warnings,
    }


def lines(steps: int = 12) -> list[dict[str, Any]]:
    ratios = {"update_ratio": {"matrix": 0.01, "head": 0.7, "gain": None}}
    return [
        metered(1, **ratios),
        look(1, [4.0, 5.0], update_ratio="the update-to-weight ratio is 0.7 in the head parameters"),
        *(metered(n) for n in range(2, 10)),
        metered(10, update_ratio={"matrix": 0.02, "head": 0.001}),
        look(10, [120.0, 50.0], attention_logit="the largest attention logit is 120 in layer 0"),
        *(metered(n) for n in range(11, steps + 1)),
    ]


def test_a_series_says_exactly_what_thinning_hides() -> None:
    points = [(float(n), float(n % 7)) for n in range(1, 100_001)] + [(100_001.0, -5.0), (100_002.0, 99.0)]
    found = series(points)
    assert found is not None
    assert len(found["x"]) == len(found["low"]) == MAX_POINTS
    assert max(found["high"]) == 99 and min(found["low"]) == -5  # a spike of one step is still to be seen
    assert sum(found["y"]) / MAX_POINTS == pytest.approx(3, abs=0.01)
    assert (found["median"], found["last"], found["last_at"]) == (3, 99, 100_002)
    assert (found["most_at"], found["least_at"]) == (100_002, 100_001)
    short = series([(1.0, 2.0), (2.0, 4.0)])
    assert short is not None and "low" not in short and short["y"] == [2, 4] and short["median"] == 3
    assert series([]) is None


def test_a_long_runs_page_is_no_heavier_than_a_short_ones() -> None:
    sizes = []
    for steps in (2 * MAX_POINTS, 20 * MAX_POINTS):
        found = gather([metered(n) for n in range(1, steps + 1)])
        sizes.append(len(json.dumps(found)))
    assert sizes[1] < 1.3 * sizes[0]


def test_the_layer_nearest_to_its_limit_is_drawn_and_the_layers_span_an_area() -> None:
    found = gather(lines())["watch"]
    assert found["attention_logit"]["y"] == [5, 120] and found["attention_entropy"]["y"] == [2, 2]
    assert (found["attention_logit"]["low"], found["attention_logit"]["high"]) == ([4, 50], [5, 120])
    assert (found["attention_logit"]["last_layer"], found["attention_entropy"]["last_layer"]) == (0, 1)
    assert found["effective_rank"]["worst_layer"] == 0 and found["dead_units"]["worst_layer"] == 1
    nothing = gather([metered(1), look(1, [None, None])])["watch"]
    assert "attention_logit" not in nothing and "effective_rank" in nothing


def test_one_runs_figures_and_sentences(tmp_path: Path) -> None:
    html = render(from_run(run(tmp_path, [*lines(), evaluation(12, 2.5), {"kind": "end", "status": "done"}])))
    page, figures = Page(html), payload(html)["figures"]
    assert set(page.figures()) >= ALL
    for sentence in (
        "gru's gradient has a norm of 2 in the median and of 40 at most, at step 3; 50% of the steps were "
        "clipped to 1 (dotted).",
        "In the median a step changed the head parameters most, by 35% of their norm; the most of all was "
        "70%, of the head parameters at step 1. Shaded is what is healthy, up to 0.5.",
        "The rate was highest at step 1, 0.00999, and was 0.00988 at step 12; groups of parameters had 2 "
        "different ones, drawn.",
        "1,008 tokens/s in the median; 1,001 tokens/s in the slowest step, 1, and 1,012 tokens/s in the "
        "fastest, 12.",
        "40% in the median; ",
        "518 MiB in the median, 524 MiB at most, at step 12.",
        "120 in layer 0 at step 10; highest in layer 0 at step 10, 120. Shaded is what is healthy, up to "
        "100.",
        "Step 1 (1 of 2 looks): the update-to-weight ratio is 0.7 in the head parameters.",
        "Step 10 (1 of 2 looks): the largest attention logit is 120 in layer 0.",
        "Source: Zhai et al. 2023",
    ):
        assert sentence in page.text, sentence
    names = {trace["name"] for trace in figures["meter-lr"]["all"]["data"]}
    assert names == {"muon: matrix", "adamw: head, gain"}
    assert figures["meter-memory_bytes"]["all"]["data"][0]["y"][-1] == pytest.approx(524 / 1024, rel=1e-3)
    ratios = {t["name"]: t["y"] for t in figures["meter-update_ratio"]["all"]["data"]}
    assert ratios == {"matrix": [0.01, 0.02], "head": [0.7, 0.001]}


def test_what_is_shaded_is_the_band(tmp_path: Path) -> None:
    figures = payload(render(from_run(run(tmp_path, lines()))))["figures"]

    def shade(name: str) -> tuple[float, float, list[float]]:
        layout = figures[f"meter-{name}"]["all"]["layout"]
        (area,) = [shape for shape in layout["shapes"] if shape["type"] == "rect"]
        edges = layout["yaxis"]["range"]
        return area["y0"], area["y1"], [10**e for e in edges] if layout["yaxis"].get("type") else edges

    low, high, span = shade("attention_logit")
    assert low == pytest.approx(span[0]) and high == 100 < span[1]
    low, high, span = shade("attention_entropy")
    assert low == 0.1 and high == pytest.approx(span[1]) and span[0] < 0.1
    assert shade("update_ratio")[1] == 0.5 and shade("effective_rank")[0] == 2


def test_several_runs_have_a_figure_for_each_role_and_tell_their_warnings_apart(tmp_path: Path) -> None:
    folders = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        folders.append(run(folder, [*lines(), evaluation(12, 2.5)], CONFIG.replace("gru", name, 1)))
    html = render(merge([from_run(folder) for folder in folders], folders))
    page = Page(html)
    assert {"meter-update_ratio-matrix", "meter-update_ratio-head"} <= set(page.figures())
    assert "Median norm: one 2 and two 2. Share of clipped steps (dotted): one 50% and two 50%." in page.text
    assert "The largest change in a step: one 70% at step 1 and two 70% at step 1." in page.text
    assert "two, step 10 (1 of 2 looks): the largest attention logit is 120 in layer 0." in page.text
    head = payload(html)["figures"]["meter-update_ratio-head"]["all"]
    assert [trace["meta"]["model"] for trace in head["data"]] == ["one", "two"]
    assert sorted(note["name"] for note in head["layout"]["annotations"]) == ["one", "two"]
    assert "The highest: one 120 at step 10 and two 120 at step 10." in page.text


def test_a_warning_without_a_figure_has_its_source_too(tmp_path: Path) -> None:
    risen = look(12, [4.0, 5.0], loss_rise="the rise of the mean loss over its lowest is 0.9 nats")
    text = Page(render(from_run(run(tmp_path, [*lines(), risen])))).text
    assert "Step 12 (1 of 3 looks): the rise of the mean loss over its lowest is 0.9 nats." in text
    assert "The rise of the mean loss over its lowest, up to 0.3. Source: our own limit" in text


def test_a_run_without_warnings_says_so(tmp_path: Path) -> None:
    healthy = [line for line in lines() if line["kind"] == "step"] + [look(12, [4.0, 5.0])]
    text = Page(render(from_run(run(tmp_path, healthy)))).text
    assert "Attention entropy, from 0.1 on. Source: " in text and "The rise of the mean loss" not in text
    assert "In 1 look nothing left its healthy band." in text and "What left its healthy band" not in text


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_run_killed_in_the_middle_of_a_line_before_its_first_evaluation(tmp_path: Path, steps: int) -> None:
    torn = json.dumps(metered(steps + 1))[:-40]
    folder = run(tmp_path, [metered(n) for n in range(1, steps + 1)], torn=torn)
    page = Page(render(from_run(folder)))
    assert "its process ended without a word" in page.text and "No model has a score yet." in page.text
    assert ("meter-grad_norm" in page.figures()) == (steps > 0)


def test_a_run_that_diverged_before_its_first_evaluation_keeps_its_curves(tmp_path: Path) -> None:
    end = {"kind": "end", "status": "failed", "message": "the loss is nan at step 13"}
    last = {**metered(12), "grad_norm": None, "loss": None}
    html = render(from_run(run(tmp_path, [*lines()[:-1], last, end])))
    page = Page(html)
    assert "No model has a score: gru failed after step 12." in page.text
    assert (
        "What ended early" in page.text
        and "gru failed after step 12: the loss is nan at step 13." in page.text
    )
    assert {"meter-grad_norm", "loss-tokens"} <= set(page.figures())
    assert len(payload(html)["figures"]["meter-grad_norm"]["all"]["data"][0]["x"]) == 11


def test_a_run_that_broke_off_is_neither_best_nor_left_out_of_the_headline(tmp_path: Path) -> None:
    folders = []
    for name, end in (("good", "done"), ("bad", "failed")):
        folder = tmp_path / name
        folder.mkdir()
        scored = [evaluation(12, 2.5)] if end == "done" else []
        steps = 12 if end == "done" else 11
        found = [
            *lines(steps),
            *scored,
            {"kind": "end", "status": end, "message": "it broke", "seconds": steps},
        ]
        folders.append(run(folder, found, CONFIG.replace("gru", name, 1)))
    html = render(merge([from_run(folder) for folder in folders], folders))
    assert "good reaches 2.500 bits per byte" in html and "Failed, and shown with the reason: bad." in html
    assert "bad failed after step 11: it broke." in html
    row = html[html.index('data-value="bad"') :]
    assert 'class="number best"' not in row[: row.index("</tr>")]


def test_a_page_of_single_evaluations_begins_with_the_training_loss(tmp_path: Path) -> None:
    for evaluations, first in (([12], "train"), ([6, 12], "valid"), ([], None)):
        found = [*lines(), *(evaluation(n, 2.5 - n / 100) for n in evaluations)]
        html = render(from_run(run(tmp_path, found)))
        pressed = [attrs["data-view"] for _, attrs in Page(html).tags if attrs.get("aria-pressed") == "true"]
        assert pressed == ([first] if first else []), evaluations


def test_a_run_that_failed_before_its_first_step_has_only_its_reason(tmp_path: Path) -> None:
    end = {"kind": "end", "status": "failed", "message": "the disk is full"}
    page = Page(render(from_run(run(tmp_path, [end]))))
    assert "No model finished." in page.text and "the disk is full" in page.text
    assert not [figure for figure in page.figures() if figure.startswith("meter-")]


def test_a_resume_with_another_config_is_said(tmp_path: Path) -> None:
    change = {"kind": "config", "step": 6, "changes": {"train.optimizer.lr": [0.01, 0.02]}}
    found = lines()
    text = Page(render(from_run(run(tmp_path, [*found[:7], change, *found[7:]])))).text
    assert "gru went on at step 6 with train.optimizer.lr 0.02 (it was 0.01)." in text


def test_what_an_older_run_does_not_say_is_left_out(tmp_path: Path) -> None:
    page = Page(render(from_run(run(tmp_path, [step(1), step(2), evaluation(2, 2.5)]))))
    assert "How training went" not in page.text and "The watch list" not in page.text
    assert gather([step(1), {"kind": "watch", "step": 1, "attention_logit": 3, "warnings": None}]) == {}


def test_ticks_of_a_logarithmic_axis_are_few_and_inside_reach() -> None:
    for low, high in ((-0.1, 0.9), (-4, 1), (-9, 9), (0.2, 0.5), (3, 7)):
        ticks = _ticks(low, high)
        inside = [value for value in ticks["tickvals"] if low <= math.log10(value) <= high]
        assert 2 <= len(inside) <= 7 or high - low < 0.5, (low, high, inside)
    assert _ticks(3, 7)["ticktext"][:5] == ["1000", "10k", "100k", "1M", "10M"]
    assert _ticks(-3, 0)["ticktext"][:4] == ["0.001", "0.01", "0.1", "1"]
