"""Axis ranges computed from every point, and marks for the few that would hide the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median, pstdev
from typing import Any

from mixlab.report.units import bits

SPREAD = 4.0  # a range ends this many times the median's height above the lowest point, at least
LEAST = 0.02  # bits or nats: a smaller range would draw noise as hills


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A loss axis' range, and the points above it: how many, and the highest."""

    span: list[float]
    clipped: int = 0
    highest: float = 0.0

    def note(self) -> list[dict[str, Any]]:
        """The annotation that counts the points above the range; empty where there are none."""
        if not self.clipped:
            return []
        points = f"{self.clipped} point{'s'[: self.clipped != 1]}"
        return [
            {
                "text": f"▲ {points} above, up to {bits(self.highest)}",
                "xref": "paper",
                "x": 0,
                "xanchor": "left",
                "yref": "paper",
                "y": 1,
                "yanchor": "bottom",
                "showarrow": False,
                "font": {"color": "$soft", "size": 11.5},
            }
        ]


def fit(lines: Sequence[Sequence[float]], levels: Sequence[float], spread: Sequence[float] = ()) -> Scale:
    """The range of all points of `lines` and all `levels`; where a few points are far above the rest, it ends
    below them.

    What is never clipped: the levels, and the end of a line that fell. spread: the lowest of several seeds.
    """
    values = [y for line in lines for y in line]
    everything = [*values, *levels, *spread]
    low, high = min(everything), max(everything)
    middle = median(values) if values else high
    ends = [line[-1] for line in lines if len(line) > 1 and line[-1] <= line[0]]
    enough = max([low + SPREAD * (middle - low), low + LEAST, *ends, *levels])
    top = high if high <= 1.5 * (enough - low) + low else enough
    pad = 0.06 * max(top - low, LEAST)
    above = [y for y in values if y > top + pad]
    return Scale(span=[low - pad, top + pad], clipped=len(above), highest=max(above, default=0.0))


def clip_marks(
    x: Sequence[float],
    y: Sequence[float],
    scale: Scale,
    slot: str,
    *,
    each: bool,
    model: str = "",
) -> list[dict[str, Any]]:
    """A trace of triangles at the top edge where the line leaves the range: at each point above it, or, for
    a line of many points, once for each time it does so."""
    top = scale.span[1]
    above = [value > top for value in y]
    marked = [i for i, is_above in enumerate(above) if is_above and (each or not (i and above[i - 1]))]
    if not marked:
        return []
    inside = top - 0.02 * (top - scale.span[0])
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [x[i] for i in marked],
        "y": [inside for _ in marked],
        "customdata": [bits(y[i]) for i in marked],
        "marker": {"color": f"${slot}", "size": 9, "symbol": "triangle-up"},
        "cliponaxis": False,
        "hovertemplate": "%{customdata}, above the axis<extra></extra>",
    }
    return [trace | ({"meta": {"model": model}} if model else {})]


def log_suits(x: Sequence[float]) -> bool:
    """Whether rising `x`, three or more over at least a factor of four, are spaced by ratios more evenly than
    by differences."""
    if len(x) < 3 or x[0] <= 0 or x[-1] < 4 * x[0]:
        return False
    return _unevenness([math.log(value) for value in x]) < _unevenness(x)


def _unevenness(x: Sequence[float]) -> float:
    """The standard deviation of the gaps over their mean."""
    gaps = [b - a for a, b in pairwise(x)]
    return pstdev(gaps) / fmean(gaps)


def decades(low: float, high: float) -> list[float]:
    """The range of a logarithmic axis from `low` to `high`, with a margin; of one point, a factor of two."""
    a, b = math.log10(low), math.log10(high)
    pad = 0.03 if b > a else 0.3
    return [a - pad, b + pad]
