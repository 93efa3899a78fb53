"""Readers of what is printed may go away: the work and its exit status are as if they had stayed."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest
from tests.cli.conftest import Command

from mixlab.cli.streams import Outliving, is_gone, outliving


@pytest.fixture
def files() -> Iterator[list[TextIO]]:
    """Files that are closed at the end."""
    kept: list[TextIO] = []
    yield kept
    for file in kept:
        file.close()


@pytest.fixture
def unread(files: list[TextIO]) -> Callable[[bool], TextIO]:
    """Makes a stream whose reader is gone, by `every`."""

    def make(every: bool) -> TextIO:
        reader, writer = os.pipe()
        os.close(reader)
        files.append(os.fdopen(writer, "w"))
        return outliving(files[-1], every=every)

    return make


@pytest.mark.parametrize("every", [True, False])
def test_what_nobody_reads_is_dropped(unread: Callable[[bool], TextIO], every: bool) -> None:
    stream = unread(every)
    assert not is_gone(stream)
    for _ in range(3):
        print("a line", file=stream, flush=True)
    assert is_gone(stream) and not stream.isatty()


def test_a_full_disk_is_no_reader_that_left_but_stderr_bears_it_too(files: list[TextIO]) -> None:
    files.append(os.fdopen(os.open("/dev/full", os.O_WRONLY), "w"))
    result = outliving(files[0], every=False)
    with pytest.raises(OSError, match="No space left"):
        print("a line", file=result, flush=True)
    print("and one that follows", file=result, flush=True)  # raised once is enough
    print("a line", file=outliving(files[0], every=True), flush=True)


def test_what_is_read_arrives_as_it_was_written(files: list[TextIO]) -> None:
    reader, writer = os.pipe()
    files += [os.fdopen(writer, "w", encoding="utf-8"), os.fdopen(reader)]
    stream = outliving(files[0], every=True)
    assert isinstance(stream.buffer.raw, Outliving)  # type: ignore[attr-defined]
    print("\u00e9t\u00e9", file=stream, flush=True)
    assert os.read(reader, 99) == "\u00e9t\u00e9\n".encode()
    assert stream.fileno() == writer


def test_text_ends_where_nobody_reads_it(
    mixlab: Command, runs: Path, unread: Callable[[bool], TextIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def pieces(*_: object) -> Iterator[str]:
        for number in itertools.count():
            assert number < 1000, "it goes on for nobody"
            drawn.append(number)
            yield "word "

    monkeypatch.setattr("mixlab.decode.stream_text", pieces)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", unread(False))
        assert mixlab("generate", "given/ngram").status == 0
    assert len(drawn) <= 1


@pytest.mark.parametrize(("status", "expected"), [("done", 0), ("failed", 1)])
def test_a_comparison_of_which_one_line_is_read_is_finished_and_says_how_it_went(
    mixlab: Command,
    unread: Callable[[bool], TextIO],
    monkeypatch: pytest.MonkeyPatch,
    status: str,
    expected: int,
) -> None:
    result = {"model": "gru", "seed": 0, "status": status, "bits_per_byte": 2.0, "reason": "it broke"}
    comparison = {"budget": {"context": 16, "unequal": []}, "results": [result]}
    monkeypatch.setattr("mixlab.cli.compare._work", lambda *_: comparison)
    written = []
    monkeypatch.setattr("mixlab.report.write_report", lambda _, path: written.append(path) or path)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", unread(False))
        assert mixlab("compare", "--models", "gru").status == expected
    assert written
