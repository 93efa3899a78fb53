"""The figures as plain data for Plotly.newPlot; colours are slots ("$blue") that the page fills per theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from mixlab.report.curves import Curve, by_position, eval_curve, log_bins, reach, training_curve
from mixlab.report.scales import Scale, clip_marks, decades, fit, log_suits
from mixlab.report.units import count
from mixlab.report.view import ModelView

MARGIN = {"l": 58, "r": 96, "t": 22, "b": 48}  # the top has room for Plotly's buttons
HEIGHT = 400
FEW = 3  # points: a line of fewer cannot be seen without markers
LABEL_GAP = 15  # pixels between two direct labels, just above the font's height


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure: its title, a one-sentence reading, and one Plotly `data` + `layout` per view.

    `views` are keyed "valid" and "train" where the page's toggle applies, else "all"; there each view has a
    "reading" of its own.
    """

    id: str
    title: str
    reading: str
    views: dict[str, dict[str, Any]]
    wide: bool = False
    keys: list[tuple[str, str]] = field(default_factory=list)  # (colour slot, name): the figure's own legend

    @property
    def label(self) -> str:
        """What a screen reader says in place of the picture."""
        return f"Figure: {self.title}. {self.reading}"

    def seen_as(self, view: str) -> Figure:
        """The same with the reading of one of its views, where it has that view."""
        return replace(self, reading=self.views.get(view, {}).get("reading", self.reading))


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis with the page's quiet style."""
    return {
        "title": {"text": title, "standoff": 8},
        "gridcolor": "$grid",
        "linecolor": "$rule",
        "tickcolor": "$rule",
        "zeroline": False,
        "tickangle": 0,
        "automargin": False,
        **more,
    }


