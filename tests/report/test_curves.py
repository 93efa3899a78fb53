"""Curves: axes that hold every point or say what they leave out, evaluations of a sample, one point alone."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from mixlab.report import downloads, grid, readings, render
from mixlab.report.curves import eval_curve
from mixlab.report.figures import log_ticks
from mixlab.report.scales import clip_marks, decades, fit, log_suits
from mixlab.report.view import clean, group
from tests.report.synthetic import comparison
from tests.report.test_page import payload


def trained(name: str, losses: list[float], steps: list[int] | None = None, **more: Any) -> dict[str, Any]:
    steps = steps or list(range(1, len(losses) + 1))
    evals = [
        {"step": s, "tokens": 100 * s, "seconds": s / 2, "flops": 1e6 * s, "bits_per_byte": y}
        for s, y in zip(steps, losses, strict=True)
    ]
    return {"model": name, "kind": "neural", "bits_per_byte": losses[-1], "evals": evals} | more


def view(*results: dict[str, Any], figure: str = "loss-tokens", name: str = "valid") -> dict[str, Any]:
    return payload(render({"results": list(results)}))["figures"][figure][name]


def test_an_axis_holds_every_point() -> None:
    scale = fit([[5.0, 3.0, 2.5, 2.2], [4.5, 3.2, 2.6, 2.4]], [2.0])
    assert scale.span[0] < 2.0 and scale.span[1] > 5.0 and scale.clipped == 0 and scale.note() == []


def test_what_would_hide_the_rest_is_clipped_marked_and_counted() -> None:
    well = [4.0, 3.0, 2.5, 2.2, 2.1]
    shown = view(
        trained("a", well),
        trained("b", [4.1, 3.1, 2.6, 2.3, 2.2]),
        trained("bad", [4.0, 60.0, 70.0, 80.0, 90.0]),
    )
    top = shown["layout"]["yaxis"]["range"][1]
    assert 4.1 < top < 60
    (marks,) = [trace for trace in shown["data"] if trace["marker"].get("symbol") == "triangle-up"]
    assert marks["x"] == [200, 300, 400, 500] and all(y < top for y in marks["y"])
    assert marks["customdata"] == ["60.000", "70.000", "80.000", "90.000"]
    assert marks["meta"] == {"model": "bad"}  # hidden with its line
    assert "▲ 4 points above, up to 90.000" in [note["text"] for note in shown["layout"]["annotations"]]


@pytest.mark.parametrize(("bad", "clipped"), [([9.0, 8.0, 7.0], 0), ([7.0, 8.0, 9.0], 3)])
def test_a_bad_model_is_clipped_only_if_it_did_not_learn(bad: list[float], clipped: int) -> None:
    scale = fit([[2.2, 2.1, 2.0], [2.3, 2.1, 2.0], [2.2, 2.1, 2.1], bad], [])
    assert scale.clipped == clipped
    assert (scale.span[1] > bad[-1]) == (clipped == 0)


def test_a_line_of_many_points_is_marked_where_it_leaves_the_axis() -> None:
    scale = fit([[2.0] * 50 + [2.1] * 50], [])
    loss = [2.0, 9.0, 9.0, 2.0, 9.0]
    (marks,) = clip_marks([1, 2, 3, 4, 5], loss, scale, "blue", each=False)
    assert marks["x"] == [2, 5]
    assert clip_marks([1, 2], [2.0, 2.0], scale, "blue", each=True) == []


def test_evaluations_spaced_by_ratios_get_a_logarithmic_axis() -> None:
    assert log_suits([4, 6, 9, 14, 21, 31, 47, 71, 106, 160]) and log_suits([0.0025, 0.005, 0.01, 0.02])
    assert (
        not log_suits(list(range(25, 401, 25))) and not log_suits([50, 100]) and not log_suits([0, 1, 2, 90])
    )
    losses = [5 - n / 4 for n in range(10)]
    spaced = view(trained("a", losses, [4, 6, 9, 14, 21, 31, 47, 71, 106, 160]))["layout"]["xaxis"]
    assert spaced["type"] == "log" and len(spaced["tickvals"]) >= 3
    assert "type" not in view(trained("a", losses))["layout"]["xaxis"]


@pytest.mark.parametrize("ends", [(1.0, 1.0), (900.0, 1100.0), (5e2, 7e2), (1e3, 9e8), (2e-4, 3e-4)])
def test_a_logarithmic_axis_always_has_ticks(ends: tuple[float, float]) -> None:
    low, high = decades(*ends)
    assert low < high and len(log_ticks(low, high)["tickvals"]) >= 2


def test_evaluations_of_a_sample_are_a_line_and_the_full_measure_a_point_of_its_own() -> None:
    result = trained("a", [4.0, 3.0, 2.0, 2.5])
    for n, line in enumerate(result["evals"]):
        line["full"] = n == 3
    (model,) = group(clean({"results": [result]}))
    curve = eval_curve(model, "tokens")
    assert curve is not None and curve.y == [4.0, 3.0, 2.0] and curve.end == (400, 2.5) == curve.last
    text = readings.tokens([model])
    assert "a ends at 2.500 bits per byte" in text and "the diamonds of the last, full measure" in text
    assert "rose" not in text  # a sample's loss and the whole text's are no fall or rise
    shown = view(result)
    assert [trace["x"] for trace in shown["data"] if trace["marker"].get("symbol") == "diamond"] == [[400]]
    for line in result["evals"]:
        line["full"] = True
    (model,) = group(clean({"results": [result]}))
    assert "diamond" not in readings.tokens([model]) and len(eval_curve(model, "tokens").x) == 4  # type: ignore[union-attr]


def test_one_step_is_a_point_that_can_be_seen() -> None:
    step = {"step": 1, "tokens": 100, "seconds": 1.0, "flops": 1e6, "loss": 3.0}
    data = {"results": [{"model": "a", "kind": "neural", "curve": [step]}]}
    for figure in ("loss-tokens", "loss-seconds", "loss-flops"):
        (trace,) = payload(render(data))["figures"][figure]["train"]["data"]
        assert "markers" in trace["mode"]


def test_the_sentence_over_a_line_has_the_lines_unit() -> None:
    curve = [{"step": s, "tokens": s, "seconds": s, "flops": s, "loss": 3 - s / 100} for s in range(1, 101)]
    views = payload(render({"results": [trained("a", [4.0, 3.0], curve=curve)]}))["figures"]["loss-tokens"]
    assert "bits per byte" in views["valid"]["reading"] and "nats" not in views["valid"]["reading"]
    assert (
        "a ends at 2.005 nats per token of training loss, the mean of its last 2 points"
        in views["train"]["reading"]
    )
    only = payload(render({"results": [trained("a", [3.0], curve=curve)]}))["figures"]["loss-tokens"]
    assert (
        "nats per token" in render({"results": [trained("a", [3.0], curve=curve)]}).split("loss-seconds")[0]
    )
    assert set(only) == {"valid", "train"}


def test_downloads_hold_the_table_the_evaluations_and_everything() -> None:
    data = clean(comparison())
    table, curves, everything = downloads.files(data, group(data))
    rows = list(csv.DictReader(io.StringIO(table["content"])))
    assert len(rows) == len(data["results"])
    gru = next(row for row in rows if row["model"] == "gru" and row["seed"] == "1")
    wanted = next(r for r in data["results"] if r["model"] == "gru" and r["seed"] == 1)
    assert float(gru["bits_per_byte"]) == wanted["bits_per_byte"] and gru["kind"] == "neural"
    failed = next(row for row in rows if row["status"] == "failed")
    assert failed["bits_per_byte"] == "" and "NaN at step 57" in failed["reason"]
    lines = list(csv.DictReader(io.StringIO(curves["content"])))
    assert len(lines) == sum(len(r.get("evals", [])) for r in data["results"])
    assert json.loads(json.dumps(everything["content"])) == data
    assert [file["name"][-4:] for file in payload(render(data))["downloads"]] == [".csv", ".csv", "json"]


def sweep(losses: dict[float, float]) -> dict[str, Any]:
    results = [
        trained(f"gru lr={value:g}", [3.0, loss], base="gru", grid={"train.optimizer.lr": value})
        for value, loss in losses.items()
    ]
    return clean({"grid": {"keys": {"train.optimizer.lr": list(losses)}}, "results": results})


def test_a_sweep_is_drawn_against_its_values_and_warns_at_the_edge() -> None:
    data = sweep({0.02: 2.3, 0.005: 2.5, 0.01: 2.4, 0.0025: 2.6})
    (figure,) = grid.figures(data, group(data))
    (line,) = figure.views["all"]["data"]
    assert line["x"] == [0.0025, 0.005, 0.01, 0.02] and line["y"] == [2.6, 2.5, 2.4, 2.3]
    assert figure.views["all"]["layout"]["xaxis"]["type"] == "log"
    (warning,) = grid.warnings(data, group(data))
    assert "0.02, is the largest" in warning and "a larger one may be better" in warning
    assert warning in render(data)
    low = sweep({0.005: 2.2, 0.01: 2.3, 0.02: 2.4})
    (warning,) = grid.warnings(low, group(low))
    assert "0.005, is the smallest" in warning and "a smaller one may be better" in warning
    inside = sweep({0.005: 2.5, 0.01: 2.3, 0.02: 2.4})
    assert grid.warnings(inside, group(inside)) == [] and "the largest" not in render(inside)
