"""The width solver: one parameter budget for every model, whatever its parts.

The width D is what changes. Where steps of D are too coarse (small budgets, heads that fix D's divisors) the
hidden width of the feature mixers, or of the temporal mixers where those have none, makes up the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, fields, replace
from typing import Any, NamedTuple

from mixlab.errors import UserError
from mixlab.model.config import PER_BLOCK, ModelConfig
from mixlab.parts.contract import Choice

TOLERANCE = 0.02
"""Share of the budget by which a model may miss it."""

NARROWEST = 8
"""Smallest D worth the name of a model: below, the norms and biases outweigh the mixing."""

WIDEST = 1 << 20
"""Where the search for a width gives up."""

ROUND_STEPS = (16, 8, 4)
"""Steps of D in the order they are tried: multiples of 16 fill vector registers, and multiples of 4 leave an
attention of two heads an even head width."""

SLIGHT, MOST = 4 / 3, 2.0
"""How far a hidden width may be stretched or shrunk from the preset's: for a round D, and at the most."""

BISECTIONS = 7
"""Of a stretch: a hidden width of 64 multiples of 16 needs no more."""

Count = Callable[[ModelConfig], int]


def parameter_count(config: ModelConfig) -> int:
    """Parameters of the model that `config` describes, built without memory for them.

    Raises UserError where the parts do not fit together.
    """
    import torch

    from mixlab.model.language_model import build_model

    with torch.device("meta"):
        model = build_model(config)
    return sum(model.parameters_by_component().values())


def solve(
    config: ModelConfig, params: int, *, name: str = "the model", count: Count = parameter_count
) -> ModelConfig:
    """`config` with the width (if need be, the mixers' hidden width too) that has `params` parameters, to 2%.

    Everything else stays. Raises UserError, naming the smallest budget that works, if `params` is too few,
    and if parts or a number of heads leave no width that fits.
    """
    unit = _unit(config)
    narrowest = unit * math.ceil(NARROWEST / unit)
    search = _Search(config, params, count, unit, narrowest)
    smallest = search.parameters(Knobs(narrowest))
    if smallest is None:
        count(search.config(Knobs(narrowest)))  # raises what is wrong with it, in the part's own words
        raise UserError(f"{name} cannot be built at width {narrowest}")
    if smallest > params * (1 + TOLERANCE):
        raise UserError(
            f"{name}: {params:,} parameters are too few for a vocabulary of {config.vocab_size:,} and "
            f"{config.depth} blocks; the smallest budget that works is {smallest:,}"
        )
    for found in search.attempts():
        if found is not None:
            return search.config(found)
    near = search.nearest()
    raise UserError(
        f"{name}: no width comes within {TOLERANCE:.0%} of {params:,} parameters; "
        f"the nearest budget that works is {search.parameters(near):,} (width {near.dim})"
    )


def _unit(config: ModelConfig) -> int:
    """What D must be a multiple of where heads are set: an even width for each (rotations pair channels)."""
    heads = [
        getattr(choice.config, "heads", 0)
        for kind in PER_BLOCK
        for choice in config.pattern(kind)
        if hasattr(choice.config, "heads")
    ]
    return math.lcm(1, *(2 * h for h in heads if isinstance(h, int) and h > 0))


class Knobs(NamedTuple):
    """What the solver turns: the width D, and the factor on the mixers' hidden width."""

    dim: int
    stretch: float = 1.0


