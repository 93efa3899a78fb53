"""The healthy bands of the watch list, whose limit each is, and the warning in words; no torch in here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Band:
    """Where a number is healthy. means: what it says outside, and what may help. source: whose limit. unit:
    with the space before it."""

    what: str
    means: str
    source: str
    unit: str = ""
    low: float = 0.0
    high: float = math.inf

    def outside(self, value: float) -> float:
        """How far beyond the limit, as a ratio above 1; 0 inside."""
        if value > self.high:
            return value / self.high
        return self.low / max(value, 1e-9) if value < self.low else 0.0

    @property
    def limit(self) -> str:
        """'up to 100', 'from 0.1 on': every band has one."""
        return f"up to {self.high:g}" if self.high < math.inf else f"from {self.low:g} on"

    def sentence(self, value: float, where: str) -> str:
        """The warning in words; a value is written with as many digits as show that it is outside."""
        shown = next(
            (text for n in (3, 4, 5, 6) if self.outside(float(text := f"{value:.{n}g}"))), f"{value}"
        )
        return f"{self.what} is {shown}{self.unit} in {where}, healthy {self.limit}: {self.means}"


BANDS: dict[str, Band] = {
    "attention_logit": Band(
        what="the largest attention logit",
        high=100.0,
        means="each query is about to see one key alone, from which training may not come back; a lower "
        "learning rate, qk_norm or a softcap holds it",
        source="Dehghani et al. 2023 (ViT-22B) and Wortsman et al. 2023 describe runs that diverge as it "
        "grows; 100 is where Kimi Team 2025 (K2, arXiv 2507.20534) hold it",
    ),
    "attention_entropy": Band(
        what="attention entropy",
        low=0.1,
        means="nearly every query sees one key alone; a lower learning rate or a longer warm-up helps",
        source="Zhai et al. 2023: a collapse towards 0 goes with divergence; 0.1 nats is our own limit",
    ),
    "effective_rank": Band(
        what="the effective rank of the residual stream",
        low=2.0,
        means="all tokens point the same way, so that what follows cannot tell them apart",
        source="Roy & Vetterli 2007 for the measure, Dong et al. 2021 for collapse to rank 1; 2 is our own",
    ),
    "dead_units": Band(
        what="the share of dead units",
        high=0.5,
        means="their weights serve for nothing; a lower learning rate or a smoother activation keeps more",
        source="our own limit; working models are known with more (Voita et al. 2023, arXiv 2309.04827)",
    ),
    "update_ratio": Band(
        what="the update-to-weight ratio",
        high=0.5,
        means="a step replaces half of the weights; a lower learning rate or a longer warm-up helps",
        source="our own limit: our presets reach 0.15 in warm-up, 0.08 after it, and 1.5 to 3 at the first "
        "step with 30 times their rate (LOG.md); folklore has 1e-3 for large models",
    ),
    "loss_rise": Band(
        what="the rise of the mean loss over its lowest",
        unit=" nats",
        high=0.3,
        means="what was learned is being lost; a lower learning rate or a longer warm-up helps",
        source="our own limit: our presets stay below 0.03, and with 30 times their rate rise by up to 5.7 "
        "(LOG.md)",
    ),
    "gradient_jump": Band(
        what="the largest gradient norm over the usual one",
        high=30.0,
        means="a step that clipping alone holds back; a lower learning rate helps, and a look at the layer "
        "whose gradient it is if it comes again",
        source="our own limit: our presets stay below 4 after warm-up (LOG.md)",
    ),
}


def warning(band: Band, found: Mapping[str, float | None]) -> str | None:
    """A sentence for the place that is farthest out of the band, or None if all are inside."""
    far = {where: band.outside(value) for where, value in found.items() if value is not None}
    worst = max(far, key=far.__getitem__, default=None)
    if worst is None or not far[worst]:
        return None
    value = found[worst]
    assert value is not None
    return band.sentence(value, worst)
