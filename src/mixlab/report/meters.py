"""A run's meters as series short enough to draw, with the figures that sentences need, exact over all steps.

What `gather` makes is plain data, a result's `meters`; how many steps a run has does not change its size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

from mixlab.report.curves import MAX_POINTS
from mixlab.report.view import mapping, number, rows
from mixlab.train.bands import BANDS

STEP_METERS = ("grad_norm", "grad_norm_clipped", "lr", "tokens_per_second", "peak_fraction", "memory_bytes")
LAYERED = ("attention_logit", "attention_entropy", "effective_rank", "dead_units")

Point = tuple[float, float]  # step, value
Span = tuple[float, float, float, float]  # step, value, lowest, highest


def gather(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The meters of metrics.jsonl's lines; empty if no step says any.

    steps: key of STEP_METERS -> series. update_ratio: role -> series. learning_rates: groups of parameters,
    in words -> series. watch: key of LAYERED -> series of the layer nearest to leaving the band, with the
    lowest and the highest layer; looks: how many there were. warnings: one for each number that left its
    band. clipped_fraction: of all steps. changes: step and words where it went on with another config.
    """
    steps = [line for line in lines if line.get("kind") == "step"]
    looks = [line for line in lines if line.get("kind") == "watch"]
    found = {
        "steps": {key: curve for key in STEP_METERS if (curve := series(_points(steps, key)))},
        "update_ratio": _by_name(steps, "update_ratio"),
        "learning_rates": _rates(steps),
        "watch": {key: curve for key in LAYERED if (curve := _layers(looks, key))},
    }
    if not any(found.values()):
        return {}
    return found | {
        "looks": len(looks),
        "warnings": _warnings(looks),
        "clipped_fraction": number(steps[-1].get("clipped_fraction")) if steps else None,
        "changes": _changes(lines),
    }


def series(points: Sequence[Point]) -> dict[str, Any] | None:
    """A curve of (step, value): means over as many steps each, with the lowest and highest among them where
    there are more than a figure shows; and of all values the median, the last, the most and the least."""
    if not points:
        return None
    spans = []
    for part in _parts(points):
        values = [value for _, value in part]
        at = part[-1][0] if len(part) == 1 else sum(step for step, _ in part) / len(part)
        spans.append((at, sum(values) / len(values), min(values), max(values)))
    return _curve(spans, banded=len(spans) < len(points)) | _summary(points)


def _summary(points: Sequence[Point]) -> dict[str, Any]:
    (most_at, most), (least_at, least) = max(points, key=lambda p: p[1]), min(points, key=lambda p: p[1])
    return {
        "median": median(value for _, value in points),
        "last": points[-1][1],
        "last_at": points[-1][0],
        "most": most,
        "most_at": most_at,
        "least": least,
        "least_at": least_at,
    }


def _curve(spans: Sequence[Span], *, banded: bool) -> dict[str, Any]:
    x, y, low, high = (list(column) for column in zip(*spans, strict=True))
    return {"x": x, "y": y} | ({"low": low, "high": high} if banded else {})


def _parts(points: Sequence[Any]) -> list[Sequence[Any]]:
    """At most MAX_POINTS equally long stretches of `points`, first to last."""
    count = min(len(points), MAX_POINTS)
    edges = [round(i * len(points) / count) for i in range(count + 1)]
    return [points[a:b] for a, b in pairwise(edges)]


def _points(lines: Iterable[dict[str, Any]], key: str) -> list[Point]:
    found = ((number(line.get("step")), number(line.get(key))) for line in lines)
    return [(step, value) for step, value in found if step is not None and value is not None]


def _named(lines: Iterable[dict[str, Any]], key: str) -> dict[str, list[Point]]:
    """Name -> its points, of a key that holds a number for each name."""
    found: dict[str, list[Point]] = {}
    for line in lines:
        step = number(line.get("step"))
        for name, value in mapping(line.get(key)).items():
            if step is not None and (value := number(value)) is not None:
                found.setdefault(str(name), []).append((step, value))
    return found


def _by_name(lines: Iterable[dict[str, Any]], key: str) -> dict[str, Any]:
    return {name: series(points) for name, points in _named(lines, key).items()}


def _rates(steps: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Groups that always had the same rate are one: "muon/matrix", "adamw/embedding, head"."""
    same: dict[tuple[Point, ...], list[str]] = {}
    for name, points in _named(steps, "learning_rates").items():
        same.setdefault(tuple(points), []).append(name)
    return {_together(names): series(points) for points, names in same.items()}


def _together(names: Sequence[str]) -> str:
    rules: dict[str, list[str]] = {}
    for name in names:
        rule, _, role = name.partition("/")
        rules.setdefault(rule, []).append(role)
    return "; ".join(f"{rule}: {', '.join(roles)}" if any(roles) else rule for rule, roles in rules.items())


def _layers(looks: Iterable[dict[str, Any]], key: str) -> dict[str, Any] | None:
    """A number of the watch list over steps: of each look the layer that is nearest to leaving the band."""
    worst: Callable[..., Any] = max if BANDS[key].high < float("inf") else min
    spans: list[tuple[Span, int]] = []
    for look in looks:
        step, layers = number(look.get("step")), look.get(key)
        values = [number(value) for value in layers] if isinstance(layers, list) else []
        there = [(value, layer) for layer, value in enumerate(values) if value is not None]
        if step is not None and there:
            value, layer = worst(there)
            spans.append(((step, value, min(there)[0], max(there)[0]), layer))
    if not spans:
        return None
    kept = [(part[-1][0], worst(p[1] for p in part), min(p[2] for p in part), max(p[3] for p in part))
            for part in _parts([span for span, _ in spans])]  # fmt: skip
    points = [(span[0], span[1]) for span, _ in spans]
    extreme = worst(range(len(points)), key=lambda i: points[i][1])
    return (
        _curve(kept, banded=any(low < high for _, _, low, high in kept))
        | _summary(points)
        | {"last_layer": spans[-1][1], "worst_layer": spans[extreme][1]}
    )


def _warnings(looks: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each number that left its band: the first sentence, in which looks it was out, in order of step."""
    found: dict[str, dict[str, Any]] = {}
    for look in looks:
        step = number(look.get("step"))
        for name, words in mapping(look.get("warnings")).items():
            new = {"name": str(name), "first": step, "words": str(words), "looks": 0}
            told = found.setdefault(str(name), new)
            told |= {"last": step, "looks": told["looks"] + 1}
    return list(found.values())


def _changes(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for line in rows(list(lines)):
        if line.get("kind") == "config":
            words = [
                f"{key} {pair[1]} (it was {pair[0]})"
                for key, pair in mapping(line.get("changes")).items()
                if isinstance(pair, list) and len(pair) == 2
            ]
            found.append({"step": number(line.get("step")) or 0, "words": ", ".join(words)})
    return found
