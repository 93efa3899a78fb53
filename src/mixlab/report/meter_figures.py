"""The figures of a run's meters over its steps, and of the watch list with what is healthy shaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mixlab.report import meter_readings as say
from mixlab.report.figures import MARGIN, Figure, axis, labels, layout, plain
from mixlab.report.palette import SLOTS
from mixlab.report.units import count
from mixlab.report.view import ModelView, mapping
from mixlab.train.bands import BANDS, Band

HEIGHT = 280  # lower than the loss's: there are many, two side by side
ROLES = ("matrix", "embedding", "head", "gain", "recurrence")  # the order of their colours
STRETCH = 20.0  # a figure of positive numbers that spans more than this factor is logarithmic
DECADES = 4.0  # of an update are shown, at most: at a schedule's end it falls to nothing
FAINT = 0.15

Series = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a figure: its name, its colour's slot and dash, its series, and whose chip hides it."""

    name: str
    slot: str
    series: Series
    dash: str = "solid"
    model: str = ""


def runs(models: Sequence[ModelView]) -> list[say.RunMeters]:
    """The runs that have meters, best first; of a model that has several, each with its seed."""
    found = []
    for model in models:
        of_model = [result for result in (*model.done, *model.failed) if mapping(result.get("meters"))]
        for result in of_model:
            name = model.name if len(of_model) == 1 else f"{model.name} {result.get('seed')}"
            status = str(result.get("status"))
            found.append(say.RunMeters(name=name, model=model, meters=result["meters"], status=status))
    return found


def training_figures(models: Sequence[ModelView]) -> list[Figure]:
    """Gradient norm, updates by role, learning rates, throughput: those that a run has numbers of."""
    found = runs(models)
    wanted = [_gradient(found), *_updates(found), _rate(found)]
    for key, title, unit, ticks, reading in (
        (
            "tokens_per_second",
            "Throughput",
            "tokens a second",
            "~s",
            say.throughput(found, "tokens_per_second"),
        ),
        (
            "peak_fraction",
            "Share of the measured peak",
            "share of the peak",
            ".0%",
            say.throughput(found, "peak_fraction"),
        ),
        ("memory_bytes", "Memory", "GiB", "~g", say.memory(found)),
    ):
        lines = [_line(run, curve) for run in found if (curve := run.step(key)) and curve["most"]]
        if key == "memory_bytes":
            lines = [replace(line, series=_scaled(line.series, 2.0**-30)) for line in lines]
        named = len(found) > 1
        wanted.append(
            _figure(key, title, reading, lines, unit, tickformat=ticks, from_zero=True, named=named)
        )
    return [figure for figure in wanted if figure is not None]


def watch_figures(models: Sequence[ModelView]) -> list[Figure]:
    """What the watch list saw, a figure for each number, with its healthy band."""
    found, wanted = runs(models), []
    for key, (title, unit) in say.WATCHED.items():
        lines = [_line(run, curve) for run in found if (curve := run.watch(key))]
        reading = say.watched(found, key)
        named = len(found) > 1
        wanted.append(_figure(key, title, reading, lines, unit, band=BANDS[key], named=named))
    return [figure for figure in wanted if figure is not None]


def _gradient(found: Sequence[say.RunMeters]) -> Figure | None:
    """Before clipping, and dotted after it where it was clipped."""
    lines = [_line(run, curve) for run in found if (curve := run.step("grad_norm"))]
    after = [
        _line(run, curve, dash="dot", name=f"{run.name}, clipped")
        for run in found
        if run.clipped and (curve := run.step("grad_norm_clipped"))
    ]
    reading = say.gradient(found)
    return _figure("grad_norm", "Gradient norm", reading, lines, "L2 norm", unlabelled=after)


