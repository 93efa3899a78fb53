"""The record of a run as it is made: metrics.jsonl, and what later decisions need of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from mixlab.train.metrics import Line, MetricsLog, is_full, read_metrics
from mixlab.train.trend import Trend


class Record:
    """Writes lines, reports them, and remembers the last of each kind, and of the evaluations that are the
    full measure the last and the best."""

    def __init__(self, path: Path, report: Callable[[Line], None]) -> None:
        self.path, self.report = path, report
        self.last: dict[str, Line] = {}
        self.best: Line | None = None
        self.full: Line | None = None
        self.trend = Trend()
        self._log: MetricsLog | None = None

    def open(self) -> None:
        """Begin to append to the file."""
        self._log = MetricsLog(self.path)

    def close(self) -> None:
        """Close the file; it may be called twice."""
        if self._log is not None:
            self._log.close()

    def write(self, line: Line) -> None:
        """Append one line, remember it, and report it."""
        assert self._log is not None
        self._log.write(line)
        self._remember(line)
        self.report(line)

    def size(self) -> int:
        """Bytes that were written so far."""
        return self.path.stat().st_size

    def recall(self) -> None:
        """Remember what the file holds already."""
        for line in read_metrics(self.path):
            self._remember(line)

    @property
    def best_step(self) -> int | None:
        """The step of the best full evaluation; None before the first."""
        return self.best["step"] if self.best else None

    def _remember(self, line: Line) -> None:
        self.last[line["kind"]] = line
        self.trend.take(line)
        if line["kind"] != "eval" or not is_full(line):
            return
        self.full, bits = line, line["bits_per_byte"]
        if bits is None or not math.isfinite(bits):
            return
        if self.best is None or bits < self.best["bits_per_byte"]:
            self.best = line
