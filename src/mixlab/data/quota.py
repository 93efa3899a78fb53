"""Whose turn it is among several sources with weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction


class Quota:
    """Turns dealt out so that after any number n of them a source with the share w (its weight over all) has
    had n w, rounded down or up.

    Balinski and Young's quota method (1975): the next turn goes to the source with the largest
    w / (turns + 1) among those that it would not take above n w rounded up; to the first of equals. In whole
    numbers, so exact: `weights` are taken as the decimal numbers they are written as. `turns` is all the
    state.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        fractions = [Fraction(str(weight)) for weight in weights]
        scale = math.lcm(*(fraction.denominator for fraction in fractions))
        self._shares = [int(fraction * scale) for fraction in fractions]
        self._total = sum(self._shares)
        self.turns = [0] * len(weights)

    def next(self) -> int:
        """The number of the source whose turn it is."""
        n, best = sum(self.turns) + 1, -1
        for source, (share, had) in enumerate(zip(self._shares, self.turns, strict=True)):
            if had * self._total < share * n and (
                best < 0 or share * (self.turns[best] + 1) > self._shares[best] * (had + 1)
            ):
                best = source
        self.turns[best] += 1
        return best
