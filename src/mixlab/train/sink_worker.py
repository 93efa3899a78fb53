"""The process that a sink runs in: `python -m mixlab.train.sink_worker check|run MODULE:CLASS`.

It reads JSON lines on stdin, first the start {"run", "step", "config"}, then {"step", "values"}, to the end.
What it says on stdout is why the sink cannot be used (check), or why it is out (run); nothing if all is well.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a sink is told first. run: the folder; step: what it goes on from; config: as in config.toml."""

    run: Path
    step: int
    config: Mapping[str, Any]


class Sink(Protocol):
    """Takes a run's numbers. Any method may raise anything."""

    def check(self) -> str:
        """Import what it needs; a phrase if it cannot be used here ("is ..."), else nothing."""

    def open(self, start: Start) -> None:
        """Begin, or go on after a step."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take finite numbers, by name."""

    def close(self) -> None:
        """All was written."""


def main(what: str, where: str) -> int:
    """Do as the module says; returns the exit status."""
    parent = _take_stdout()
    try:
        said = (check if what == "check" else run)(where)
    except BaseException as error:  # a library may even raise SystemExit
        said = _describe(error)
    print(said, file=parent, flush=True, end="")
    return int(bool(said))


def check(where: str) -> str:
    """Why the sink cannot be used, as a phrase; nothing if it can."""
    sink = _make(where)
    try:
        return sink.check()
    except Exception as error:  # a package that is there and broken is of no more use than none
        return f"cannot be used ({_describe(error)})"


def run(where: str) -> str:
    """Feed the sink until stdin ends; returns nothing."""
    sink = _make(where)
    start = json.loads(sys.stdin.readline())
    sink.open(Start(run=Path(start["run"]), step=start["step"], config=start["config"]))
    for text in sys.stdin:
        line = json.loads(text)
        sink.write(line["step"], line["values"])
    sink.close()
    return ""


def _describe(error: BaseException) -> str:
    first = next(iter(str(error).strip().splitlines()), "no message")
    return f"{type(error).__name__}: {first}"


def _make(where: str) -> Sink:
    module, _, name = where.partition(":")
    sink: Sink = getattr(importlib.import_module(module), name)()
    return sink


def _take_stdout() -> TextIO:
    """The real stdout for the parent alone: what a library prints goes to stderr from here on."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return stream


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
