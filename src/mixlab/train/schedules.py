"""Learning-rate schedules as functions of progress, the fraction of the horizon that is behind us.

Progress comes from steps, tokens or minutes alike, so that a schedule need not know which horizon a run has.
"""

from __future__ import annotations

import math

from mixlab.train.config import ScheduleConfig


def lr_factor(config: ScheduleConfig, progress: float) -> float:
    """What the peak learning rate is multiplied by at `progress` in [0, 1]: a number in [0, 1].

    Warm-up is linear from 0. After it: `constant` stays at 1; `cosine` falls to `final` over the rest
    (Loshchilov & Hutter 2017, SGDR, eq. 5); `wsd` stays at 1 and falls to `final` over the last `decay` of
    the horizon, as 1 - sqrt (Haegele et al. 2024, arXiv 2405.18392, section 3: better than linear).
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < config.warmup:
        return progress / config.warmup
    if config.kind == "constant":
        return 1.0
    start = config.warmup if config.kind == "cosine" else 1.0 - config.decay
    done = (progress - start) / (1.0 - start) if progress > start else 0.0
    shape = 0.5 * (1.0 + math.cos(math.pi * done)) if config.kind == "cosine" else 1.0 - math.sqrt(done)
    return config.final + (1.0 - config.final) * shape