def _updates(found: Sequence[say.RunMeters]) -> list[Figure | None]:
    """Of one run a figure with a line for each role; of several a figure for each role."""
    title, unit, band = "Update over weight", "change / weights", BANDS["update_ratio"]
    with_ratios = [run for run in found if run.updates]
    roles = [role for role in ROLES if any(role in run.updates for run in with_ratios)]
    if len(found) == 1 == len(with_ratios):
        (run,) = with_ratios
        lines = [
            Line(name=role, slot=SLOTS[ROLES.index(role)], series=run.updates[role], model=run.model.name)
            for role in roles
        ]
        return [_figure("update_ratio", f"{title}, by role", say.updates(run), lines, unit, band=band)]
    figures = []
    for role in roles:
        lines = [_line(run, run.updates[role]) for run in with_ratios if role in run.updates]
        reading, of = say.updates_of(with_ratios, role), f"{title}, {role} parameters"
        figures.append(_figure(f"update_ratio-{role}", of, reading, lines, unit, band=band, named=True))
    return figures


def _rate(found: Sequence[say.RunMeters]) -> Figure | None:
    """Of one run a line for all groups of parameters that have the same rate; of several the schedule's."""
    groups = found[0].rates if len(found) == 1 else {}
    if len(groups) > 1:
        lines = [
            Line(name=name, slot=SLOTS[i % len(SLOTS)], series=curve, model=found[0].model.name)
            for i, (name, curve) in enumerate(groups.items())
        ]
        keys = [(line.slot, line.name) for line in lines]
    else:
        lines, keys = [_line(run, curve) for run in found if (curve := run.step("lr"))], []
    return _figure("lr", "Learning rate", say.rate(found), lines, "rate", keys=keys, from_zero=True)


def _scaled(series: Series, factor: float) -> Series:
    """The drawn values times `factor`."""
    found = dict(series)
    for side in ("y", "low", "high"):
        if side in series:
            found[side] = [factor * value for value in series[side]]
    return found


def _line(run: say.RunMeters, curve: Series, *, dash: str = "", name: str = "") -> Line:
    return Line(
        name=name or run.name,
        slot=run.model.slot,
        dash=dash or run.model.dash,
        series=curve,
        model=run.model.name,
    )


def _figure(
    key: str,
    title: str,
    reading: str,
    lines: Sequence[Line],
    unit: str,
    *,
    band: Band | None = None,
    unlabelled: Sequence[Line] = (),
    keys: Sequence[tuple[str, str]] = (),
    tickformat: str = "~g",
    from_zero: bool = False,
    named: bool = False,
) -> Figure | None:
    """None where no run has numbers. unlabelled: drawn too, without a name at the right edge. keys: a legend
    in place of all the names there. named: a single line has its name too."""
    if not lines:
        return None
    drawn = [*lines, *unlabelled]
    values = [value for line in drawn for side in ("y", "low", "high") for value in line.series.get(side, ())]
    limits = [limit for limit in (band.low, band.high) if 0 < limit < math.inf] if band else []
    logarithmic = not from_zero and min(values) > 0 and max([*values, *limits]) > STRETCH * min(values)
    decades = DECADES if band is BANDS["update_ratio"] else math.inf
    span = _span([*values, *limits], logarithmic=logarithmic, from_zero=from_zero, decades=decades)
    more: dict[str, Any] = {"range": span, "tickformat": tickformat, "nticks": 6}
    if logarithmic:
        more = {"range": span, "type": "log", **_ticks(*span)}
    x = axis("step", rangemode="tozero", tickformat="~s", nticks=6)
    edge = (named or len(lines) > 1) and not keys
    margin = {**MARGIN, "l": 66, "r": MARGIN["r"] if edge else 24}
    shown = layout(x, axis(unit, **more), height=HEIGHT, margin=margin)
    shown["shapes"] = _healthy(band, span, logarithmic) if band else []
    place = (lambda y: math.log10(y)) if logarithmic else (lambda y: y)
    if edge:
        shown["annotations"] = labels([(line, place(line.series["y"][-1])) for line in lines], span, HEIGHT)
        for note in shown["annotations"]:  # hidden with the line, by the model's chip
            note["name"] = next(line.model for line in lines if line.name == note["name"])
    data = [area for line in drawn if (area := _area(line))] + [_trace(line, tickformat) for line in drawn]
    views = {"all": {"data": data, "layout": shown}}
    return Figure(id=f"meter-{key}", title=title, reading=reading, views=views, keys=list(keys))


