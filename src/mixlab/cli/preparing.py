"""How far the preparation of a text is, in words; on a terminal beside a bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self, TextIO

from mixlab.cli.console import QUIET_SECONDS, clock, is_terminal, live_line, short


class Shown(NamedTuple):
    """What there is to show: a share of the stage (0 where its length is unknown), and a sentence."""

    fraction: float
    facts: str


class Stages:
    """From the lines that `mixlab.data.prepare` gives its `progress` to what a person is shown."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self.stage = ""
        self.began = (0.0, 0)

    def __call__(self, line: Mapping[str, Any]) -> Shown:
        """What to show for a line of kind "prepare"; the pace is that since the stage's first line."""
        now, done, total = self.now(), int(line["done"]), int(line["total"])
        if line["stage"] != self.stage:
            self.stage, self.began = line["stage"], (now, done)
        seconds, moved = now - self.began[0], done - self.began[1]
        facts = [self.stage]
        if total:
            facts.append(f"{short(done)} of {short(total)} {line['unit']}")
        if seconds > 0 and moved > 0:
            facts.append(f"{short(moved / seconds)} {line['unit']}/s")
            if total > done:
                facts.append(f"{clock((total - done) * seconds / moved)} left")
        return Shown(min(1.0, done / total) if total else 0.0, "  ".join(facts))


class _Alone:
    """Shows one thing's progress on stderr: a bar on a terminal, else a line now and then; nothing of what is
    over within seconds. A context manager."""

    label: str

    def __init__(self, *, stream: TextIO | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self.stream, self.now = stream or sys.stderr, now
        self.stages = Stages(now)
        self.last_shown = now()
        self.live: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def show(self, shown: Shown) -> None:
        """Show how far it is, unless the last line is too fresh."""
        if self.live is not None:
            self.live.update(0, completed=shown.fraction, facts=shown.facts)
        elif self.now() - self.last_shown >= QUIET_SECONDS:
            self.last_shown = self.now()
            if is_terminal(self.stream):
                self.live = live_line(self.stream, self.label)
                self.live.start()
            else:
                print(f"{self.label}  {shown.facts}", file=self.stream, flush=True)


class Preparing(_Alone):
    """The preparation of a text; the callable to give to `prepare` as `progress`."""

    label = "preparing"

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Take a line of kind "prepare"."""
        self.show(self.stages(line))


class Evaluating(_Alone):
    """An evaluation; the callable to give to `evaluate` as `progress`."""

    label = "evaluating"

    def __call__(self, scored: int, total: int) -> None:
        """Take how many tokens are scored, of how many."""
        self.show(self.stages({"stage": "scored", "unit": "tokens", "done": scored, "total": total}))
