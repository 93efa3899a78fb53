"""How far the preparation of a text is, in words; on a terminal beside a bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TextIO

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


class Preparing:
    """Shows nothing but the preparation of a text, on stderr: a bar on a terminal, else a line now and then.

    A context manager, and the callable to give to `prepare` as `progress`. What is over within seconds is not
    shown.
    """

    def __init__(self, *, stream: TextIO | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self.stream, self.now = stream or sys.stderr, now
        self.stages = Stages(now)
        self.last_shown = now()
        self.live: Any = None

    def __enter__(self) -> Preparing:
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Take a line of kind "prepare"."""
        shown = self.stages(line)
        if self.live is not None:
            self.live.update(0, completed=shown.fraction, facts=shown.facts)
        elif self.now() - self.last_shown >= QUIET_SECONDS:
            self.last_shown = self.now()
            if is_terminal(self.stream):
                self.live = live_line(self.stream, "preparing")
                self.live.start()
            else:
                print(f"preparing  {shown.facts}", file=self.stream, flush=True)
