"""A sweep: loss against each swept value, and a warning where the best lies at the end of its range."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixlab.config import load_run_config
from mixlab.errors import UserError
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


def lowest(points: Sequence[Point]) -> list[Point]:
    """The points with the lowest loss: several where they are equal as they are shown."""
    least = min(points, key=lambda point: point.loss)
    return [point for point in points if bits(point.loss) == bits(least.loss)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def warnings(data: Mapping[str, Any], models: Sequence[ModelView]) -> list[str]:
    """A sentence for each base model and key whose best value is the smallest or the largest tried: to extend
    the sweep, unless the seeds cannot separate it from the value next to it. Nothing where another value
    reaches the same loss, or where the key allows no value beyond."""
    sweeps = swept(data, models)
    found = (
        _at_the_edge(sweep, key, several=len(sweeps) > 1)
        for key, values in keys_of(data).items()
        if all(map(_is_number, values))
        for sweep in sweeps
    )
    return [sentence for sentence in found if sentence]


def _at_the_edge(sweep: Swept, key: str, *, several: bool) -> str:
    profile = sweep.profile(key)
    (best, *ties), ends = lowest(profile), (profile[0], profile[-1])
    if len(profile) < 2 or ties or best not in ends:
        return ""
    smallest = best is ends[0]
    inner = profile[1 if smallest else -2]
    if not _extends(best, key, inner.values[key]):
        return ""
    value = show(best.values[key])
    end, more = ("smallest", "smaller") if smallest else ("largest", "larger")
    of = f"{sweep.name}: the" if several else "The"
    edge = f"{of} best {key} of the sweep, {value}, is the {end} that was tried"
    gap = difference(best.model, inner.model)
    if gap is not None and gap.half is not None and not gap.clear and gap.seeds > 1:
        return f"{edge}, but {gap.seeds} seeds do not separate it from {show(inner.values[key])}."
    unknown = gap is not None and gap.half is None
    reserve = "; with one seed the noise between runs is unknown" if unknown else ""
    return f"{edge}: extend the sweep beyond it, a {more} one may be better{reserve}."


def _extends(best: Point, key: str, inner: float) -> bool:
    """Whether the key allows a value beyond the best one, seen from `inner`, the value next to it; as far as
    can be told where the model's config is not known or its parts are not."""
    value: float = best.values[key]
    tried: tuple[float, ...]
    config = next((mapping(result.get("config")) for result in best.model.done), {})
    if not _works(config):
        return value > 0 or value > inner
    if isinstance(value, int) and isinstance(inner, int):
        tried = (value - 1, value // 2) if value < inner else (value + 1, value * 2)
    else:
        tried = (value + (value - inner) / 100,)  # a hair: a limit such as 1 may lie close
    return any(_works(config, f"{key}={beyond}") for beyond in tried if beyond != value)


def _works(config: Mapping[str, Any], *overrides: str) -> bool:
    """Whether the run's config is valid with these keys, and its model can be built."""
    try:
        found = load_run_config(config, overrides)
        if found.model is not None:
            import torch

            from mixlab.model.language_model import build_model

            with torch.device("meta"):  # shapes are enough: nothing is allocated
                build_model(found.model)
    except (UserError, NotImplementedError, RuntimeError):
        return False
    return True


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
    reading = [_reading(sweep.name, key, profile) for sweep, profile in profiles]
    best_of = "; each point is the best over the other swept values" if keys > 1 else ""
    return Figure(
        id=f"grid-{re.sub(r'[^a-zA-Z0-9]+', '-', key)}",
        title=f"Loss against {key}",
        reading=f"{listed(reading)}{best_of}.",
        views={"all": {"data": data, "layout": shown}},
        wide=keys == 1,
    )


def _reading(name: str, key: str, profile: Sequence[Point]) -> str:
    best = lowest(profile)
    values = listed([show(point.values[key]) for point in best])
    if len(best) > 1:
        return f"{name} reaches the same loss at {values} ({bits(best[0].loss)} bits per byte)"
    return f"{name} is lowest at {values} ({bits(best[0].loss)} bits per byte)"