def layout(x: dict[str, Any], y: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The layout that every figure shares."""
    return {
        "height": HEIGHT,
        "margin": MARGIN,
        "showlegend": False,
        "hovermode": "closest",
        "xaxis": x,
        "yaxis": y,
        "annotations": [],
        "shapes": [],
        **more,
    }


def _line(model: ModelView, curve: Curve, hover: str, *, markers: bool) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers" if markers or len(curve.x) < FEW else "lines",
        "name": plain(model.name),
        "meta": {"model": model.name},
        "x": curve.x,
        "y": [round(value, 5) for value in curve.y],
        "line": {"color": f"${model.slot}", "width": 2, "dash": model.dash},
        "marker": {"color": f"${model.slot}", "size": 4.5 if len(curve.x) >= FEW else 7},
        "hovertemplate": hover + "<extra>%{fullData.name}</extra>",
    }


def _end(model: ModelView, curve: Curve, hover: str) -> dict[str, Any] | None:
    """The diamond of a last evaluation that scored more of the text than the line's."""
    if curve.end is None:
        return None
    return {
        "type": "scatter",
        "mode": "markers",
        "name": plain(model.name),
        "meta": {"model": model.name},
        "x": [curve.end[0]],
        "y": [round(curve.end[1], 5)],
        "marker": {"color": f"${model.slot}", "size": 9, "symbol": "diamond"},
        "hovertemplate": hover + "<br>the last, full measure<extra>%{fullData.name}</extra>",
    }


def _band(model: ModelView, curve: Curve) -> dict[str, Any] | None:
    """The area between the lowest and the highest seed."""
    if curve.low is None or curve.high is None:
        return None
    return {
        "type": "scatter",
        "mode": "lines",
        "meta": {"model": model.name},
        "x": curve.x + curve.x[::-1],
        "y": [round(value, 5) for value in curve.high + curve.low[::-1]],
        "fill": "toself",
        "fillcolor": f"${model.slot}@0.18",
        "line": {"width": 0},
        "hoverinfo": "skip",
    }


class Named(Protocol):
    """What has a name and a colour: a model, or a line of its own."""

    @property
    def name(self) -> str:
        """As it is written at the edge."""

    @property
    def slot(self) -> str:
        """Its colour's name in the palette."""


def labels(
    ends: Sequence[tuple[Named, float]], span: list[float], height: int = HEIGHT
) -> list[dict[str, Any]]:
    """The names at the right edge, where their lines end, pushed apart where they meet.

    Where there are more than fit, the lowest have theirs.
    """
    plot = height - MARGIN["t"] - MARGIN["b"]
    scale = plot / (span[1] - span[0])
    gap = LABEL_GAP
    ordered = sorted(ends, key=lambda end: end[1])[: plot // gap + 1]
    places: list[float] = []
    for _, value in ordered:
        wish = (min(max(value, span[0]), span[1]) - span[0]) * scale
        places.append(max(wish, places[-1] + gap) if places else wish)
    top = float(plot)
    for index in range(len(places) - 1, -1, -1):  # what was pushed over the top comes back down
        places[index] = min(places[index], top)
        top = places[index] - gap
    return [
        {
            "name": line.name,
            "text": shortened(getattr(line, "label", line.name)),
            "xref": "paper",
            "x": 1,
            "xanchor": "left",
            "xshift": 6,
            "yref": "paper",
            "y": place / plot,
            "yanchor": "middle",
            "showarrow": False,
            "font": {"color": f"${line.slot}", "size": 12.5},
        }
        for (line, _), place in zip(ordered, places, strict=True)
    ]


def shortened(name: str, most: int = 11) -> str:
    """A model's name as Plotly text: cut to the margin's width, and harmless as markup."""
    if len(name) > most:  # cut in the middle: long names often differ at their ends
        name = f"{name[: most // 2]}…{name[most // 2 + 1 - most :]}"
    return plain(name)


def plain(text: str) -> str:
    """`text` with the three characters escaped that Plotly reads as markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _reference(model: ModelView, level: float) -> dict[str, Any]:
    """A horizontal line for a model that has a score and no curve."""
    return {
        "name": model.name,
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "yref": "y",
        "y0": level,
        "y1": level,
        "line": {"color": f"${model.slot}", "width": 1.5, "dash": "dot"},
    }


def _view(
    lines: list[tuple[ModelView, Curve]],
    references: list[tuple[ModelView, float]],
    x: dict[str, Any],
    y_title: str,
    hover: str,
    *,
    markers: bool,
    scale: Scale | None = None,
) -> dict[str, Any]:
    scale = scale or _scale(lines, references)
    traces: list[dict[str, Any] | None] = [_band(model, curve) for model, curve in lines]
    traces += [_line(model, curve, hover, markers=markers) for model, curve in lines]
    traces += [_end(model, curve, hover) for model, curve in lines]
    for model, curve in lines:
        end = [curve.end] if curve.end else []
        xs, ys = [*curve.x, *(at for at, _ in end)], [*curve.y, *(loss for _, loss in end)]
        traces += clip_marks(xs, ys, scale, model.slot, each=markers, model=model.name)
    shown = layout(x, axis(y_title, range=scale.span))
    shown["shapes"] = [_reference(model, level) for model, level in references]
    shown["annotations"] = labels([(m, c.last[1]) for m, c in lines] + references, scale.span) + scale.note()
    return {"data": [trace for trace in traces if trace], "layout": shown}


def _scale(lines: Sequence[tuple[ModelView, Curve]], references: Sequence[tuple[ModelView, float]]) -> Scale:
    """The loss axis of these lines, with their seeds' spread and the baselines."""
    losses = [[*curve.y, *(curve.end or ())[1:]] for _, curve in lines]
    spread = [value for _, curve in lines for value in curve.low or ()]
    return fit(losses, [level for _, level in references], spread)


AXES: dict[str, tuple[str, str, str]] = {  # key of a record -> title, axis title, hover format
    "tokens": ("Loss against tokens", "training tokens", "%{x:.3s} tokens"),
    "seconds": ("Loss against time", "training time (seconds)", "%{x:.3~r} s"),
    "flops": ("Loss against compute", "training FLOPs", "%{x:.3s}FLOP"),
}


def loss_figure(
    models: list[ModelView], key: str, readings: dict[str, str], nats_per_bit: float | None
) -> Figure | None:
    """Loss against `key` ("tokens", "seconds" or "flops"); None when no model has a curve over it.

    readings: a sentence for each view, "valid" and "train". nats_per_bit: turns bits per byte into nats per
    token (for the baselines in the training view).
    """
    title, x_title, hover = AXES[key]
    references = [(model, model.bits) for model in models if model.is_baseline and model.bits is not None]
    scored = [(m, c) for m in models if (c := eval_curve(m, key)) and _drawable(c, key)]
    trained = [(m, c) for m in models if (c := training_curve(m, key)) and _drawable(c, key)]
    longest = max((curve.x for _, curve in scored), key=len, default=[])
    logarithmic = key == "flops" or log_suits(longest)
    views = {}
    if scored:
        text = f"%{{y:.3f}} bits per byte<br>{hover}"
        xs = [x for _, curve in scored for x in [*curve.x, *(curve.end or ())[:1]]]
        x = _x_axis(key, x_title, xs, logarithmic)
        views["valid"] = _view(scored, references, x, "validation loss (bits per byte)", text, markers=True)
    if trained:
        levels = [(model, level * nats_per_bit) for model, level in references] if nats_per_bit else []
        text = f"%{{y:.3f}} nats per token<br>{hover}"
        top = _scale(trained, levels).span[1]  # a logarithmic axis starts where the first line is in sight
        enters = [first for _, curve in trained if (first := reach(curve, top)) is not None and first > 0]
        xs = [x for _, curve in trained for x in curve.x if not enters or x >= min(enters)]
        x = _x_axis(key, x_title, xs, logarithmic)
        views["train"] = _view(trained, levels, x, "training loss (nats per token)", text, markers=False)
    if not views:
        return None
    for name, view in views.items():
        view["reading"] = readings.get(name, "")
    first = next(iter(views.values()))["reading"]
    return Figure(id=f"loss-{key}", title=title, reading=first, views=views, wide=key == "tokens")


def first_view(shown: Sequence[Figure]) -> str:
    """What the loss figures show at first: validation, unless that is no more than a point for each model."""
    views = [figure.views for figure in shown if figure.id.startswith("loss-")]
    lines = [trace for view in views for trace in view.get("valid", {}).get("data", ())]
    points = max((len(trace["x"]) for trace in lines), default=0)
    return "train" if points < 2 and any("train" in view for view in views) else "valid"


def _drawable(curve: Curve, key: str) -> bool:
    return key != "flops" or any(x > 0 for x in curve.x)


def _x_axis(key: str, title: str, xs: Sequence[float], logarithmic: bool) -> dict[str, Any]:
    positive = [x for x in xs if x > 0]
    if not logarithmic or not positive:
        return axis(title, rangemode="tozero", tickformat="~s" if key == "tokens" else "~r", nticks=7)
    span = decades(min(positive), max(positive))
    return axis(f"{title}, logarithmic", type="log", range=span, **log_ticks(*span))


def log_ticks(low: float, high: float) -> dict[str, Any]:
    """Round ticks between the powers of ten `low` and `high`, in human units: as few as are three or more."""
    halves = tuple(1 + i / 2 for i in range(18))
    for steps in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), tuple(range(1, 10)), halves):
        powers = range(math.floor(low), math.ceil(high) + 1)
        values = [step * 10.0**power for power in powers for step in steps]
        values = [value for value in values if low <= math.log10(value) <= high]
        if len(values) >= 3:
            break
    return {"tickvals": values, "ticktext": [_tick(value) for value in values]}


