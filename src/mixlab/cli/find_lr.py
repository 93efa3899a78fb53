"""`mixlab train --find-lr`: the loss against the learning rate, drawn, and a rate to try first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixlab.train.config import RunConfig
    from mixlab.train.range_test import RangeTest

BARS = "▁▂▃▄▅▆▇█"


def show(config: RunConfig, *, out: Path | None, as_json: bool) -> None:
    """Run the test and print what it found; with `out`, draw it there as a page too."""
    from mixlab.cli.console import note, print_json
    from mixlab.data import prepare
    from mixlab.report import check_place
    from mixlab.train.range_test import RULE, find_lr

    if out is not None:
        out = out if out.suffix == ".html" else out / "learning-rate.html"
        check_place(out)
    context = config.model.context if config.model is not None else 0
    dataset = prepare(config.validate().data, context=context, notes=note)
    with Countdown(config.name) as countdown:
        found = find_lr(config, dataset, progress=countdown, note=note)
    drawn = None
    try:
        if out is not None:
            from mixlab.report.rates import write_rates

            write_rates(found, config, out)
            drawn = str(out)
            note(f"the curve is in {drawn}")
    finally:  # the search took long: what it found is told even if the page cannot be written
        if as_json:
            print_json({**asdict(found), "rule": RULE, "page": drawn})
        else:
            print(describe(found))


class Countdown:
    """Progress of the test on stderr, a line on a terminal and now and then one elsewhere."""

    def __init__(self, name: str) -> None:
        from mixlab.cli.console import Progress
        from mixlab.train.range_test import STEPS

        self.progress = Progress(f"{name}, rates", lambda line: line["step"] / STEPS)

    def __enter__(self) -> Countdown:
        self.progress.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.progress.__exit__(*error)

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Take a step's rate and loss."""
        self.progress({**line, "kind": "step"})


def describe(found: RangeTest) -> str:
    """The curve in one line of bars over a scale of rates, then what follows from it."""
    from mixlab.train.range_test import RULE

    # What is above the start is as bad as can be: the scale is for what was learned.
    drawn = bars([min(loss, found.start) for loss in found.smooth])
    scale = f"{min(found.smooth):.2f} nats a token at ▁, {found.start:.2f} (the start) and more at █"
    lines = [scale, drawn, *ticks(found.rates)]
    lines += ["", f"it ended because {found.stopped}"]
    if found.suggestion is None:
        return "\n".join([*lines, "the loss never fell: no rate can be suggested"])
    place = next(i for i, rate in enumerate(found.rates) if rate >= found.suggestion * 0.99)
    lines.insert(2, " " * place + "^")
    return "\n".join([*lines, f"try train.optimizer.lr={found.suggestion:g}: {RULE}"])


def bars(values: Sequence[float]) -> str:
    """One bar a value, the lowest value the lowest bar."""
    low, high = min(values), max(values)
    steps = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * steps)] for value in values)


def ticks(rates: Sequence[float]) -> list[str]:
    """Two lines below the bars: a mark and its power of ten at the first rate of each decade."""
    marks, names = [" "] * (len(rates) + 6), [" "] * (len(rates) + 6)
    for place, rate in enumerate(rates):
        exponent = math.floor(math.log10(rate) + 1e-9)
        if place == 0 or math.floor(math.log10(rates[place - 1]) + 1e-9) < exponent:
            marks[place] = "|"
            names[place : place + 5] = f"1e{exponent}".ljust(5)
    return ["".join(marks).rstrip(), "".join(names).rstrip()]
