"""Which model won, by how much, and whether the seeds can tell: the page's first sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mixlab.report.units import bits, count, duration, listed, percent
from mixlab.report.view import ModelView

# Student's t, two-sided 95%, for 1 to 30 degrees of freedom (any statistics table); beyond, the normal's 1.96
# is corrected by its first term in 1/df, which is within 0.001 there.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def student_t(freedom: float) -> float:
    """The two-sided 95% point of Student's t; a fractional number of degrees of freedom is rounded down."""
    whole = max(1, math.floor(freedom))
    return _T95[whole - 1] if whole <= len(_T95) else 1.96 + 2.372 / whole


def _variance(values: Sequence[float]) -> float:
    centre = sum(values) / len(values)
    return sum((value - centre) ** 2 for value in values) / (len(values) - 1)


def half_width(values: Sequence[float]) -> float | None:
    """Half of the 95% interval of the mean of `values` (Student's t), or None for fewer than two."""
    if len(values) < 2:
        return None
    return student_t(len(values) - 1) * math.sqrt(_variance(values) / len(values))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much lower one model is than another (bits per byte); `half` the 95% interval, None if unknown."""

    value: float
    half: float | None
    seeds: int

    @property
    def clear(self) -> bool:
        """Whether the interval is known and leaves out zero."""
        return self.half is not None and self.value > self.half


def difference(better: ModelView, other: ModelView) -> Difference | None:
    """The difference of two models' bits per byte, paired by seed where they share two or more.

    Models with the same seed saw the same batches, so their difference is steadier than either score. A
    counted model has no seed noise: against it, the other's own interval is the difference's. Otherwise it is
    Welch's interval.
    """
    a, b = better.by_seed("bits_per_byte"), other.by_seed("bits_per_byte")
    if not a or not b:
        return None
    shared = [seed for seed in a if seed in b]
    if better.is_reference or other.is_reference:
        noisy = b if better.is_reference else a
        half = 0.0 if better.is_reference and other.is_reference else half_width(list(noisy.values()))
        value = (other.bits or 0.0) - (better.bits or 0.0)
        return Difference(value=value, half=half, seeds=len(noisy))
    if len(shared) >= 2:
        paired = [b[seed] - a[seed] for seed in shared]
        return Difference(value=sum(paired) / len(paired), half=half_width(paired), seeds=len(shared))
    value = (other.bits or 0.0) - (better.bits or 0.0)
    return Difference(value=value, half=_welch(list(a.values()), list(b.values())), seeds=min(len(a), len(b)))


def _welch(a: Sequence[float], b: Sequence[float]) -> float | None:
    if len(a) < 2 or len(b) < 2:
        return None
    va, vb = _variance(a) / len(a), _variance(b) / len(b)
    if va + vb == 0.0:
        return 0.0
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    return student_t(freedom) * math.sqrt(va + vb)


def headline(models: list[ModelView], *, among: str = "At this budget", apart: str = "") -> str:
    """The page's first sentences: the winner, the margin, its interval or the lack of one, what failed.

    among: where the winner won. apart: a sentence on why the losses do not compare; nobody won then.
    """
    ranked = [model for model in models if model.bits is not None]
    parts = [_apart(ranked, apart) if apart and len(ranked) > 1 else _result(ranked, models, among)]
    failed = [model.name for model in models if model.failed and not model.done]
    failed += [model.name for model in models if ranked and _broke_off(model)]
    if failed:
        parts.append(f"Failed, and shown with the reason: {listed(failed)}.")
    return " ".join(parts)


def _broke_off(model: ModelView) -> bool:
    """Whether all that the model has are curves of runs that failed before they were scored."""
    statuses = [str(result.get("status")) for result in model.done]
    return model.bits is None and bool(statuses) and all(s.startswith("failed") for s in statuses)


def _apart(ranked: list[ModelView], why: str) -> str:
    """What each reached, by name: in order of loss, the first would seem the best."""
    reached = [f"{model.name} {bits(model.bits)}" for model in sorted(ranked, key=lambda m: m.name)]
    return f"{why} Of its own validation text, each reaches, in bits per byte: {listed(reached)}."


def _result(ranked: list[ModelView], models: list[ModelView], among: str) -> str:
    if not ranked:
        done = [(model.name, str(result.get("status"))) for model in models for result in model.done]
        ended = [f"{name} {status}" for name, status in done if status.startswith("failed")]
        if ended:
            return f"No model has a score: {listed(ended)}."
        return "No model has a score yet." if done else "No model finished."
    best = ranked[0]
    if len(ranked) == 1:
        return _alone(best)
    second = ranked[1]
    gap = difference(best, second)
    if gap is None or second.bits is None:
        return _alone(best)
    if gap.half is None and bits(gap.value) == bits(0.0):
        return f"{among} {best.name} and {second.name} reach the same loss, {bits(best.bits)} bits per byte."
    margin = (
        f"{bits(gap.value)} ({percent(gap.value / second.bits) if second.bits else '0%'}) below {second.name}"
    )
    if gap.half is None:
        return (
            f"{among} {best.name} has the lowest loss, {bits(best.bits)} bits per byte: {margin}. "
            f"{_unmeasured(best, second)}: the noise between runs was not measured, so a small difference "
            "may be chance."
        )
    interval = (
        f"95% interval {bits(gap.value - gap.half)} to {bits(gap.value + gap.half)} over {gap.seeds} seeds"
    )
    if gap.clear:
        return f"{among} {best.name} wins with {bits(best.bits)} bits per byte, {margin} ({interval})."
    tied = _tied(ranked)
    return (
        f"{among} no model wins clearly: {listed(tied)} differ by less than the noise of the seeds. "
        f"{best.name} has the lowest mean, {bits(best.bits)} bits per byte, {margin} ({interval})."
    )


def _tied(ranked: list[ModelView]) -> list[str]:
    """The best model and those after it that the seeds cannot tell from it."""
    names = [ranked[0].name]
    for other in ranked[1:]:
        gap = difference(ranked[0], other)
        if gap is None or gap.clear:
            break
        names.append(other.name)
    return names


def _unmeasured(best: ModelView, second: ModelView) -> str:
    trained = [model for model in (best, second) if not model.is_reference]
    single = [model.name for model in trained if len(model.values("bits_per_byte")) < 2]
    return "One seed each" if len(single) == len(trained) else f"{listed(single)} ran with one seed only"


def _alone(best: ModelView) -> str:
    half = half_width(best.values("bits_per_byte"))
    words = f"{best.name} reaches {bits(best.bits)} bits per byte"
    words += f" (± {bits(half)} over {len(best.values('bits_per_byte'))} seeds)" if half is not None else ""
    tokens, seconds = best.mean("tokens"), best.mean("seconds")
    words += f" after {count(tokens)} tokens" if tokens else ""
    words += f" in {duration(seconds)}" if seconds else ""
    running = any(result.get("status") == "running" for result in best.done)
    return words + (", and is still training." if running else ".")
