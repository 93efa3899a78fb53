"""Progress can be followed on a terminal and read in a log; numbers are short and right."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping
from typing import Any

import pytest

from mixlab.cli.console import QUIET_SECONDS, Progress, clock, print_json, short, table
from mixlab.cli.evaluate import powers
from mixlab.cli.options import count
from mixlab.cli.preparing import Preparing
from mixlab.cli.train import describe
from mixlab.errors import UserError


class Time:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def step(number: int) -> dict[str, Any]:
    return {"kind": "step", "step": number, "loss": 2.0, "tokens_per_second": 3050.0}


def tenths(line: Mapping[str, Any]) -> float:
    return line["step"] / 10


def test_a_log_gets_a_line_now_and_then_and_the_last() -> None:
    stream, time = io.StringIO(), Time()
    with Progress("gru", tenths, stream=stream, now=time) as progress:
        for number in range(1, 11):
            progress(step(number))
            time.seconds += QUIET_SECONDS / 2
        progress({"kind": "eval", "step": 10, "bits_per_byte": 1.5})
    lines = stream.getvalue().splitlines()
    assert [line.split("step ")[1].split()[0] for line in lines] == ["1", "3", "5", "7", "9", "10"]
    assert lines[0] == "gru   10%  step 1  loss 2.000 nats  3.0k tokens/s"
    # Nine tenths took 8 half-waits since the first line; one tenth is left.
    assert lines[4].endswith(f"3.0k tokens/s  {clock(QUIET_SECONDS / 2)} left")
    assert lines[5] == "gru  100%  step 10  loss 2.000 nats  valid 1.500 bits/byte  3.0k tokens/s"


def test_an_earlier_evaluation_is_named_with_its_step() -> None:
    stream = io.StringIO()
    with Progress("gru", tenths, stream=stream, now=Time()) as progress:
        progress({"kind": "eval", "step": 4, "bits_per_byte": 1.5})
        progress(step(5))
    assert stream.getvalue().splitlines()[0].endswith("valid 1.500 bits/byte")
    assert "step 5  loss 2.000 nats  valid 1.500 bits/byte at step 4  3.0k" in stream.getvalue()
    stopped = {"best_bits_per_byte": 1.5, "best_step": 4, "step": 5}
    assert describe(stopped) == "1.500 bits/byte on the validation text at step 4  5 steps"
    assert describe(stopped | {"step": 4}) == "1.500 bits/byte on the validation text  4 steps"


def test_a_resumed_run_estimates_from_its_own_pace() -> None:
    stream, time = io.StringIO(), Time()
    with Progress("gru", tenths, stream=stream, now=time) as progress:
        progress(step(8))
        time.seconds += 60
        progress(step(9))
    assert stream.getvalue().splitlines()[-1].endswith("1:00 left")


def test_nothing_is_printed_for_a_run_that_did_nothing() -> None:
    stream = io.StringIO()
    with Progress("gru", tenths, stream=stream) as progress:
        progress({"kind": "end", "step": 3})
    assert stream.getvalue() == ""


def test_a_note_is_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("gru", tenths, stream=io.StringIO()) as progress:
        progress({"kind": "note", "message": "3 bytes were replaced"})
    assert capsys.readouterr().err == "note: 3 bytes were replaced\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_live_view_and_a_dumb_one_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    with Progress("gru [2]", tenths, stream=stream) as progress:
        progress(step(1))
        progress(step(10))
    shown = stream.getvalue()
    assert "gru [2]" in shown
    assert "2.000 nats" in shown
    assert "step 10" in shown
    assert "100%" in shown
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with Progress("gru", tenths, stream=stream) as progress:
        progress(step(1))
    assert stream.getvalue() == "gru   10%  step 1  loss 2.000 nats  3.0k tokens/s\n"


def test_numbers_are_short_and_right() -> None:
    values = {0: "0", 950: "950", 12_345: "12.3k", 3_950_000: "4.0M", 379e9: "379G", 2.5e12: "2.5T"}
    assert {value: short(value) for value in values} == values
    assert [clock(s) for s in (0, 59.6, 61, 3725, -3)] == ["0:00", "1:00", "1:01", "1:02:05", "0:00"]
    day = 24 * 3600
    long = [clock(s) for s in (99 * 3600, 10.25 * day, 800 * day, 1e300, float("inf"), float("nan"))]
    assert long == ["99:00:00", "10.2 days", "2.2 years", *["more than 10 years"] * 3]
    assert [list(powers(n)) for n in (0, 1, 5, 8)] == [[], [1], [1, 2, 4, 5], [1, 2, 4, 8]]


def test_a_table_is_aligned() -> None:
    assert table(["a", "loss"], [["long name", "1.5"], ["b", "12.25"]]) == (
        "a           loss\nlong name    1.5\nb          12.25"
    )


def test_json_is_strict(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"x": float("inf"), "y": [float("nan"), 1.5], "z": "\u00e9"})
    assert capsys.readouterr().out == '{"x": null, "y": [null, 1.5], "z": "\u00e9"}\n'


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("2M", 2_000_000),
        ("1.5m", 1_500_000),
        ("500k", 500_000),
        ("1e6", 10**6),
        ("1_000", 1000),
        ("1B", 10**9),
    ],
)
def test_counts_are_read_as_people_write_them(text: str, value: int) -> None:
    assert count(text, "--tokens") == value


@pytest.mark.parametrize("text", ["", "k", "-1", "0", "1.5", "2X", "nan", "inf", "1e400", "two"])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--tokens: "):
        count(text, "--tokens")


def prepared(stage: str, done: int, total: int, unit: str = "B") -> dict[str, object]:
    return {"kind": "prepare", "stage": stage, "done": done, "total": total, "unit": unit}


def test_a_long_preparation_shows_its_pace_and_what_is_left() -> None:
    now, stream = Time(), io.StringIO()
    with Preparing(stream=stream, now=now) as preparing:
        preparing(prepared("reading the text", 0, 2_000_000))
        now.seconds += 10
        preparing(prepared("reading the text", 500_000, 2_000_000))
        now.seconds += 1
        preparing(prepared("encoding the text", 0, 0))  # too soon for another line
        now.seconds += 9
        preparing(prepared("encoding the text", 9000, 0, "characters"))
    assert stream.getvalue().splitlines() == [
        "preparing  reading the text  500k of 2.0M B  50.0k B/s  0:30 left",
        "preparing  encoding the text  1.0k characters/s",
    ]


def test_a_short_preparation_shows_nothing() -> None:
    stream = io.StringIO()
    with Preparing(stream=stream, now=lambda: 3.0) as preparing:
        preparing(prepared("reading the text", 1, 2))
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar_of_the_preparation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    now, stream = itertools.count(0.0, 3.0), Terminal()
    with Preparing(stream=stream, now=now.__next__) as preparing:
        for done in range(0, 2_000_001, 500_000):
            preparing(prepared("reading the text", done, 2_000_000))
    assert "2.0M of 2.0M B" in stream.getvalue() and "100%" in stream.getvalue()


def test_a_run_shows_the_preparation_of_its_text_too() -> None:
    now, stream = itertools.count(0.0, 2.0), io.StringIO()
    with Progress("gru", tenths, stream=stream, now=now.__next__) as progress:
        for done in range(0, 2_000_001, 500_000):
            progress(prepared("reading the text", done, 2_000_000))
    assert stream.getvalue().startswith("gru  reading the text  ")
    assert 1 <= len(stream.getvalue().splitlines()) < 5
