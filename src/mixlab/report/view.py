"""A comparison made safe to read: plain values, results grouped by model, one colour slot each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mixlab.report.palette import SLOTS


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
    """All results of one model: `done` have numbers, `failed` have a reason; `slot` names its colour."""

    name: str
    slot: str
    dash: str = "solid"
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
    def is_reference(self) -> bool:
        """Whether it has a score but no learning curve: a counted model, drawn as a horizontal line."""
        return self.bits is not None and not any(
            len(rows(r.get("evals"))) > 1 or r.get("curve") for r in self.done
        )

    @property
    def reason(self) -> str:
        """Why the failed results failed, in one sentence ('' when none did)."""
        reasons = dict.fromkeys(str(result.get("reason") or "no reason was given") for result in self.failed)
        return "; ".join(reasons)


def group(comparison: dict[str, Any]) -> list[ModelView]:
    """The models of a cleaned comparison, best first, those without a score last (stable within)."""
    names: dict[str, list[dict[str, Any]]] = {}
    for index, result in enumerate(rows(comparison.get("results"))):
        names.setdefault(str(result.get("model") or f"model {index + 1}"), []).append(result)
    models, colours, neutral_free = [], 0, True
    for name, results in names.items():
        done = [result for result in results if result.get("status", "done") != "failed"]
        failed = [result for result in results if result.get("status", "done") == "failed"]
        view = ModelView(name=name, slot="", done=done, failed=failed)
        if view.is_reference and neutral_free:
            slot, dash, neutral_free = "neutral", "dot", False
        else:
            slot, dash = SLOTS[colours % len(SLOTS)], ("solid", "dash", "dashdot")[colours // len(SLOTS) % 3]
            colours += 1
        models.append(ModelView(name=name, slot=slot, dash=dash, done=done, failed=failed))
    return sorted(models, key=lambda m: math.inf if m.bits is None else m.bits)