class _Search:
    """Counts parameters, each setting once, and picks among settings near the budget."""

    def __init__(self, base: ModelConfig, params: int, count: Count, unit: int, narrowest: int) -> None:
        self.base, self.params, self.count, self.unit, self.narrowest = base, params, count, unit, narrowest
        self.counts: dict[Knobs, int | None] = {}

    def config(self, knobs: Knobs) -> ModelConfig:
        """The config with these knobs."""
        config = replace(self.base, dim=knobs.dim)
        return config if knobs.stretch == 1.0 else _stretched(config, knobs.stretch)

    def parameters(self, knobs: Knobs) -> int | None:
        """Its parameters; None if it cannot be built."""
        if knobs not in self.counts:
            try:
                self.counts[knobs] = self.count(self.config(knobs))
            except UserError:
                self.counts[knobs] = None
        return self.counts[knobs]

    def too_small(self, knobs: Knobs) -> bool:
        """Whether it has fewer parameters than the budget; a width that cannot be built counts as too small,
        so that the search moves on."""
        return (self.parameters(knobs) or 0) < self.params

    def error(self, knobs: Knobs) -> float:
        """How far from the budget, as a share of it."""
        count = self.parameters(knobs)
        return math.inf if count is None else abs(count - self.params) / self.params

    def nearest(self) -> Knobs:
        """The nearest to the budget of all that were counted."""
        return min(self.counts, key=self.error)

    def attempts(self) -> Iterator[Knobs | None]:
        """Settings within the tolerance, the most desirable first: round widths; round widths with hidden
        widths slightly off; any width; any width with hidden widths further off."""
        for step in ROUND_STEPS:
            yield self.closest(Knobs(dim) for dim in self.around(step))
        for step in ROUND_STEPS[1:]:
            yield self.gentlest(self.around(step), SLIGHT)
        for step in (2, 1):
            yield self.closest(Knobs(dim) for dim in self.around(step))
        low, high = self.around(1)
        nearby = range(low - 3 * self.unit, high + 4 * self.unit, self.unit)
        yield self.gentlest([dim for dim in nearby if dim >= self.narrowest], MOST)

    def around(self, step: int) -> tuple[int, int]:
        """The two widths, multiples of `step` that the heads allow, whose parameters enclose the budget."""
        grid = math.lcm(self.unit, step)
        low = high = grid * math.ceil(self.narrowest / grid)
        while self.too_small(Knobs(high)) and high < WIDEST:
            low, high = high, high * 2
        while high - low > grid:
            middle = (low + high) // 2 // grid * grid
            low, high = (middle, high) if self.too_small(Knobs(middle)) else (low, middle)
        return low, high

    def closest(self, candidates: Iterable[Knobs]) -> Knobs | None:
        """The candidate nearest to the budget, if it is within the tolerance."""
        best = min(candidates, key=self.error)
        return best if self.error(best) <= TOLERANCE else None

    def gentlest(self, dims: Iterable[int], most: float) -> Knobs | None:
        """Of the settings within the tolerance, the one whose hidden widths are stretched least."""
        found = [
            knobs for dim in dims for knobs in self.stretches(dim, most) if self.error(knobs) <= TOLERANCE
        ]
        return min(found, key=lambda knobs: abs(math.log(knobs.stretch)), default=None)

    def stretches(self, dim: int, most: float) -> Iterator[Knobs]:
        """At one width, the two stretches whose parameter counts enclose the budget, and those further in."""
        if _stretched(self.base, most) == self.base:
            return
        low, high = Knobs(dim, 1 / most), Knobs(dim, most)
        for _ in range(BISECTIONS):
            middle = Knobs(dim, round((low.stretch + high.stretch) / 2, 4))
            yield middle
            low, high = (middle, high) if self.too_small(middle) else (low, middle)


def _stretched(config: ModelConfig, stretch: float) -> ModelConfig:
    """The config with each feature mixer's `ratio`, or else each temporal one's, times `stretch`."""
    for kind in reversed(PER_BLOCK):
        pattern = config.pattern(kind)
        if any(_has_ratio(choice) for choice in pattern):
            spelled = [_spelled(choice, stretch) for choice in pattern]
            alike = all(one == spelled[0] for one in spelled)
            change: dict[str, Any] = {kind: spelled[0] if alike else spelled}
            return replace(config, **change)
    return config


def _has_ratio(choice: Choice) -> bool:
    return any(f.name == "ratio" and isinstance(choice.config.ratio, float) for f in fields(choice.config))


def _spelled(choice: Choice, stretch: float) -> Mapping[str, Any]:
    knobs = asdict(choice.config)
    if _has_ratio(choice):
        knobs["ratio"] = round(knobs["ratio"] * stretch, 4)
    return {"kind": choice.name, **knobs}