def _tick(value: float) -> str:
    return count(value).replace(".00", "").replace(".0", "") if value >= 1 else f"{value:g}"


def position_figure(models: list[ModelView], reading: str) -> Figure | None:
    """Loss by position in the context, over logarithmic bins of positions."""
    lines = [(model, log_bins(values)) for model in models if len(values := by_position(model)) > 1]
    if not lines:
        return None
    longest = max(len(by_position(model)) for model, _ in lines)
    ticks = [4**power for power in range(longest.bit_length()) if 4**power <= longest]
    x = axis(
        "position in the context (tokens)",
        type="log",
        range=[-0.03, math.log10(longest) + 0.03],
        tickvals=ticks,
        ticktext=[count(tick) for tick in ticks],
    )
    hover = "%{y:.3f} nats per token<br>position %{x:.3~r}"
    values = [y for _, curve in lines for y in curve.y]
    low, high = min(values), max(values)
    pad = 0.05 * max(high - low, 0.02)
    scale = Scale(span=[low - pad, high + pad])  # the first positions are the point: nothing is left out
    view = _view(lines, [], x, "validation loss (nats per token)", hover, markers=False, scale=scale)
    return Figure(
        id="position",
        title="Loss by position in the context",
        reading=reading,
        views={"all": view},
        wide=True,
    )
