"""When a run is evaluated, on how much of the validation text, and how long that takes.

The full measure is what `data.valid_tokens` says; with `train.eval_tokens` the evaluations before the last
one score a smaller sample, the same one every time. Only full ones decide which checkpoint is the best.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from mixlab.data import Dataset
from mixlab.data.sampling import sample
from mixlab.model.language_model import LanguageModel
from mixlab.train.config import TrainConfig
from mixlab.train.counters import Counters
from mixlab.train.evaluate import evaluate, scored_tokens
from mixlab.train.metrics import Line
from mixlab.train.progress import FORWARD

FIRST = 1 / 40
"""Fraction of the length at which a logarithmic schedule begins. Ten evaluations are then each 1.5
times as far as the one before; earlier there is little to see but the first fall of the loss."""

SHARE = 0.15
"""Largest share of the training time so far that evaluations before the last may take, where the length is
in minutes. One that would take more is left out."""


def marks(number: int) -> list[float]:
    """The fractions of a run's length at which `number` evaluations are made: evenly spaced logarithms, up
    to 1."""
    return [FIRST ** (1 - n / (number - 1)) for n in range(number)] if number > 1 else [1.0] * number


class Evaluations:
    """The evaluations of one run. seconds: spent in those of this process."""

    def __init__(self, config: TrainConfig, dataset: Dataset, context: int) -> None:
        self.config, self.context = config, context
        self.text = dataset.valid
        self.sample = sample(dataset.valid, config.eval_tokens, dataset.tokenizer)
        self.marks = marks(config.evaluations)
        self.seconds, self._pace = 0.0, 0.0

    def due(self, done: Counters, last: Line | None) -> bool:
        """Whether one is to be made now. last: the line of the last one."""
        if done.step == 0 or (last or {}).get("step") == done.step:
            return False
        fraction = done.progress(self.config)
        if fraction >= 1:
            return True
        if not self._scheduled(done.step, fraction, last):
            return False
        return self.config.horizon != "minutes" or self.seconds + self._expected(done) <= SHARE * done.seconds

    def full(self, done: Counters) -> bool:
        """Whether one that is made now is the full measure."""
        return self.sample is self.text or done.progress(self.config) >= 1

    def make(
        self,
        model: LanguageModel,
        done: Counters,
        *,
        dtype: str,
        stop: Callable[[], bool],
        report: Callable[[Line], None],
    ) -> Line:
        """Score the text, or the sample of it that is due; what the record says. Raises as `evaluate` does.

        report: called after each batch with {"kind": "evaluating", "scored", "total", "full", and the totals
            of training}.
        """

        def progress(scored: int, total: int) -> None:
            report({**done.totals("evaluating"), "scored": scored, "total": total, "full": full})

        full, started = self.full(done), time.perf_counter()
        text = self.text if full else self.sample
        found = evaluate(model, text, context=self.context, dtype=dtype, stop=stop, progress=progress)
        seconds = time.perf_counter() - started
        self.seconds += seconds
        self._pace = seconds / found.tokens
        return {**found.line(), "full": full, "took": seconds}

    def plan(self) -> Line:
        """What the rest of a run will score, for whoever tells how long it takes: tokens of the full measure
        and of the sample; when: `marks` of the length, or `every` N steps; and at most which `share` of the
        training time before the last, None for any."""
        return {
            "full": scored_tokens(self.text, self.context),
            "sample": scored_tokens(self.sample, self.context),
            "marks": self.marks,
            "every": 0 if self.marks else self.config.eval_every,
            "share": SHARE if self.config.horizon == "minutes" else None,
        }

    def _scheduled(self, step: int, fraction: float, last: Line | None) -> bool:
        if not self.marks:
            return bool(self.config.eval_every and step % self.config.eval_every == 0)
        before = 0.0 if last is None else Counters.of(last).progress(self.config)
        return any(before < mark <= fraction for mark in self.marks)

    def _expected(self, done: Counters) -> float:
        """Seconds that the next one will take, before the end."""
        pace = self._pace or FORWARD * done.seconds / done.tokens
        return pace * scored_tokens(self.sample, self.context)