def _span(values: Sequence[float], *, logarithmic: bool, from_zero: bool, decades: float) -> list[float]:
    """The axis' range, in powers of ten on a logarithmic one."""
    scale: Callable[[float], float] = math.log10 if logarithmic else float
    low, high = scale(min(values)), scale(max(values))
    low = max(low, high - decades) if logarithmic else low
    pad = 0.06 * max(high - low, 0.05 * abs(high), 1e-6)
    return [0.0 if from_zero else low - pad, high + pad]


def _ticks(low: float, high: float) -> dict[str, Any]:
    """Of a logarithmic axis from 10**low to 10**high: powers of ten, multiples too where few of them fit."""
    steps = (1, 2, 5) if high - low < 1.3 else ((1, 3) if high - low < 2.5 else (1,))
    apart = math.ceil((high - low) / 6)
    powers = range(math.floor(low / apart) * apart, math.ceil(high) + 1, apart)
    values = [step * 10.0**power for power in powers for step in steps]
    large = [count(round(value)).replace(".00", "").replace(".0", "") for value in values]
    shown = [f"{value:g}" if value < 1e4 else text for value, text in zip(values, large, strict=True)]
    return {"tickvals": values, "ticktext": shown}


def _healthy(band: Band, span: list[float], logarithmic: bool) -> list[dict[str, Any]]:
    """The shaded part of the figure, and a line at each limit that lies in it."""
    edges = [10**edge if logarithmic else edge for edge in span]
    limits = [limit for limit in (band.low, band.high) if 0 < limit < math.inf]
    across = {"xref": "paper", "x0": 0, "x1": 1, "yref": "y"}
    low = max(band.low, edges[0]) if band.low else edges[0]
    shade = {"type": "rect", "y0": low, "y1": min(band.high, edges[1]), "fillcolor": "$green@0.09"}
    shapes = [{**across, **shade, "line": {"width": 0}, "layer": "below"}]
    for limit in limits:
        line = {"color": "$green", "width": 1, "dash": "dot"}
        shapes.append({**across, "type": "line", "y0": limit, "y1": limit, "line": line, "layer": "below"})
    return shapes


def _trace(line: Line, tickformat: str) -> dict[str, Any]:
    few = len(line.series["x"]) <= 60
    return {
        "type": "scatter",
        "mode": "lines+markers" if few else "lines",
        "name": plain(line.name),
        "meta": {"model": line.model},
        "x": [round(x, 1) for x in line.series["x"]],
        "y": [_short(y) for y in line.series["y"]],
        "line": {"color": f"${line.slot}", "width": 1.6, "dash": line.dash},
        "marker": {"color": f"${line.slot}", "size": 3.5},
        "hovertemplate": f"%{{y:{'.1%' if '%' in tickformat else '.4~g'}}}<br>step %{{x:.0f}}"
        "<extra>%{fullData.name}</extra>",
    }


def _area(line: Line) -> dict[str, Any] | None:
    """From the lowest to the highest value that a point of the line stands for."""
    if "low" not in line.series:
        return None
    x, low, high = (line.series[key] for key in ("x", "low", "high"))
    return {
        "type": "scatter",
        "mode": "lines",
        "meta": {"model": line.model},
        "x": [round(value, 1) for value in x + x[::-1]],
        "y": [_short(value) for value in high + low[::-1]],
        "fill": "toself",
        "fillcolor": f"${line.slot}@{FAINT}",
        "line": {"width": 0},
        "hoverinfo": "skip",
    }


def _short(value: float) -> float:
    """Four significant figures: what a pixel can show, and a page a third as long."""
    return float(f"{value:.4g}")
