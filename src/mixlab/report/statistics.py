"""Intervals over seeds: of a mean, and of the difference between two models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from mixlab.report.view import ModelView

LEVEL = 0.95
_MOST_FREEDOM = 1000  # beyond it Student's t moves by less than 0.001


def t_inside(t: float, freedom: int) -> float:
    """The probability that Student's t lies within ±t (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan2(t, math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term = total = (cosine if odd else 1.0) if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


@lru_cache(maxsize=256)
def student_t(freedom: float, level: float = LEVEL) -> float:
    """The point that Student's t stays within, two-sided, with probability `level`; a fractional number of
    degrees of freedom is rounded down."""
    whole = min(max(1, math.floor(freedom)), _MOST_FREEDOM)
    low, high = 0.0, 1.0
    while t_inside(high, whole) < level:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if t_inside(middle, whole) < level else (low, middle)
    return high


def _variance(values: Sequence[float]) -> float:
    centre = sum(values) / len(values)
    return sum((value - centre) ** 2 for value in values) / (len(values) - 1)


def half_width(values: Sequence[float], level: float = LEVEL) -> float | None:
    """Half of the interval of the mean of `values` (Student's t), or None for fewer than two."""
    if len(values) < 2:
        return None
    return student_t(len(values) - 1, level) * math.sqrt(_variance(values) / len(values))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much lower one model is than another (bits per byte); `half` of its interval, None if unknown."""

    value: float
    half: float | None
    seeds: int

    @property
    def clear(self) -> bool:
        """Whether the interval is known and leaves out zero."""
        return self.half is not None and abs(self.value) > self.half


def difference(better: ModelView, other: ModelView, *, comparisons: int = 1) -> Difference | None:
    """The difference of two models' bits per byte, paired by seed where they share two or more.

    Models with the same seed saw the same batches, so their difference is steadier than either score. A
    baseline has no seed noise: against it, the other's own interval is the difference's. Otherwise it is
    Welch's interval. comparisons: how many are made together; all their intervals hold at once with at least
    95% (Bonferroni).
    """
    a, b = better.by_seed("bits_per_byte"), other.by_seed("bits_per_byte")
    if not a or not b:
        return None
    level = 1 - (1 - LEVEL) / max(1, comparisons)
    value = (other.bits or 0.0) - (better.bits or 0.0)
    if better.is_baseline or other.is_baseline:
        noisy = list((b if better.is_baseline else a).values())
        half = 0.0 if better.is_baseline and other.is_baseline else half_width(noisy, level)
        return Difference(value=value, half=half, seeds=len(noisy))
    shared = [seed for seed in a if seed in b]
    if len(shared) >= 2:
        paired = [b[seed] - a[seed] for seed in shared]
        return Difference(value=sum(paired) / len(paired), half=half_width(paired, level), seeds=len(shared))
    half = _welch(list(a.values()), list(b.values()), level)
    return Difference(value=value, half=half, seeds=min(len(a), len(b)))


def _welch(a: Sequence[float], b: Sequence[float], level: float) -> float | None:
    if len(a) < 2 or len(b) < 2:
        return None
    va, vb = _variance(a) / len(a), _variance(b) / len(b)
    if va + vb == 0.0:
        return 0.0
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    return student_t(freedom, level) * math.sqrt(va + vb)
