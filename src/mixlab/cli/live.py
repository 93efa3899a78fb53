"""A run on a terminal, redrawn as it goes: bar, loss as a sparkline, facts, the watch list's warnings."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mixlab.cli.console import evaluating, short
from mixlab.report.units import size

REFRESHES = 2
"""A second: enough to see it move; drawing takes under a millisecond from the thread that trains (LOG.md)."""

BLOCKS, ASCII = "▁▂▃▄▅▆▇█", "_.,-=+*#"
PACE = 16
"""Steps over which the throughput is taken: one that also looked at the watch list is no news."""

SHORT_BAR, SHORTEST_CURVE = 6, 8


class Losses:
    """A loss curve in bounded memory: means over as many steps each, twice as many when there is no room."""

    def __init__(self, most: int = 512) -> None:
        self.most, self.span = most, 1
        self.bins: list[float] = []
        self._open: list[float] = []

    def add(self, loss: float) -> None:
        """The next step's loss; one that is not finite is left out."""
        if not math.isfinite(loss):
            return
        self._open.append(loss)
        if len(self._open) == self.span:
            self.bins.append(sum(self._open) / self.span)
            self._open = []
        if len(self.bins) == self.most:
            pairs = zip(self.bins[::2], self.bins[1::2], strict=True)
            self.bins, self.span = [(a + b) / 2 for a, b in pairs], 2 * self.span

    def columns(self, width: int) -> list[float]:
        """At most `width` means over equally long stretches, first to last."""
        found = self.bins + ([sum(self._open) / len(self._open)] if self._open else [])
        count = min(width, len(found))
        edges = [round(i * len(found) / count) for i in range(count + 1)] if count else []
        return [sum(found[a:b]) / (b - a) for a, b in pairwise(edges)]


def sparkline(values: Sequence[float], blocks: str = BLOCKS) -> str:
    """A character for each value, lowest to highest; what stands above all of the last nine tenths is cut
    off, as a loss falls so steeply at first that the rest would lie flat."""
    if not values:
        return ""
    low, high = min(values), max(values[len(values) // 10 :])
    top = len(blocks) - 1
    scale = top / (high - low) if high > low else 0.0
    return "".join(blocks[min(top, round((value - low) * scale))] for value in values)


class View:
    """The live view. Give it lines of metrics.jsonl; it draws by itself until it is stopped."""

    def __init__(self, stream: TextIO, label: str) -> None:
        self.console = Console(file=stream)
        self.label, self.done, self.left = label, 0.0, ""
        self.shown: dict[str, Any] = {}
        self.losses = Losses()
        self._pace: deque[tuple[float, float]] = deque(maxlen=PACE)
        self._live = Live(self, console=self.console, refresh_per_second=REFRESHES)

    def start(self) -> None:
        """Begin to draw."""
        self._live.start()

    def stop(self) -> None:
        """Draw once more, and leave it there."""
        self._live.stop()

    def clear(self, label: str, done: float) -> None:
        """Another run begins."""
        self.label, self.done, self.left = label, done, ""
        self.shown, self.losses = {}, Losses()
        self._pace.clear()

    def prepare(self, done: float, facts: str) -> None:
        """How far the text is that the run will read."""
        self.done, self.shown = done, {"prepare": facts}

    def take(self, line: Mapping[str, Any], done: float, left: str) -> None:
        """A line of metrics.jsonl, how much of the whole is done and what is left."""
        self.done, self.left = done, left
        kind = line["kind"]
        if kind != "watch":
            self.shown.pop("evaluating.scored", None)
        self.shown.pop("prepare", None)
        self.shown |= {f"{kind}.{key}": value for key, value in line.items()}
        if kind == "step" and line["loss"] is not None:
            self.losses.add(line["loss"])
        if kind == "step" and "tokens" in line:
            self._pace.append((line["tokens"], line["seconds"]))

    def say(self, sentence: str) -> None:
        """A line above the view."""
        self.console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        """What stands there now, for the width that the terminal has now."""
        width = options.max_width
        yield self._bar(width)
        if self.losses.columns(1):
            yield self._curve(width, ASCII if options.ascii_only else BLOCKS)
        yield from flow(self._facts(), width)
        for warning in (self.shown.get("watch.warnings") or {}).values():
            yield Text(f"! {warning}", style="yellow", overflow="fold")

    def _bar(self, width: int) -> Any:
        head = Text(self.label, overflow="ellipsis", no_wrap=True, style="bold")
        tail = Text(f"{self.done:4.0%}" + (f"  {self.left}" if self.left else ""), no_wrap=True)
        head.truncate(max(4, width - len(tail) - SHORT_BAR - 4), overflow="ellipsis")
        room = max(SHORT_BAR, min(40, width - len(head) - len(tail) - 4))
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_row(head, ProgressBar(total=1.0, completed=self.done, width=room), tail)
        return grid

    def _curve(self, width: int, blocks: str) -> Text:
        loss = self.shown["step.loss"]
        text = Text.assemble(("loss ", "dim"), "-" if loss is None else f"{loss:.3f}", " nats")
        room = width - len(text) - 2
        if room >= SHORTEST_CURVE:
            text.append("  ").append(sparkline(self.losses.columns(room), blocks), "cyan")
        return text

    def _facts(self) -> list[str]:
        shown = self.shown
        if "prepare" in shown:
            return str(shown["prepare"]).split("  ")
        facts = [f"step {shown['step.step']:,}"] if "step.step" in shown else []
        if "evaluating.scored" in shown:
            line = {key: shown[f"evaluating.{key}"] for key in ("scored", "total")}
            facts.append(evaluating(line))
        if shown.get("eval.bits_per_byte") is not None:
            at = f" at {shown['eval.step']:,}" if "step.step" in shown else ""
            facts.append(f"valid {shown['eval.bits_per_byte']:.3f} bits/byte{at}")
        if shown.get("step.lr") is not None:
            facts.append(f"lr {shown['step.lr']:.2e}")
        if (pace := self._tokens_per_second()) is not None:
            facts.append(f"{short(pace)} tokens/s")
        if shown.get("step.peak_fraction"):
            facts.append(f"{shown['step.peak_fraction']:.0%} of peak")
        if shown.get("step.memory_bytes"):
            facts.append(size(shown["step.memory_bytes"]))
        return facts

    def _tokens_per_second(self) -> float | None:
        """Over the last steps; one step alone says it itself."""
        if len(self._pace) > 1:
            (tokens, seconds), (more, later) = self._pace[0], self._pace[-1]
            if later > seconds:
                return (more - tokens) / (later - seconds)
        found = self.shown.get("step.tokens_per_second")
        return None if found is None else float(found)


def flow(facts: Sequence[str], width: int) -> Iterator[Text]:
    """The facts side by side, none cut in two unless it is wider than the terminal."""
    line = ""
    for fact in facts:
        if line and len(line) + 2 + len(fact) > width:
            yield Text(line)
            line = ""
        line += f"  {fact}" if line else fact
    if line:
        yield Text(line)
