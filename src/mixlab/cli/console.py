"""What the verbs say: results on stdout, notes and progress on stderr."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, TextIO

from mixlab.cli.timeleft import TimeLeft

QUIET_SECONDS = 5.0
"""Plain progress: at most one line in this time, few enough to read in a log, often enough to see life."""


def note(sentence: str) -> None:
    """A sentence on stderr that is not the result."""
    print(f"note: {sentence}", file=sys.stderr, flush=True)


def print_json(result: Mapping[str, Any] | Sequence[Any]) -> None:
    """The result as one line of strict JSON on stdout; NaN and infinities become null."""
    from mixlab.train.metrics import strict

    print(json.dumps(strict(result), allow_nan=False, ensure_ascii=False))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned text: the first column to the left, the others, numbers, to the right; no final newline."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "  ".join([first, *rest]).rstrip()

    return "\n".join(map(line, [columns, *rows]))


def short(value: float) -> str:
    """A large number in few characters: 950, 12.3k, 4.0M, 379G."""
    for suffix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            scaled = value / size
            return f"{scaled:.0f}{suffix}" if abs(scaled) >= 100 else f"{scaled:.1f}{suffix}"
    return f"{value:.0f}"


def evaluating(line: Mapping[str, Any]) -> str:
    """How far an evaluation is, by its line."""
    return f"evaluating {line['scored'] / line['total']:.0%}"


LONGEST_CLOCK, DAY, YEAR = 100 * 3600.0, 24 * 3600.0, 365.25 * 24 * 3600.0


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss, from 100 hours on in days and years, of which ten are the most."""
    if not seconds < 10 * YEAR:
        return "more than 10 years"
    if seconds >= YEAR:
        return f"{seconds / YEAR:.1f} years"
    if seconds >= LONGEST_CLOCK:
        return f"{seconds / DAY:.1f} days"
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress:
    """One training run's progress on stderr: a live line on a terminal, else a plain line now and then.

    A context manager, and the callable that `mixlab.train.train` takes as `progress`: it is given the lines
    of metrics.jsonl as they are written. `fraction` tells from a line how much of the run is done (0 to 1).
    """

    def __init__(
        self,
        label: str,
        fraction: Callable[[Mapping[str, Any]], float],
        *,
        stream: TextIO | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.label = label
        self.fraction = fraction
        self.stream = stream or sys.stderr
        self.now = now
        self.left = TimeLeft(now)
        self.last_shown = -QUIET_SECONDS
        self.shown: dict[str, Any] = {}
        self.fresh = False
        self.done = 0.0
        self.live: Any = None
        self.stages: Any = None

    def __enter__(self) -> Progress:
        if is_terminal(self.stream):
            from mixlab.cli.live import View

            self.live = View(self.stream, self.label)
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()
        else:
            self._plain()

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Take one line of metrics.jsonl or of `prepare`, or a note; other kinds are ignored."""
        if line.get("kind") == "note":
            note(line["message"])
        if line.get("kind") == "prepare":
            self._prepare(line)
        if line.get("kind") == "start":
            self.left.plan = line.get("evaluation", {})
        if line.get("kind") == "watch" and self.live is not None:
            self.live.take(line, self.done, self._left())
        if line.get("kind") not in ("step", "eval", "evaluating"):
            return
        self.shown.pop("scored", None)
        self.shown |= line
        if line["kind"] == "eval":
            self.shown["evaluated"] = line.get("step")
        self.fresh = True
        self.done = min(1.0, self.fraction(line))
        self.left.take(line, self.done)
        if self.live is not None:
            self.live.take(line, self.done, self._left())
        elif self.now() - self.last_shown >= QUIET_SECONDS:
            self.last_shown = self.now()
            self._plain()

    def _prepare(self, line: Mapping[str, Any]) -> None:
        """Show how far the text is; as plain lines only once it has taken its time."""
        if self.stages is None:
            from mixlab.cli.preparing import Stages

            self.stages, self.last_shown = Stages(self.now), self.now()
        shown = self.stages(line)
        if self.live is not None:
            self.live.prepare(shown.fraction, shown.facts)
        elif self.now() - self.last_shown >= QUIET_SECONDS:
            self.last_shown = self.now()
            print(f"{self.label}  {shown.facts}", file=self.stream, flush=True)

    def _plain(self) -> None:
        if self.fresh:
            self.fresh = False
            print(f"{self.label}  {self.done:4.0%}  {self._facts()}", file=self.stream, flush=True)

    def _facts(self) -> str:
        facts = [f"step {self.shown['step']}"] if "step" in self.shown else []
        if self.shown.get("loss") is not None:
            facts.append(f"loss {self.shown['loss']:.3f} nats")
        if self.shown.get("bits_per_byte") is not None:
            at, evaluated = self.shown.get("step"), self.shown.get("evaluated")
            when = "" if evaluated == at else f" at step {evaluated}"
            facts.append(f"valid {self.shown['bits_per_byte']:.3f} bits/byte{when}")
            facts += [f"{name} {bits:.3f}" for name, bits in self.shown.get("sources", {}).items()]
        if self.shown["kind"] == "evaluating":
            return "  ".join([*facts, evaluating(self.shown), *filter(None, [self._left()])])
        if self.shown.get("tokens_per_second"):
            facts.append(f"{short(self.shown['tokens_per_second'])} tokens/s")
        if left := self._left():
            facts.append(left)
        return "  ".join(facts)

    def _left(self) -> str:
        seconds = self.left.seconds
        return "" if seconds is None else f"{clock(seconds)} left"


def is_terminal(stream: TextIO) -> bool:
    """Whether what was printed there can be drawn over."""
    return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def live_line(stream: TextIO, label: str) -> Any:
    """A bar with a label before and facts behind it, to be started and stopped; task 0 is the bar's."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Live

    live = Live(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TextColumn("{task.fields[facts]}", markup=False),
        console=Console(file=stream),
        refresh_per_second=4,  # the thread that draws takes time from the ones that train
    )
    live.add_task(label, total=1.0, facts="")
    return live
