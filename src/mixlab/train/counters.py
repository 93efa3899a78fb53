"""How far a run is, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mixlab.train.config import TrainConfig


@dataclass
class Counters:
    """Totals since the first step. clipped: steps whose gradient was longer than the limit.

    micro_batches: into how many a batch is cut since memory ran out; 0 if it never did.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    flops: int = 0
    clipped: int = 0
    micro_batches: int = 0

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Counters:
        """The totals that a line of the record has."""
        return cls(step=line["step"], tokens=line["tokens"], seconds=line["seconds"], flops=line["flops"])

    def totals(self, kind: str) -> dict[str, Any]:
        """The fields that every line of the record has."""
        return {
            "kind": kind,
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "flops": self.flops,
        }

    def progress(self, config: TrainConfig) -> float:
        """Fraction of the run's length that is done; 1 or more is the end."""
        return config.progress(steps=self.step, tokens=self.tokens, seconds=self.seconds, flops=self.flops)


class Clock:
    """Seconds of training: runs from its making, save inside `paused`."""

    def __init__(self) -> None:
        self._mark = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap, pauses left out."""
        now = time.perf_counter()
        passed, self._mark = now - self._mark, now
        return passed

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is not training."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._mark += time.perf_counter() - start
