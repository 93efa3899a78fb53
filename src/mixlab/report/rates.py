"""The page of a learning-rate range test: one figure and the facts behind it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from mixlab.config import to_mapping
from mixlab.report import facts, offline
from mixlab.report.figures import MARGIN, Figure, axis, layout
from mixlab.train.config import RunConfig
from mixlab.train.range_test import RULE, WINDOW, RangeTest


def rates_figure(found: RangeTest) -> Figure:
    """Loss against rate: every batch faint, their running mean, the start's level and the suggestion."""
    top = 1.1 * max(found.start, *found.smooth)
    span = [0.9 * min(found.smooth), top]

    def line(values: list[float], name: str, **more: Any) -> dict[str, Any]:
        return {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": found.rates,
            "y": [round(value, 5) for value in values],
            "hovertemplate": "%{x:.2~g}: %{y:.3f} nats<extra>%{fullData.name}</extra>",
            **more,
        }

    data = [
        line(found.losses, "each batch", line={"color": "$blue@0.35", "width": 1}),
        line(found.smooth, f"mean of {WINDOW}", line={"color": "$blue", "width": 2}),
    ]
    shown = layout(
        axis("learning rate", type="log", exponentformat="power", dtick=1),
        axis("training loss (nats per token)", range=span),
        margin={**MARGIN, "r": 24},
    )
    shown["shapes"] = [_level(found.start)]
    reading = "The loss never fell: no rate can be suggested."
    if found.suggestion is not None:
        reading = f"{found.suggestion:g} is {RULE}."
        shown["shapes"].append(_mark(found.suggestion))
        shown["annotations"] = [_name(found.suggestion)]
    return Figure(
        id="rates",
        title="Loss after a step at each rate",
        reading=reading,
        views={"all": {"data": data, "layout": shown}},
        wide=True,
        keys=[("blue", f"mean of {WINDOW} batches"), ("soft", "the loss before training")],
    )


def _level(start: float) -> dict[str, Any]:
    ends = {"xref": "paper", "x0": 0, "x1": 1, "yref": "y", "y0": start, "y1": start}
    return {"type": "line", **ends, "line": {"color": "$soft", "width": 1.5, "dash": "dot"}}


def _mark(rate: float) -> dict[str, Any]:
    ends = {"xref": "x", "x0": rate, "x1": rate, "yref": "paper", "y0": 0, "y1": 1}
    return {"type": "line", **ends, "line": {"color": "$vermilion", "width": 1.5}}


def _name(rate: float) -> dict[str, Any]:
    return {
        "text": f"{rate:g}",
        "xref": "x",
        "x": math.log10(rate),  # an annotation on a logarithmic axis is placed by the exponent
        "xanchor": "left",
        "xshift": 4,
        "yref": "paper",
        "y": 1,
        "yanchor": "top",
        "showarrow": False,
        "font": {"color": "$vermilion", "size": 12.5},
    }


def write_rates(found: RangeTest, config: RunConfig, path: Path) -> Path:
    """Write the page to `path`; UserError if the place holds something else or cannot be written."""
    figure = rates_figure(found)
    html = offline.fill(
        "figures.html.j2",
        [figure],
        kicker="learning-rate range test",
        title=config.name,
        headline=figure.reading,
        notes=[f"It ended because {found.stopped}.", "The rates rise exponentially, one batch a step."],
        config=facts.config_text(to_mapping(config)),
    )
    return offline.write_page(html, path)
