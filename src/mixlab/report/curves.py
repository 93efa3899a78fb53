"""Learning curves to draw and to read: mean over seeds, smoothed, thinned, and where they cross a level.

A curve is two equally long lists, x and y; None never appears in either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mixlab.report.view import ModelView, mean, number, rows
from mixlab.train.metrics import is_full

MAX_POINTS = 240  # a line of more points than this looks the same and makes the page heavier


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line: the mean over seeds, and the lowest and highest seed where there are several.

    end: (x, y) of the last evaluation where that scored more than the ones on the way: no point of the line.
    """

    x: list[float]
    y: list[float]
    low: list[float] | None = None
    high: list[float] | None = None
    end: tuple[float, float] | None = None

    @property
    def last(self) -> tuple[float, float]:
        """Where it ends, by the fullest measure."""
        return self.end or (self.x[-1], self.y[-1])


def points(records: Any, x_key: str, y_key: str) -> list[tuple[float, float, float]]:
    """(step, x, y) of the records that have finite x and y; a missing step counts as the record's index."""
    found = []
    for index, record in enumerate(rows(records)):
        x, y, step = number(record.get(x_key)), number(record.get(y_key)), number(record.get("step"))
        if x is not None and y is not None:
            found.append((float(index) if step is None else step, x, y))
    return found


def eval_curve(model: ModelView, x_key: str, y_key: str = "bits_per_byte") -> Curve | None:
    """The evaluations against `x_key`: one seed as it is, several as mean, lowest and highest per step.

    Only steps that every seed evaluated are drawn (seeds stopped by the clock may end at different steps).
    Where evaluations on the way scored a sample of the text, the line is theirs alone. A baseline has no
    curve: its one score holds wherever the others are.
    """
    if model.is_baseline:
        return None
    evaluated = [rows(result.get("evals")) for result in model.done]
    sampled = [[line for line in lines if not is_full(line)] for lines in evaluated]
    whole = [list(filter(is_full, lines)) for lines in evaluated]
    apart = any(sampled)
    seeds = [points(lines, x_key, y_key) for lines in (sampled if apart else evaluated)]
    ends = [found[-1][1:] for lines in whole if apart and (found := points(lines, x_key, y_key))]
    end = (mean([x for x, _ in ends]) or 0.0, mean([y for _, y in ends]) or 0.0) if ends else None
    seeds = [seed for seed in seeds if seed]
    if not seeds:
        return None if end is None else Curve(x=[end[0]], y=[end[1]])
    by_step = [{step: (x, y) for step, x, y in seed} for seed in seeds]
    steps = sorted(set.intersection(*(set(seed) for seed in by_step)))
    if len(seeds) == 1 or not steps:
        return Curve(x=[p[1] for p in seeds[0]], y=[p[2] for p in seeds[0]], end=end)
    at = [[seed[step] for seed in by_step] for step in steps]
    return Curve(
        x=[mean([x for x, _ in pairs]) or 0.0 for pairs in at],
        y=[mean([y for _, y in pairs]) or 0.0 for pairs in at],
        low=[min(y for _, y in pairs) for pairs in at],
        high=[max(y for _, y in pairs) for pairs in at],
        end=end,
    )


def smoothing_window(length: int) -> int:
    """How many steps the drawn training loss averages over: a fortieth of the run, at least one."""
    return max(1, length // 40)


def training_curve(model: ModelView, x_key: str) -> Curve | None:
    """The training loss of the model's seeds together, averaged over a sliding window and thinned."""
    lines = []
    for result in model.done:
        seed = points(result.get("curve"), x_key, "loss")
        if seed:
            smooth = moving_average([y for _, _, y in seed], smoothing_window(len(seed)))
            lines.append([(x, y) for (_, x, _), y in zip(seed, smooth, strict=True)])
    if not lines:
        return None
    length = min(len(line) for line in lines)
    keep = thin(length, MAX_POINTS)
    return Curve(
        x=[mean([line[i][0] for line in lines]) or 0.0 for i in keep],
        y=[mean([line[i][1] for line in lines]) or 0.0 for i in keep],
    )


def moving_average(values: Sequence[float], window: int) -> list[float]:
    """The mean of the last `window` values at each place (of those there are, at the start)."""
    total, smooth = 0.0, []
    for index, value in enumerate(values):
        total += value - (values[index - window] if index >= window else 0.0)
        smooth.append(total / min(index + 1, window))
    return smooth


def thin(length: int, most: int) -> list[int]:
    """At most `most` indices of `length`, evenly spread, the first and the last among them."""
    if length <= most:
        return list(range(length))
    return sorted({round(i * (length - 1) / (most - 1)) for i in range(most)})


def reach(curve: Curve, level: float) -> float | None:
    """The first x where the curve is at or below `level`, interpolated between its points; None if never."""
    for index, y in enumerate(curve.y):
        if y <= level:
            if index == 0:
                return curve.x[0]
            before, x0, x1 = curve.y[index - 1], curve.x[index - 1], curve.x[index]
            return x0 + (x1 - x0) * (before - level) / (before - y)
    return None


def by_position(model: ModelView) -> list[float]:
    """Loss (nats per token) at each position of the context, mean over seeds, to the shortest's length."""
    seeds = []
    for result in model.done:
        values = result.get("loss_by_position")
        if isinstance(values, list) and values:
            seeds.append([number(value) for value in values])
    length = min((len(seed) for seed in seeds), default=0)
    found = []
    for index in range(length):
        here = mean([value for seed in seeds if (value := seed[index]) is not None])
        if here is None:
            break  # an unmeasured tail ends the line
        found.append(here)
    return found


def log_bins(values: Sequence[float], per_octave: int = 6) -> Curve:
    """Averages over bins that widen with the position, at the bins' geometric centres (from 1)."""
    x, y, start = [], [], 1
    while start <= len(values):
        stop = max(start + 1, math.ceil(start * 2 ** (1 / per_octave)))
        stop = min(stop, len(values) + 1)
        x.append(math.sqrt(start * (stop - 1)))
        y.append(sum(values[start - 1 : stop - 1]) / (stop - start))
        start = stop
    return Curve(x=x, y=y)
