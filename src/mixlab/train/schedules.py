"""Learning-rate schedules as functions of progress, the fraction of the horizon that is behind us.

Progress comes from steps, tokens, minutes or FLOPs alike: a schedule need not know which horizon a run has.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from mixlab.train.config import ScheduleConfig

LOW = 1 / 25
"""Where one cycle begins, of its peak (fastai; Smith & Topin 2018: a tenth to a twentieth)."""

FALLS: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "onecycle": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "wsd": lambda done: 1.0 - math.sqrt(done),
}
"""From 1 to 0 as `done`, the fraction of the fall that is behind us, goes from 0 to 1."""


def lr_factor(config: ScheduleConfig, progress: float) -> float:
    """What the peak learning rate is multiplied by at `progress` in [0, 1]: a number in [0, 1].

    Warm-up is linear from 0, that of `onecycle` half a cosine from `LOW`. After it: `constant` stays at 1;
    `cosine` (Loshchilov & Hutter 2017, SGDR, eq. 5), `onecycle` (Smith & Topin 2018, arXiv 1708.07120) and
    `linear` (Bergsma et al. 2025, arXiv 2502.15938) fall to `final` over the rest; `wsd` stays at 1 and falls
    to `final` over the last `decay` of the horizon, as 1 - sqrt (Haegele et al. 2024, arXiv 2405.18392,
    section 3: better than linear).
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < config.rise:
        risen = progress / config.rise
        if config.kind != "onecycle":
            return risen
        return LOW + (1.0 - LOW) * (1.0 - FALLS["cosine"](risen))
    if config.kind == "constant":
        return 1.0
    start = 1.0 - config.decay if config.kind == "wsd" else config.rise
    done = (progress - start) / (1.0 - start) if progress > start else 0.0
    return config.final + (1.0 - config.final) * FALLS[config.kind](done)
