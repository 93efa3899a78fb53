"""A sweep: loss against each swept value, and a warning where the best lies at the end of its range."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixlab.report.figures import Figure, axis, labels, layout, plain
from mixlab.report.palette import SLOTS
from mixlab.report.scales import clip_marks, fit, log_suits
from mixlab.report.statistics import difference
from mixlab.report.units import bits, listed
from mixlab.report.view import ModelView, mapping

Value = str | float | bool


@dataclass(frozen=True, kw_only=True)
class Point:
    """A model of the sweep: its values by key, its mean loss, and the lowest and highest of its seeds."""

    model: ModelView
    values: dict[str, Any]
    loss: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Swept:
    """What was swept with one base model: its points; `name` and `slot` are its line's."""

    name: str
    slot: str
    points: list[Point]

    @property
    def best(self) -> Point:
        """The point with the lowest loss."""
        return min(self.points, key=lambda point: point.loss)

    def profile(self, key: str) -> list[Point]:
        """At each value of `key`, in order, the best over the other keys."""
        found: dict[str, Point] = {}
        for point in self.points:
            value = point.values.get(key)
            name = json.dumps(value)  # a pattern is a list
            if value is not None and (name not in found or point.loss < found[name].loss):
                found[name] = point
        points = list(found.values())
        if all(_is_number(point.values[key]) for point in points):
            return sorted(points, key=lambda point: float(point.values[key]))
        return points


def keys_of(data: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The swept keys with their values, those of one value left out."""
    keys = mapping(mapping(data.get("grid")).get("keys"))
    return {key: values for key, values in keys.items() if isinstance(values, list) and len(values) > 1}


def swept(data: Mapping[str, Any], models: Sequence[ModelView]) -> list[Swept]:
    """The scored models of the sweep, by base model."""
    keys = keys_of(data)
    found: dict[str, list[Point]] = {}
    for model in models:
        values = next((mapping(result.get("grid")) for result in model.done if result.get("grid")), {})
        losses = model.values("bits_per_byte")
        if any(key in values for key in keys) and losses:
            point = Point(
                model=model,
                values=dict(values),
                loss=sum(losses) / len(losses),
                low=min(losses),
                high=max(losses),
            )
            found.setdefault(_base(model, keys), []).append(point)
    return [
        Swept(name=name, slot=SLOTS[index % len(SLOTS)], points=points)
        for index, (name, points) in enumerate(found.items())
    ]


def _base(model: ModelView, keys: Mapping[str, Any]) -> str:
    """The model that was swept: as its results say, else its name up to the first swept key; of a baseline
    with what it counted."""
    for result in model.done:
        if isinstance(result.get("base"), str):
            return str(result["base"]) + (f", {model.counted_on}" if model.is_baseline else "")
    parts = [re.escape(part) for key in keys for part in (key, key.rpartition(".")[2])]
    return re.split(rf"[\W_]*(?:{'|'.join(parts)})[\W_]", model.name)[0] or model.name


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def warnings(data: Mapping[str, Any], models: Sequence[ModelView]) -> list[str]:
    """A sentence for each base model and key whose best value is the smallest or the largest tried: to extend
    the sweep, unless the seeds cannot separate it from the value next to it."""
    found = []
    sweeps = swept(data, models)
    for key, values in keys_of(data).items():
        numbers = [value for value in values if _is_number(value)]
        if len(numbers) < len(values):
            continue
        for sweep in sweeps:
            value = sweep.best.values.get(key)
            if len(sweep.profile(key)) < 2 or value not in (min(numbers), max(numbers)):
                continue
            end, more = ("smallest", "smaller") if value == min(numbers) else ("largest", "larger")
            of = f"{sweep.name}: the" if len(sweeps) > 1 else "The"
            edge = f"{of} best {key} of the sweep, {show(value)}, is the {end} that was tried"
            inner = sweep.profile(key)[1 if end == "smallest" else -2]
            gap = difference(sweep.best.model, inner.model)
            if gap is not None and gap.half is not None and not gap.clear and gap.seeds > 1:
                noise = f"{gap.seeds} seeds do not separate it from {show(inner.values[key])}"
                found.append(f"{edge}, but {noise}.")
            else:
                found.append(f"{edge}: extend the sweep beyond it, a {more} one may be better.")
    return found


def show(value: Any) -> str:
    """A swept value as text."""
    return f"{value:g}" if _is_number(value) else str(value)


def figures(data: Mapping[str, Any], models: Sequence[ModelView]) -> list[Figure]:
    """Loss against each swept key: a line for each base model, at each value its best over other keys."""
    keys, sweeps = keys_of(data), swept(data, models)
    return [_figure(key, values, sweeps, len(keys)) for key, values in keys.items() if sweeps]


def _figure(key: str, values: Sequence[Any], sweeps: Sequence[Swept], keys: int) -> Figure:
    numeric = all(_is_number(value) for value in values)
    logarithmic = numeric and log_suits(sorted(values))
    place = (lambda value: value) if numeric else (lambda value: values.index(value))
    profiles = [(sweep, sweep.profile(key)) for sweep in sweeps]
    profiles = [(sweep, profile) for sweep, profile in profiles if profile]
    lines = [[point.loss for point in profile] for _, profile in profiles]
    scale = fit(lines, [])
    data = []
    for sweep, profile in profiles:
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": plain(sweep.name),
                "x": [place(point.values[key]) for point in profile],
                "y": [round(point.loss, 5) for point in profile],
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [round(point.high - point.loss, 5) for point in profile],
                    "arrayminus": [round(point.loss - point.low, 5) for point in profile],
                    "thickness": 1,
                    "color": f"${sweep.slot}",
                },
                "line": {"color": f"${sweep.slot}", "width": 2},
                "marker": {"color": f"${sweep.slot}", "size": 7},
                "hovertemplate": "%{y:.3f} bits per byte<br>%{x}<extra>%{fullData.name}</extra>",
            }
        )
        xs = [place(point.values[key]) for point in profile]
        data += clip_marks(xs, [point.loss for point in profile], scale, sweep.slot, each=True)
    ticks: dict[str, Any] = {"tickvals": list(values), "ticktext": [show(value) for value in values]}
    ticks = ticks if numeric else ticks | {"tickvals": list(range(len(values)))}
    more = {"type": "log"} if logarithmic else {}
    shown = layout(axis(key, **more, **ticks), axis("validation loss (bits per byte)", range=scale.span))
    if len(profiles) > 1:
        ends = [(sweep, profile[-1].loss) for sweep, profile in profiles]
        shown["annotations"] = labels(ends, scale.span)
    else:
        shown["margin"] = {**shown["margin"], "r": 24}
    shown["annotations"] += scale.note()
    reading = [
        f"{sweep.name} is lowest at {show(best.values[key])} ({bits(best.loss)} bits per byte)"
        for sweep, profile in profiles
        for best in [min(profile, key=lambda point: point.loss)]
    ]
    best_of = "; each point is the best over the other swept values" if keys > 1 else ""
    return Figure(
        id=f"grid-{re.sub(r'[^a-zA-Z0-9]+', '-', key)}",
        title=f"Loss against {key}",
        reading=f"{listed(reading)}{best_of}.",
        views={"all": {"data": data, "layout": shown}},
        wide=keys == 1,
    )
