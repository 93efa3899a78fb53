"""The course of a run by its record: whether the loss rises or the gradient jumps, what left its band when.

All of it follows from the record's lines, so that a resumed run sees what an uninterrupted one does.
"""

from __future__ import annotations

from collections import deque
from statistics import fmean, median
from typing import Any

LATELY = 20
"""Steps that count as the last ones: their mean loss is steady to 0.03 nats in healthy runs (LOG.md)."""

BEFORE = 100
"""Steps before those, whose median gradient norm is the usual one."""

ENOUGH = 10
"""Of them that are needed, before which nothing is usual."""

HOPELESS = 3.0
"""Times the loss of one who knows nothing, ln of the vocabulary: no run comes back that stays above it."""

ALL_OF_IT = 0.999
"""Of the loss of knowing nothing, which a dead network has to the last digit."""


class Trend:
    """What the lines of a record say together. left: name of a number -> the step that saw it out of its band
    first. step: the last line of a step."""

    def __init__(self) -> None:
        self.left: dict[str, int] = {}
        self.step: dict[str, Any] = {}
        self._losses: deque[float] = deque(maxlen=BEFORE)
        self._norms: deque[float] = deque(maxlen=BEFORE + LATELY)
        self._lowest: float | None = None
        self._highest = 0.0

    def take(self, line: dict[str, Any]) -> None:
        """The record's next line."""
        if line["kind"] == "watch":
            for name in line["warnings"]:
                self.left.setdefault(name, line["step"])
        if line["kind"] != "step":
            return
        self.step = line
        if (loss := line.get("loss")) is not None:
            self._losses.append(loss)
            self._highest = max(self._highest, loss)
            if (now := self.loss) is not None:
                self._lowest = now if self._lowest is None else min(now, self._lowest)
        if (norm := line.get("grad_norm")) is not None:
            self._norms.append(norm)

    @property
    def loss(self) -> float | None:
        """The mean of the last LATELY steps; None before there are so many."""
        lately = list(self._losses)[-LATELY:]
        return fmean(lately) if len(lately) == LATELY else None

    @property
    def rise(self) -> float | None:
        """How far, in nats, that is above its lowest."""
        now = self.loss
        return None if now is None or self._lowest is None else now - self._lowest

    @property
    def usual_norm(self) -> float | None:
        """The median gradient norm of the steps before the last ones; None where there are too few."""
        before = list(self._norms)[:-LATELY]
        return median(before) if len(before) >= ENOUGH else None

    @property
    def median_norm(self) -> float | None:
        """The median gradient norm of all the steps remembered."""
        return median(self._norms) if self._norms else None

    @property
    def largest_norm(self) -> float | None:
        """The largest gradient norm of the last steps."""
        return max(list(self._norms)[-LATELY:], default=None)

    @property
    def jump(self) -> float | None:
        """The largest gradient norm of the last steps over the usual one."""
        usual, largest = self.usual_norm, self.largest_norm
        return largest / usual if usual and largest is not None else None

    def readings(self) -> dict[str, float | None]:
        """What of it is held against a band."""
        return {"loss_rise": self.rise, "gradient_jump": self.jump}

    def hopeless(self, ignorance: float) -> str:
        """Why no run comes back from here, as a clause, or "".

        For BEFORE steps the loss has not fallen, and its median is above HOPELESS times `ignorance`, or
        no better than `ignorance` where a loss had once been above that.
        """
        losses, half = list(self._losses), BEFORE // 2
        if len(losses) < BEFORE or median(losses[half:]) < median(losses[:half]):
            return ""
        nothing = f"the {ignorance:.3g} nats of knowing nothing, and does not fall"
        if median(losses) > HOPELESS * ignorance:
            return f"its median over {BEFORE} steps is more than {HOPELESS:g} times {nothing}"
        if self._highest > HOPELESS * ignorance and median(losses) > ALL_OF_IT * ignorance:
            return f"it had been {self._highest:.3g}, and its median over {BEFORE} steps is {nothing}"
        return ""
