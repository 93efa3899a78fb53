"""A comparison made safe to read: plain values, results grouped by model, one colour slot each."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mixlab.report.palette import SLOTS

COUNTED = re.compile(r" \(([^ ()]+) (?:of the text|text|tokens)\)$")
"""What a baseline's name says of the text that it counted, such as " (20M tokens)", and that in one word."""


def clean(value: Any) -> Any:
    """`value` as JSON would hold it: NaN and infinities become None, lone surrogates become '?'.

    Mappings and sequences are copied; numpy scalars and arrays become numbers and lists; the rest its `str`.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, Mapping):
        return {clean(str(key)): clean(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [clean(item) for item in value]
    return clean(value.tolist()) if hasattr(value, "tolist") else clean(str(value))


def number(value: Any) -> float | None:
    """A finite number, or None for anything else (a missing key, NaN, a word, a truth value)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def mean(values: Sequence[float]) -> float | None:
    """The mean, or None of nothing."""
    return sum(values) / len(values) if values else None


def mapping(value: Any) -> dict[str, Any]:
    """`value` if it is a dict, else an empty one: optional parts of a result may be absent or null."""
    return value if isinstance(value, dict) else {}


def rows(value: Any) -> list[dict[str, Any]]:
    """The dicts of a list, in order; an empty list for anything else."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


@dataclass(frozen=True, kw_only=True)
class ModelView:
    """All results of one model: `done` have numbers, `failed` have a reason; `slot` names its colour.

    kind: "neural" or "baseline". counted_on: of a baseline, "same" for the text that the others were trained
    on, "all" for the whole training text.
    """

    name: str
    slot: str
    dash: str = "solid"
    kind: str = "neural"
    counted_on: str = ""
    done: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)

    def values(self, key: str) -> list[float]:
        """The finite values of `key` over the finished results."""
        found = (number(result.get(key)) for result in self.done)
        return [value for value in found if value is not None]

    def mean(self, key: str) -> float | None:
        """The mean of `key` over the finished results that have it."""
        return mean(self.values(key))

    def by_seed(self, key: str) -> dict[Any, float]:
        """Seed -> value of `key`; a result without a seed counts as its position in the list."""
        found = {}
        for index, result in enumerate(self.done):
            value = number(result.get(key))
            if value is not None:
                found[result.get("seed", index)] = value
        return found

    @property
    def bits(self) -> float | None:
        """Mean validation bits per byte."""
        return self.mean("bits_per_byte")

    @property
    def is_baseline(self) -> bool:
        """Whether it counts (an n-gram) and is not trained: drawn as a horizontal line, ranked apart."""
        return self.kind == "baseline"

    @property
    def base(self) -> str:
        """What it is called without a word on what it counted."""
        if not self.is_baseline or not self.done:
            return self.name
        name = str(self.done[0].get("model") or self.name)
        return COUNTED.sub("", name)

    @property
    def label(self) -> str:
        """Its name at the edge of a figure: two baselines of one name differ by what they counted."""
        counted = COUNTED.search(self.name)
        return self.name if counted is None or self.base == self.name else f"{self.base}, {counted[1]}"

    @property
    def seeds(self) -> int:
        """How many seeds have a score."""
        return len(self.by_seed("bits_per_byte"))

    @property
    def reason(self) -> str:
        """Why the failed results failed, in one sentence ('' when none did)."""
        reasons = dict.fromkeys(str(result.get("reason") or "no reason was given") for result in self.failed)
        return "; ".join(reasons)


def kind_of(result: Mapping[str, Any]) -> str:
    """ "neural" or "baseline": as the result says, else by its config, else by whether it has a curve."""
    config = mapping(result.get("config"))
    if result.get("kind") in ("neural", "baseline"):
        return str(result["kind"])
    if config.get("ngram") or config.get("model"):
        return "baseline" if config.get("ngram") else "neural"
    scored = number(result.get("bits_per_byte")) is not None
    trained = result.get("curve") or len(rows(result.get("evals"))) > 1
    return "baseline" if scored and not trained else "neural"


def _counted_on(result: Mapping[str, Any]) -> str:
    """What a baseline counted: older results counted the whole training text."""
    if kind_of(result) != "baseline":
        return ""
    return "same" if result.get("counted_on") == "same" else "all"


def group(comparison: Mapping[str, Any]) -> list[ModelView]:
    """The models of a cleaned comparison: the neural ones, best first, those without a score last (stable
    within), then the baselines in the same order."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for index, result in enumerate(rows(comparison.get("results"))):
        name = str(result.get("model") or f"model {index + 1}")
        found.setdefault((name, _counted_on(result)), []).append(result)
    names = [name for name, _ in found]
    models, colours, baselines = [], 0, 0
    for (name, counted_on), results in found.items():
        done = [result for result in results if result.get("status", "done") != "failed"]
        failed = [result for result in results if result.get("status", "done") == "failed"]
        if counted_on:
            slot, dash = "neutral", ("dot", "dash", "longdash", "dashdot")[baselines % 4]
            baselines += 1
        else:
            slot, dash = SLOTS[colours % len(SLOTS)], ("solid", "dash", "dashdot")[colours // len(SLOTS) % 3]
            colours += 1
        models.append(
            ModelView(
                name=name if names.count(name) == 1 else f"{name}, {counted_on or 'trained'}",
                slot=slot,
                dash=dash,
                kind="baseline" if counted_on else "neural",
                counted_on=counted_on,
                done=done,
                failed=failed,
            )
        )
    return sorted(models, key=lambda m: (m.is_baseline, math.inf if m.bits is None else m.bits))
