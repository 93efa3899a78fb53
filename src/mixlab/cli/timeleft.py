"""How long a run will still take: its training at its own pace, and the evaluations still to come."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mixlab.train.progress import FORWARD


class TimeLeft:
    """Give it the lines of a run as they come; `seconds` is what is left."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.plan: Mapping[str, Any] = {}
        self.done, self.step = 0.0, 0
        self._began: tuple[float, float] | None = None
        self._last = 0.0  # when the last step ended
        self._trained: float | None = None  # seconds per token
        self._scoring: tuple[float, int] | None = None  # when an evaluation was first heard of, how far
        self._scored: float | None = None  # seconds per token
        self._open = 0
        self._evaluating = 0.0
        self._over = False

    def take(self, line: Mapping[str, Any], done: float) -> None:
        """A line of kind step, eval or evaluating; done: the fraction of the length that is trained."""
        now, kind = self.now(), line["kind"]
        if kind == "evaluating":
            first = self._scoring = self._scoring or (now, line["scored"])
            if line["scored"] > first[1]:
                self._scored = (now - first[0]) / (line["scored"] - first[1])
            self._open = line["total"] - line["scored"]
            return
        self.done, self.step = done, line.get("step", self.step)
        self._scoring, self._open = None, 0
        if self._began is None:
            self._began, self._last = (now, done), now
        if kind == "eval":
            self._evaluating += now - self._last
            self._over = done >= 1
        elif rate := line.get("tokens_per_second"):
            self._trained = 1 / rate
        self._last = now

    @property
    def seconds(self) -> float | None:
        """Until the end; None where nothing says it yet, and after the end."""
        if self._over or self._began is None:
            return self._open * self._scored if self._open and self._scored else None
        training = 0.0
        if self.done < 1:
            if self.done <= self._began[1]:
                return None
            trained = self._last - self._began[0] - self._evaluating
            training = trained / (self.done - self._began[1]) * (1 - self.done)
        pace = self._scored or FORWARD * (self._trained or 0.0)
        on_the_way, last = self._to_score()
        between = pace * on_the_way
        if (share := self.plan.get("share")) is not None:
            between = min(between, share * training)
        left = training + between + pace * (self._open + last)
        return left if self.done < 1 or self._open or last else None

    def _to_score(self) -> tuple[float, int]:
        """Tokens that evaluations yet to begin will score: before the last, and the last."""
        if not self.plan or (self.done >= 1 and self._open):
            return 0.0, 0
        marks, every = self.plan["marks"], self.plan["every"]
        number = float(sum(self.done < mark < 1 for mark in marks))
        if every and self.step and 0 < self.done < 1:
            steps = self.step / self.done
            number = max(0.0, (steps - 1e-9) // every - self.step // every)
        return number * self.plan["sample"], self.plan["full"]
