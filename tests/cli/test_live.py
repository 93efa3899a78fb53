"""The live view says what the record says, in any width."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
from rich.console import Console

from mixlab.cli.comparison import ComparisonProgress
from mixlab.cli.console import Progress
from mixlab.cli.live import BLOCKS, Losses, View, flow, sparkline


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def step(number: int, **more: Any) -> dict[str, Any]:
    line = {"kind": "step", "step": number, "tokens": 4096 * number, "seconds": 2.0 * number, "loss": 3.25}
    return {
        **line,
        "lr": 1e-3,
        "tokens_per_second": 9e9,
        "peak_fraction": 0.43,
        "memory_bytes": 2**29,
        **more,
    }


def rendered(view: View, width: int, encoding: str = "utf-8") -> list[str]:
    """The lines that stand on a terminal so wide."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    Console(file=file, width=width, legacy_windows=False).print(view)
    file.flush()
    return [line.rstrip() for line in raw.getvalue().decode(encoding).splitlines()]


def filled(label: str = "transformer") -> View:
    view = View(Terminal(), label)
    for number in range(1, 41):
        view.take(step(number, loss=1 + 4 * math.exp(-number / 8)), number / 80, "1:23 left")
    view.take({"kind": "eval", "step": 40, "bits_per_byte": 2.5}, 0.5, "1:23 left")
    return view


def test_the_curve_is_kept_in_bounded_memory_as_exact_means() -> None:
    losses, values = Losses(most=8), [float(n * n % 23) for n in range(37)]
    for value in values:
        losses.add(value)
    assert (losses.span, len(losses.bins)) == (8, 4)
    assert losses.bins == [sum(values[i : i + 8]) / 8 for i in range(0, 32, 8)]
    assert losses.columns(99)[:-1] == losses.bins
    assert losses.columns(99)[-1] == sum(values[32:]) / 5
    rest = losses.columns(99)[-1]
    assert losses.columns(2) == [sum(losses.bins[:2]) / 2, (sum(losses.bins[2:]) + rest) / 3]
    losses.add(math.nan)
    losses.add(math.inf)
    assert losses.columns(1) == [pytest.approx(sum(losses.columns(99)) / 5)]
    assert Losses().columns(5) == []


def test_a_sparkline_goes_from_lowest_to_highest() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == BLOCKS
    assert sparkline([7.0, 0.0, 3.0]) == "█▁▄"
    assert sparkline([5.0, 5.0]) == "▁▁"
    assert sparkline([]) == ""
    steep = sparkline([100.0, 2.0, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4, 1.3, 1.2, 1.1])  # the first tenth is cut off
    assert (steep[0], steep[1], steep[-1]) == ("█", "█", "▁")
    assert len(set(steep)) > 5


def test_the_view_at_eighty_columns() -> None:
    bar, curve, *facts = rendered(filled(), 80)
    assert bar.startswith("transformer  ━") and bar.endswith(" 50%  1:23 left")
    assert curve.startswith("loss 1.027 nats  █") and curve.endswith("▁")
    assert facts == [
        "step 40  valid 2.500 bits/byte at 40  lr 1.00e-03  2.0k tokens/s  43% of peak",
        "512 MiB",
    ]


@pytest.mark.parametrize("width", [20, 30, 50, 80, 200])
def test_nothing_is_wider_than_the_terminal_and_no_fact_is_cut(width: int) -> None:
    view = filled("a-name-that-is-as-long-as-a-folder-may-be")
    warning = (
        "attention entropy is 0.05 in layer 1, healthy from 0.1 on: nearly every query sees one key alone"
    )
    view.take({"kind": "watch", "step": 40, "warnings": {"attention_entropy": warning}}, 0.5, "1:23 left")
    lines = rendered(view, width)
    assert max(map(len, lines)) <= width
    text = " ".join(lines)
    if width >= 30:
        assert lines[0].endswith("50%  1:23 left")
        for fact in ("step 40", "valid 2.500 bits/byte at 40", "lr 1.00e-03", "43% of peak", "512 MiB"):
            assert any(fact in line for line in lines), fact
    assert f"! {warning}" in text
    view.take({"kind": "watch", "step": 50, "warnings": {}}, 0.5, "")
    assert "!" not in " ".join(rendered(view, width))


def test_throughput_is_that_of_the_last_steps_by_the_record() -> None:
    view = View(Terminal(), "gru")
    view.take(step(1, tokens_per_second=1234.0), 0.1, "")
    assert "1.2k tokens/s" in " ".join(rendered(view, 80))
    view.take(step(2, tokens_per_second=9.0), 0.1, "")
    assert "2.0k tokens/s" in " ".join(rendered(view, 80))  # 4096 in 2 s


def test_a_loss_that_json_cannot_hold_leaves_the_view_standing() -> None:
    view = filled()
    view.take(step(41, loss=None), 0.5, "")
    assert rendered(view, 80)[1].startswith("loss - nats")


def test_without_unicode_the_curve_is_drawn_in_ascii() -> None:
    for line in rendered(filled(), 80, "ascii"):
        assert line.isascii()
    assert "loss 1.027 nats  #" in rendered(filled(), 80, "ascii")[1]


def test_facts_flow() -> None:
    assert [str(line) for line in flow(["aaa", "bb", "cccc", "d" * 9], 8)] == ["aaa  bb", "cccc", "d" * 9]


def test_the_text_is_prepared_in_view_and_then_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    with Progress("gru", lambda line: line["step"] / 10, stream=Terminal()) as progress:
        prepare = {"kind": "prepare", "stage": "encoding", "unit": "bytes", "done": 500, "total": 1000}
        progress(prepare)
        assert rendered(progress.live, 80)[1] == "encoding  500 of 1.0k bytes"
        progress(step(5))
        assert not any("encoding" in line for line in rendered(progress.live, 80))
        assert "step 5" in rendered(progress.live, 80)[2]


def test_a_comparison_begins_each_run_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    now = iter(range(100))
    with ComparisonProgress(stream=Terminal(), now=lambda: float(next(now))) as progress:
        progress({"kind": "plan", "counted": [False, False], "steps": 10})
        run = {"kind": "run", "runs": 2, "seed": 0}
        progress({**run, "index": 1, "model": "gru", "status": "begun"})
        for number in (1, 2):
            progress(step(number))
        bar, _, facts = rendered(progress.live, 80)
        assert bar.startswith("1/2 gru") and bar.endswith("left for all") and facts.startswith("step 2")
        progress({**run, "index": 1, "model": "gru", "status": "done"})
        progress({**run, "index": 2, "model": "lstm", "status": "begun"})
        (bar,) = rendered(progress.live, 80)
        assert bar.startswith("2/2 lstm") and bar.endswith("50%")


def test_a_long_evaluation_is_in_view_until_it_is_over() -> None:
    view = filled()
    view.take({"kind": "evaluating", "step": 40, "scored": 300, "total": 2400}, 0.5, "0:40 left")
    bar, _, facts, *_ = rendered(view, 80)
    assert bar.endswith("50%  0:40 left") and facts.startswith("step 40  evaluating 12%  ")
    view.take({"kind": "eval", "step": 40, "bits_per_byte": 2.25}, 0.5, "0:30 left")
    assert "evaluating" not in " ".join(rendered(view, 80))
