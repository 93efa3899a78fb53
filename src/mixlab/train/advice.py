"""What to change after a run whose numbers went bad, from what its record shows."""

from __future__ import annotations

from collections.abc import Iterator

from mixlab.errors import RunFailed
from mixlab.train.bands import BANDS
from mixlab.train.config import TrainConfig
from mixlab.train.trend import LATELY, Trend

GROWN = 10.0
"""Times the usual gradient norm that tell of a gradient out of hand: batches alone make 4 (LOG.md)."""

NEAR = 2.0
"""Warm-up's length until which its steepness may be to blame."""

LOOSE = 10.0
"""Times the usual norm from which a clip hardly ever bounds a step."""


class NotFinite(RunFailed):
    """A loss, a gradient or a parameter is a NaN or an infinity."""


class Diverged(RunFailed):
    """The loss is finite and has long been hopeless."""


def advice(config: TrainConfig, trend: Trend, *, fraction: float, bfloat16: bool) -> str:
    """Clauses for the message of a NotFinite or Diverged: what the record shows, then what to change.

    fraction: of the horizon behind the run.
    """
    if not trend.step:
        cause = (
            "no step was taken before, so that no learning rate is to blame: look at how that layer begins"
        )
        return "; ".join([cause, *_precision(bfloat16)])
    signs = list(_signs(trend))
    if not signs and fraction > NEAR * config.schedule.rise:
        calm = "nothing announced it: loss, gradient norm and watch list were as before; look at that layer"
        return "; ".join([f"{calm} before the learning rate", *_precision(bfloat16)])
    changes = [_rate(config, trend, fraction), *_warm_up(config, fraction), *_clip(config, trend)]
    if "attention_logit" in trend.left:
        changes.append("model.temporal.qk_norm=true where it is off")
    tried = f"try {', '.join(changes)}"
    return "; ".join([*signs, tried, *_precision(bfloat16), "mixlab train --find-lr shows where rates end"])


def _signs(trend: Trend) -> Iterator[str]:
    """What the record shows of a run that went wrong before it ended."""
    *most, last = [f"{BANDS[name].what} at step {step}" for name, step in trend.left.items()] or [""]
    if last:
        words = f"{', '.join(most)} and {last}" if most else last
        yield f"{words} had left {'their healthy bands' if most else 'its healthy band'}"
    usual, largest = trend.usual_norm, trend.largest_norm
    if usual and largest is not None and largest > GROWN * usual:
        yield f"the gradient norm, usually {usual:.3g}, came to {largest:.3g} in the last {LATELY} steps"
    elif usual is None and largest is not None and trend.median_norm and largest > GROWN * trend.median_norm:
        yield f"the gradient norm, {trend.median_norm:.3g} in the median, came to {largest:.3g}"


def _rate(config: TrainConfig, trend: Trend, fraction: float) -> str:
    """A third of the rate at which it went bad; a tenth where steps were far too large from the start."""
    early = trend.left.get("update_ratio") == 1 or fraction <= config.schedule.rise
    now = trend.step["lr"] if fraction <= config.schedule.rise else config.optimizer.lr
    part, times = (10, "a tenth") if early else (3, "a third")
    of = "the peak" if now == config.optimizer.lr else f"the {now:.2g} that warm-up had reached"
    return f"train.optimizer.lr={now / part:.2g}, {times} of {of}"


def _warm_up(config: TrainConfig, fraction: float) -> Iterator[str]:
    rise = config.schedule.rise
    if fraction <= NEAR * rise or not rise:
        longer = min(0.5, 2 * rise) if rise else 0.05
        yield f"train.schedule.warmup={longer:.2g} for {rise:g}, a slower start"


def _clip(config: TrainConfig, trend: Trend) -> Iterator[str]:
    usual, clip = trend.usual_norm or trend.median_norm, config.optimizer.clip
    if not clip:
        yield "train.optimizer.clip=1, as clipping is off"
    elif usual and clip > LOOSE * usual:
        yield f"train.optimizer.clip={2 * usual:.1g}, as {clip:g} is far above the usual norm {usual:.2g}"


def _precision(bfloat16: bool) -> Iterator[str]:
    if bfloat16:
        yield "train.dtype=float32 tells whether bfloat16 is to blame"
